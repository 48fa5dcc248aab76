"""Who calls whom in a linked image with symbols, read off its code once.

Direct calls and jumps are edges; a function whose address stands anywhere in data, or is loaded by code, can be called
by anybody at any time. Source: AMD64 psABI 3.5 (position-independent and absolute addressing of functions).
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.matching.runimage import RunImage

_FLOW = x86.FlowControl
_BRANCHES = frozenset({_FLOW.CALL, _FLOW.UNCONDITIONAL_BRANCH, _FLOW.CONDITIONAL_BRANCH})
_START_ARRAYS = (".init_array", ".preinit_array", ".ctors", ".CRT")
_DATA = (1, 14, 16)
"""PROGBITS, INIT_ARRAY, PREINIT_ARRAY (gABI, "Section Types")."""
_START_CODE = frozenset({"_start", "_init", "_fini", "__libc_csu_init"})


@dataclass(frozen=True, slots=True)
class Call:
    """A call of another function of the image (``target``) or of another library (``name`` alone)."""

    at: int
    target: int | None
    name: str


@dataclass(slots=True)
class Node:
    """One function: where it begins and ends, its names, its calls in order of address, its jumps backwards."""

    vaddr: int
    end: int
    name: str
    file: str | None
    calls: list[Call] = field(default_factory=list)
    loops: list[tuple[int, int]] = field(default_factory=list)
    """(first, last) addresses of what a jump backwards spans."""


@dataclass(slots=True)
class CallGraph:
    """The functions of one image by address."""

    nodes: Mapping[int, Node]
    taken: frozenset[int]
    """Functions whose address is taken, or that other modules can call by name."""
    starters: frozenset[int]
    """Constructors."""
    main: int | None

    def find(self, name: str, source: Path | None) -> Node | None:
        """The function with this symbol; where several files have one of that name, that of ``source``."""
        found = [node for node in self.nodes.values() if node.name == name]
        if len(found) > 1 and source is not None:
            found = [node for node in found if node.file == source.name]
        return found[0] if len(found) == 1 else None

    def callers(self, vaddr: int) -> Iterator[tuple[Node, Call]]:
        """All direct calls of a function."""
        for node in self.nodes.values():
            for call in node.calls:
                if call.target == vaddr:
                    yield node, call

    def reached(self, starts: Iterable[int]) -> set[int]:
        """Everything that direct calls from these functions lead to, themselves included."""
        work, seen = list(starts), set[int]()
        while work:
            vaddr = work.pop()
            node = self.nodes.get(vaddr)
            if vaddr not in seen and node is not None:
                seen.add(vaddr)
                work += [call.target for call in node.calls if call.target is not None]
        return seen


def call_graph(image: RunImage) -> CallGraph:
    """Read the graph of an image that has its symbol table."""
    nodes: dict[int, Node] = {}
    for vaddr, symbols in image.function_symbols.items():
        end = image.function_end(vaddr)
        if end is not None and image.is_code(vaddr):
            first = min(symbols, key=lambda s: (s.binding == "local", s.index))
            nodes[vaddr] = Node(vaddr, end, first.name, first.file)
    starts = sorted(nodes)
    taken: set[int] = set()
    for node in nodes.values():
        if node.name not in _START_CODE:
            taken |= _read(image, node, nodes, starts)
    pointers, starters = _pointers(image, nodes)
    exported = (
        {s.value for s in image.elf.dynamic_symbols() if s.section is not None} if image.elf.is_dynamic else set()
    )
    _join_cold_parts(nodes)
    main = next((vaddr for vaddr, node in nodes.items() if node.name == "main"), None)
    return CallGraph(nodes, frozenset((taken | pointers | exported) & nodes.keys() - {main}), frozenset(starters), main)


def _read(image: RunImage, node: Node, nodes: Mapping[int, Node], starts: Sequence[int]) -> set[int]:
    """Fill in the calls and loops of one function; returns the functions whose address it takes."""
    taken: set[int] = set()
    code = image.code(node.vaddr, node.end - node.vaddr)
    for instruction in x86.Decoder(64, code, ip=node.vaddr):
        flow = instruction.flow_control
        if flow in _BRANCHES and instruction.op0_kind == x86.OpKind.NEAR_BRANCH64:
            target = instruction.near_branch_target
            if node.vaddr <= target < node.end:
                if target <= instruction.ip and flow != _FLOW.CALL:
                    node.loops.append((target, instruction.ip))
            else:
                node.calls.append(_call(image, instruction.ip, target, nodes, starts))
            continue
        if instruction.is_ip_rel_memory_operand:
            target = instruction.ip_rel_memory_address
            if instruction.mnemonic == x86.Mnemonic.LEA:
                if target in nodes:
                    taken.add(target)
            elif flow in (_FLOW.INDIRECT_CALL, _FLOW.INDIRECT_BRANCH):
                node.calls.append(_through_slot(image, instruction.ip, target, nodes))
            elif (pointer := image.pointer(target)) is not None and pointer.value in nodes:
                taken.add(pointer.value)
        if not image.elf.is_pie and instruction.op_count == 2 and instruction.op1_kind in _ABSOLUTE:
            taken |= {instruction.immediate(1)} & nodes.keys()
    return taken


_ABSOLUTE = frozenset({x86.OpKind.IMMEDIATE32, x86.OpKind.IMMEDIATE64, x86.OpKind.IMMEDIATE32TO64})


def _call(image: RunImage, at: int, target: int, nodes: Mapping[int, Node], starts: Sequence[int]) -> Call:
    entry = image.plt_at(target)
    if entry is not None and entry.symbol is not None:
        return Call(at, entry.symbol.value if entry.symbol.section is not None else None, entry.symbol.name)
    if target not in nodes:
        # Into the middle: a jump between a function and its cold part.
        position = bisect.bisect_right(starts, target) - 1
        if position >= 0 and target < nodes[starts[position]].end:
            return Call(at, starts[position], nodes[starts[position]].name)
        return Call(at, None, "")
    return Call(at, target, nodes[target].name)


def _through_slot(image: RunImage, at: int, slot: int, nodes: Mapping[int, Node]) -> Call:
    pointer = image.pointer(slot)
    if pointer is None or pointer.symbol is None:
        target = None if pointer is None or pointer.value not in nodes else pointer.value
        return Call(at, target, nodes[target].name if target is not None else "")
    return Call(at, pointer.value if pointer.value in nodes else None, pointer.symbol.name)


def _pointers(image: RunImage, nodes: Mapping[int, Node]) -> tuple[set[int], set[int]]:
    """Functions that data points to; and apart from them, those of the arrays of constructors."""
    arrays = [(s.address, s.address + s.size) for s in image.elf.sections if s.name.startswith(_START_ARRAYS)]
    found, starters = set[int](), set[int]()

    def add(at: int, value: int) -> None:
        if value in nodes:
            (starters if any(a <= at < b for a, b in arrays) else found).add(value)

    for at, relocation in image.relocations.items():
        if relocation.type in (r.RELATIVE, r.IRELATIVE):
            add(at, relocation.addend)
        elif relocation.type == r.R_64 and (symbol := image.dynamic_symbol_of(relocation)) is not None:
            add(at, symbol.value + relocation.addend)
    if not image.elf.is_pie:
        for section in image.elf.sections:
            if section.flags & 2 and not section.flags & 4 and section.type in _DATA:
                data = image.read(section.address, section.size) or b""
                for offset in range(0, len(data) - 7, 8):
                    add(section.address + offset, int.from_bytes(data[offset : offset + 8], "little"))
    return found, starters


def _join_cold_parts(nodes: Mapping[int, Node]) -> None:
    """A cold part's calls are its function's: edges to and from it are there already, as jumps."""
    by_name = defaultdict(list)
    for node in nodes.values():
        by_name[node.name].append(node)
    for node in nodes.values():
        base, dot, _ = node.name.partition(".cold")
        if dot:
            for owner in by_name.get(base, ()):
                if owner.file == node.file or len(by_name[base]) == 1:
                    owner.calls.append(Call(owner.end - 1, node.vaddr, node.name))
