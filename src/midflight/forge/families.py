"""Which parts of code belong to which function, by the names that compilers give them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from midflight.forge.model import Atom

_CHILD = re.compile(r"^(.+?)\.(?:cold|part|isra|constprop)(?:\.\d+)?(?:\.(?:cold|part|isra|constprop)(?:\.\d+)?)*$")
CHILD_TAIL = re.compile(r"\.(?:cold|part|isra|constprop)(?:\.\d+)?$")
# clang for the MSVC ABI: filters of __except, and blocks of __finally, which work in the frame of their function.
_OUTLINED = re.compile(r"^\?(?:filt|fin)\$\d+@\d+@.+@@$")


def base_name(name: str) -> str:
    """The name of the source function that a .cold/.part/.isra/.constprop clone (of a clone …) was made of."""
    found = _CHILD.match(name)
    return found.group(1) if found else name


def outlined(atoms: Mapping[str, Atom], parents: Mapping[str, str]) -> dict[str, str]:
    """Whose frame a filter or a block of __finally works in: that of the one function that refers to it, in its code or
    its exception table."""
    owners: dict[str, set[str]] = {key: set() for key in atoms if is_outlined(key)}
    for key, atom in atoms.items():
        for reference in atom.references:
            if reference.atom in owners and reference.atom != key:
                owners[reference.atom].add(parents.get(key, key))
    found: dict[str, str] = {}
    for key in owners:
        owner, seen = key, {key}
        while owner in owners and len(owners[owner]) == 1:
            (owner,) = owners[owner]
            if owner in seen:
                break
            seen.add(owner)
        if owner not in owners:
            found[key] = owner
    return found


def is_outlined(name: str) -> bool:
    """Whether this names a part of a function that has an entry, but works in the frame of that function."""
    return _OUTLINED.match(name) is not None
