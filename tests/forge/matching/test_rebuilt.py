"""Run is another build than pre: other flags, another compiler, another version. What differs is refused; the rest is
found where it really is."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from midflight.forge import relocs
from midflight.forge.matching import decode
from midflight.forge.matching.match import Key
from midflight.forge.model import Atom, ObjectCode
from tests.forge.matching.building import Kit, build
from tests.forge.matching.campaign import read_known
from tests.forge.matching.programs import generate
from tests.forge.matching.trials import ask, some
from tests.forge.matching.truth import Truth
from tests.forge.matching.verdict import everything, judge

BASE = Kit("gcc", "-O2", "pie", "bfd", ("-fstack-protector-strong",))
CLANG = Kit("clang", "-O2", "shared", "lld")

Texts = Mapping[str, str]


def same(texts: Texts) -> Texts:
    return texts


def constants(texts: Texts) -> Texts:
    """Another version: one function in ten has another constant."""
    draw = random.Random(1)

    def line(text: str) -> str:
        if draw.random() > 0.1 or "{" not in text:
            return text
        return re.sub(r"(\d+)ul", lambda found: f"{int(found[1]) + 1}ul", text, count=1)

    return {name: "\n".join(line(item) for item in text.split("\n")) for name, text in texts.items()}


def edited(*changes: tuple[str, str]) -> Callable[[Texts], Texts]:
    """Everywhere another text."""

    def edit(texts: Texts) -> Texts:
        made = {}
        for name, text in texts.items():
            for old, new in changes:
                text = text.replace(old, new)
            made[name] = text
        assert made != dict(texts)
        return made

    return edit


BUILDS: Mapping[str, tuple[Kit, Kit, Callable[[Texts], Texts]]] = {
    "-O3": (BASE, replace(BASE, level="-O3"), same),
    "-O1": (BASE, replace(BASE, level="-O1"), same),
    "clang": (BASE, replace(BASE, cc="clang"), same),
    "gcc": (CLANG, replace(CLANG, cc="gcc"), same),
    "no stack protector": (BASE, replace(BASE, flags=("-fno-stack-protector",)), same),
    "frame pointers": (BASE, replace(BASE, flags=(*BASE.flags, "-fno-omit-frame-pointer")), same),
    "cf-protection": (BASE, replace(BASE, flags=(*BASE.flags, "-fcf-protection")), same),
    "no plt": (CLANG, replace(CLANG, flags=("-fno-plt",)), same),
    "other processor": (CLANG, replace(CLANG, flags=("-march=x86-64-v3",)), same),
    "no inlining": (BASE, replace(BASE, flags=(*BASE.flags, "-fno-inline")), same),
    "not PIE": (BASE, replace(BASE, kind="no-pie"), same),
    "another linker": (BASE, replace(BASE, linker="gold"), same),
    "another version": (BASE, BASE, constants),
    "another version, clang": (CLANG, CLANG, constants),
    "a member more": (BASE, BASE, edited(("short odd; };", "short odd; u more; };"))),
    "members exchanged": (
        CLANG,
        CLANG,
        edited(("u value; struct node *next;", "struct node *next; u value;"), ("{1, &", "{&list[1], 1, 1, 2}, {&")),
    ),
    "another table": (BASE, BASE, edited(("table[8] = {5, 4", "table[8] = {5, 6"))),
    "another string": (CLANG, CLANG, edited(('"alpha"', '"alphb"'), ('"gamma"', '"gammb"'), ('"a"', '"b"'))),
    "another first value": (BASE, BASE, edited(("count = 1,", "count = 2,"))),
    "another initial TLS": (BASE, BASE, edited(("tls_a = 4", "tls_a = 5"))),
}


def target(code: ObjectCode, atom: Atom, depth: int) -> object:
    """What a reference leads to, in words that two builds share: a clone counts as what it was made of."""
    if atom.name and not atom.name.startswith(".L"):
        return re.sub(r"\.(\d+|constprop|isra|part)", "", atom.name)
    return shape(code, atom, depth - 1) if depth else "…"


def shape(code: ObjectCode, atom: Atom, depth: int = 2) -> object:
    """The contents of an atom without padding and what the linker fills in, and what it refers to."""
    data = bytearray(atom.data)
    for item in decode.decode(atom.data) if atom.kind == "function" else ():
        if decode.is_padding(item):
            data[item.ip : item.ip + item.len] = b"\x90" * item.len
    for reference in atom.references:
        width = relocs.FIELD_SIZE.get(reference.type, 0)
        data[reference.offset : reference.offset + width] = bytes(width)
    references = tuple(
        (
            item.offset,
            item.type,
            item.addend + item.bias,
            item.symbol if item.atom is None else target(code, code.atoms[item.atom], depth),
        )
        for item in atom.references
    )
    return bytes(data), atom.size, references


def differing(pre: Mapping[Path, ObjectCode], other: Mapping[Path, ObjectCode]) -> set[Key]:
    """What the other build has otherwise, or functions that it has not at all."""
    found = set()
    for path, code in pre.items():
        for key, atom in code.atoms.items():
            twin = other[path].atoms.get(key)
            counts = atom.kind == "function" or (atom.name and twin is not None)
            depth = 2 if atom.kind == "function" else 0
            if counts and (twin is None or shape(code, atom, depth) != shape(other[path], twin, depth)):
                found.add((path, key))
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_what_another_build_has_otherwise_is_refused(
    tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    mine, others, change = BUILDS[name]
    texts = generate(77, 2, 50)
    pre = build(tmp_path / "pre", texts, mine)
    other = build(tmp_path / "other", change(texts), others)
    objects = {path: item.code for path, item in read_known(pre).items()}
    known = read_known(other)
    different = differing(objects, {path: item.code for path, item in known.items()})
    assert different or mine.linker != others.linker
    truth = Truth(other.named, [source for source in texts if source in pre.objects or source == "main.c"])
    # Labels of pre mean nothing in the other build: what has no name is compared by the functions that refer to it.
    unlabelled = {path: replace(item, code=objects[path]) for path, item in known.items()}
    wanted = everything(objects.values())
    complaints = []
    for image in (other.plain, other.stripped):
        found = ask(image.read_bytes(), pre, objects, wanted)
        for what, keys in (("function", found.functions.keys()), ("data", found.data.keys())):
            same_named = sorted(different & keys)
            complaints += [f"{image.name}: {what} {path.name}:{key} is another one" for path, key in same_named]
        named = {key: place for key, place in found.data.items() if objects[key[0]].atoms[key[1]].name}
        verdict = judge(
            replace(found, data=named, layouts={key: {} for key in found.functions}), wanted, truth, unlabelled
        )
        record_property(f"figures of rebuilt images, {image.name}", {**verdict.figures(), "differing": len(different)})
        complaints += [f"{image.name}: {item}" for item in verdict.wrong]
    assert not complaints, some(complaints)
