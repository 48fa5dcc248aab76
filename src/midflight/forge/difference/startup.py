"""Finds changes of code that has run already: main, constructors, and what only they call."""

from __future__ import annotations

from collections.abc import Iterator

import iced_x86 as x86

from midflight.forge.calls import is_branch, uses
from midflight.forge.difference.correlate import Correlation
from midflight.forge.model import Atom, Finding, ObjectCode
from midflight.forge.refusals import finding

_ARRAYS = (".init_array", ".preinit_array", ".ctors", ".CRT$XC", ".CRT$XI")


def findings(correlation: Correlation, changed: set[str]) -> Iterator[Finding]:
    """Findings for what the fix changes in start-up code. ``changed`` are post keys of changed functions."""
    pre, post = correlation.pre, correlation.post
    was, now = _constructors(pre), _constructors(post)
    old = {correlation.to_post.get(key, key) for key in was}
    for key in now:
        if key not in old:
            yield finding("MF114", post.path, key, what="a new constructor would run at start-up")
    for key in was:
        if correlation.to_post.get(key, "") not in now:
            yield finding("MF114", post.path, key, what="the fix removes a constructor")
    for key in sorted(changed):
        atom = post.atoms[key]
        owner = post.atoms.get(atom.parent or "", atom)
        if owner.name == "main":
            if atom is owner:
                yield finding("MF117", post.path, "main")
        elif atom is not owner:
            continue
        elif owner.key in now:
            yield finding("MF114", post.path, owner.name, what="it is a constructor")
        elif owner.ifunc:
            yield finding(
                "MF114", post.path, owner.name, what="it chooses a function for an IFUNC when the image is loaded"
            )
        elif _runs_once(pre, correlation.to_pre[key], frozenset()):
            yield finding(
                "MF114", post.path, owner.name, what="only constructors or the straight-line code of main call it"
            )


def _constructors(code: ObjectCode) -> list[str]:
    """Functions (atom keys, or names of symbols elsewhere) that the loader calls at start-up, in order."""
    return [
        r.atom or r.symbol or ""
        for atom in code.atoms.values()
        if atom.section.startswith(_ARRAYS)
        for r in atom.references
    ]


def _runs_once(code: ObjectCode, key: str, seen: frozenset[str]) -> bool:
    """Whether a static function is called by nothing but main, constructors, and static functions that run once too,
    outside of loops. (That gcc puts a function into .text.startup proves nothing: an event loop may be there too.)"""
    if key == "main":
        return True
    found = False
    for atom, reference in uses(code, key):
        if atom.section.startswith(_ARRAYS):
            found = True
            continue
        caller = atom.parent or atom.key
        if caller in seen or caller == key:
            continue
        if not is_branch(atom, reference) or _in_loop(atom, reference.offset):
            return False
        if not _runs_once(code, caller, seen | {key}):
            return False
        found = True
    return found and code.atoms[key].binding == "local"


def _in_loop(atom: Atom, offset: int) -> bool:
    """Whether a jump backwards spans an offset in the code of a function."""
    for instruction in x86.Decoder(64, atom.data):
        if instruction.flow_control in (x86.FlowControl.CONDITIONAL_BRANCH, x86.FlowControl.UNCONDITIONAL_BRANCH):
            target = instruction.near_branch_target
            if target <= offset < instruction.ip:
                return True
    return False
