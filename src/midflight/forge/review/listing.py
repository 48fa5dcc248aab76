"""Functions before and after, instruction by instruction and side by side, as people read them.

Targets of calls and references to data have the names that the relocations of the objects tell; jumps have the offset
of what they lead to. Lines are aligned by what the instructions do, so that code which only moved is equal.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import iced_x86 as x86

from midflight.forge.difference.diff import is_cold
from midflight.forge.difference.lines import LineTables
from midflight.forge.matching.decode import is_near_branch, is_padding
from midflight.forge.model import Atom, ObjectCode, Reference
from midflight.forge.review.callsites import LineOf, name_of
from midflight.forge.review.touched import Touched, locate, read_lines

_RIP = re.compile(r"(?:-?(?:0x)?[0-9a-fA-F]+)?\(%rip\)")
_JUMP = re.compile(r"\s\S+$")
_TEXT_SHOWN = 40
_ALL_COMPARED = 4000
"""Longer functions are aligned by their rarer instructions first, which is faster and less exact."""


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction. ``number`` counts from 0; ``target`` is the number of the line that a jump leads to."""

    number: int
    offset: int
    text: str
    target: int | None
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two instructions side by side; None: the other side has none here. ``same``: they do the same."""

    before: Line | None
    after: Line | None
    same: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """One function, before and after."""

    name: str
    pairs: tuple[Pair, ...]

    @property
    def changed(self) -> int:
        """Lines that are not the same."""
        return sum(not pair.same for pair in self.pairs)


def side_by_side(name: str, before: Sequence[Line], after: Sequence[Line]) -> Listing:
    """Align two versions of a function."""
    old, new = ([_without_target(line) for line in side] for side in (before, after))
    quick = max(len(old), len(new)) > _ALL_COMPARED
    pairs: list[Pair] = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=quick).get_opcodes():
        if what == "equal":
            pairs += [Pair(x, y, True) for x, y in zip(before[a:b], after[c:d], strict=True)]
            continue
        for index in range(max(b - a, d - c)):
            left = before[a + index] if a + index < b else None
            right = after[c + index] if c + index < d else None
            pairs.append(Pair(left, right, False))
    partner = {pair.before.number: pair.after.number for pair in pairs if pair.before and pair.after}
    return Listing(name, tuple(_checked(pair, partner) for pair in pairs))


def _checked(pair: Pair, partner: Mapping[int, int]) -> Pair:
    """A jump is the same when it leads to the same place, too."""
    if not pair.same or pair.before is None or pair.after is None or pair.before.target is None:
        return pair
    return Pair(pair.before, pair.after, partner.get(pair.before.target) == pair.after.target)


def _without_target(line: Line) -> str:
    return line.text if line.target is None else _JUMP.sub("", line.text)


def lines_of(code: ObjectCode, key: str) -> list[Line]:
    """The instructions of a function and its cold part, without padding."""
    atom = code.atoms[key]
    tables = LineTables(code.file, code.path)
    found: list[Line] = []
    for part in (atom, *(other for other in code.atoms.values() if other.parent == key and is_cold(other))):
        found += _part(code, part, LineOf(tables.rows(part)), len(found))
    return found


def _part(code: ObjectCode, atom: Atom, places: LineOf, first: int) -> list[Line]:
    instructions = [i for i in x86.Decoder(64, atom.data) if not is_padding(i)]
    numbers = {instruction.ip: first + index for index, instruction in enumerate(instructions)}
    references = {reference.offset: reference for reference in atom.references}
    formatter = x86.Formatter(x86.FormatterSyntax.GAS)
    formatter.rip_relative_addresses = True
    formatter.space_after_operand_separator = True
    found = []
    for instruction in instructions:
        inside = range(instruction.ip + 1, instruction.ip + instruction.len)
        used = [references[at] for at in inside if at in references]
        text = str(formatter.format(instruction))
        target = None
        if is_near_branch(instruction) and not used:
            target = numbers.get(instruction.near_branch_target)
            text = f"{text.split()[0]} {instruction.near_branch_target:#x}"
        for reference in used:
            text = _named(text, instruction, reference, shown(code, reference))
        found.append(Line(numbers[instruction.ip], instruction.ip, text, target, *places.at(instruction.ip)))
    return found


def _named(text: str, instruction: x86.Instruction, reference: Reference, name: str) -> str:
    """The text of an instruction with what a relocation fills in."""
    if is_near_branch(instruction):
        return f"{text.split()[0]} {name}"
    if instruction.is_ip_rel_memory_operand and _RIP.search(text):
        return _RIP.sub(lambda _: f"{name}(%rip)", text, count=1)
    return f"{text}  # {name}"


def shown(code: ObjectCode, reference: Reference) -> str:
    """What a reference is called: a symbol with the distance from it, or the text of a string."""
    atom = code.atoms.get(reference.atom or "")
    distance = reference.addend + reference.bias
    if atom is not None and atom.kind == "string":
        raw = atom.data[max(distance, 0) :].split(b"\0")[0].decode(errors="replace")
        cut = raw if len(raw) <= _TEXT_SHOWN else raw[:_TEXT_SHOWN] + "…"
        return f'"{cut}"'.replace("\n", "\\n")
    if atom is not None and not atom.name:
        content = atom.data[max(distance, 0) :][:8].hex()
        return f"constant {content}" if content else "constant"
    name = name_of(code, reference) or "?"
    return name if distance == 0 else f"{name}{distance:+#x}"


@dataclass(frozen=True, slots=True)
class SourceText:
    """Source lines before and after, of the files that the fix touches and, where they are found, of others."""

    touched: Touched
    tree: Path

    def line(self, side: int, file: str, number: int) -> str:
        """The text of a line, or nothing; side 0 is before, 1 after."""
        found = self.touched.find(file)
        if found is not None:
            return found.line(side, number)
        lines = read_lines(locate(self.tree, file))
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def name(self, file: str) -> str:
        """A file's path in the tree."""
        found = self.touched.find(file)
        return found.path if found is not None else Path(file).name
