"""Who calls a function of an object, and who takes its address."""

from __future__ import annotations

from collections.abc import Iterator

from midflight.forge.model import Atom, ObjectCode, Reference


def is_branch(atom: Atom, reference: Reference) -> bool:
    """Whether a field in code is the target of a call or jump: e8, e9 or 0f 8x stands before it (no ModRM byte of an
    address relative to rip looks like that; Intel SDM volume 2, table 2-2)."""
    before = atom.data[max(reference.offset - 2, 0) : reference.offset]
    near = before[-1:] in (b"\xe8", b"\xe9") or (len(before) == 2 and before[0] == 0x0F and before[1] & 0xF0 == 0x80)
    return atom.kind == "function" and near


def uses(code: ObjectCode, key: str) -> Iterator[tuple[Atom, Reference]]:
    """All references to an atom from elsewhere: not from itself, its own cold part, jump or exception table."""
    for atom in code.atoms.values():
        if atom.key != key and atom.parent != key:
            for reference in atom.references:
                if reference.atom == key:
                    yield atom, reference


def address_taken(code: ObjectCode, key: str) -> str | None:
    """The name of something in this object that takes the address of a function, other than to call it; or None."""
    for atom, reference in uses(code, key):
        if not is_branch(atom, reference):
            return atom.name or atom.key
    return None
