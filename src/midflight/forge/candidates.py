"""Where in the running image a function of pre might be: every source of candidates, best first.

A candidate is only a proposal. What it is worth, the comparison of every instruction decides (see match).
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from midflight.forge import decode
from midflight.forge import relocs as r
from midflight.forge.facts import Facts, Names
from midflight.forge.model import Atom
from midflight.forge.runimage import RunImage

_SCAN_BYTES = 48
_SCAN_FIXED = 10
"""A search by content needs this many bytes that no relocation fills, or it would find half the image."""
_SCAN_MOST = 4096


class Candidates:
    """Proposes addresses for functions."""

    def __init__(self, run: RunImage, names: Names, facts: Facts) -> None:
        self.run = run
        self.names = names
        self.facts = facts

    def of(self, path: Path, key: str) -> tuple[str, list[int]]:
        """Which source proposes (in words), and the addresses. The first source that knows something decides; the
        contents are searched only for what no table names."""
        id_ = self.names.id_of(path, key)
        learnt = self.facts.values(id_, "address")
        if learnt:
            how = next(iter(learnt.values()))
            return f"{len(how)} reference{'s' if len(how) > 1 else ''}", list(learnt)
        atom = self.names.atom(path, key)
        named = list(self._by_name(path, atom))
        if named:
            return "symbol table", list(dict.fromkeys(named))
        return "contents", [at for at in self._by_content(atom) if self._may_be(path, atom, at)]

    def _may_be(self, path: Path, atom: Atom, vaddr: int) -> bool:
        """Whether no symbol says that the function at ``vaddr`` is another one."""
        symbols = self.run.function_symbols.get(vaddr, ())
        source = self.names.source_name(path)
        local = atom.binding == "local"
        named = [s for s in symbols if s.name in (atom.name, *atom.aliases)]
        return not symbols or any(not (local and source and s.file) or s.file == source for s in named)

    def _by_name(self, path: Path, atom: Atom) -> Iterator[int]:
        for name in (atom.name, *atom.aliases) if atom.name else ():
            if atom.binding == "local":
                symbols = self.run.local_symbols(name, self.names.source_name(path))
                yield from (s.value for s in symbols if s.type != "object")
            else:
                symbol = self.run.global_symbol(name)
                if symbol is not None and not symbol.absolute:
                    yield symbol.value

    def is_named(self, path: Path, key: str) -> bool:
        """Whether a symbol table of the image has the name."""
        return any(True for _ in self._by_name(path, self.names.atom(path, key)))

    def _by_content(self, atom: Atom) -> Iterable[int]:
        pattern = signature(atom)
        starts = self.run.function_starts
        if pattern is None:
            return starts
        found = []
        for vaddr, code in self.run.code_sections:
            for hit in pattern.finditer(code):
                at = vaddr + hit.start()
                position = bisect.bisect_left(starts, at)
                known = position < len(starts) and starts[position] == at
                if known or not self._inside_known(at):
                    found.append(at)
                if len(found) > _SCAN_MOST:
                    return ()
        return found

    def _inside_known(self, vaddr: int) -> bool:
        """Whether unwind information says that a function has begun before and covers this address."""
        frame = self.run.frames.find(vaddr) if self.run.frames is not None else None
        return frame is not None and frame.start != vaddr

    def from_same_file(self, path: Path, addresses: Iterable[int]) -> list[int]:
        """Those addresses whose symbol the symbol table files under the source of this object (STT_FILE)."""
        source = self.names.source_name(path)
        return [a for a in addresses if any(s.file == source for s in self.run.function_symbols.get(a, ()) if s.file)]


def signature(atom: Atom) -> re.Pattern[bytes] | None:
    """The beginning of a function as a pattern: up to the first instruction that may be of another length in run.

    None when too little of it is fixed.
    """
    parts: list[bytes] = []
    fixed = 0
    references = {reference.offset: reference for reference in atom.references}
    for instruction in decode.decode(atom.data[: _SCAN_BYTES + 16]):
        start, end = instruction.ip, instruction.ip + instruction.len
        inside = [item for offset, item in references.items() if start <= offset < end]
        relaxable = any(item.type in r.GOT_SLOT or item.type in r.TLS_SLOT for item in inside)
        if end > len(atom.data) or start >= _SCAN_BYTES or relaxable or decode.is_padding(instruction):
            break
        if decode.is_near_branch(instruction) and instruction.mnemonic != decode.CALL:
            either = _jump(atom.data[start:end])
            if either is None:
                break
            parts.append(either)
            fixed += 1
            continue
        raw = bytearray(atom.data[start:end])
        mask = bytearray(len(raw))
        for item in inside:
            width = r.FIELD_SIZE.get(item.type, 0)
            mask[item.offset - start : item.offset - start + width] = b"\1" * width
        if not inside and (instruction.is_ip_rel_memory_operand or decode.is_near_branch(instruction)):
            mask[-4:] = b"\1" * 4
        parts += [b"[\\s\\S]" if hidden else re.escape(bytes([byte])) for byte, hidden in zip(raw, mask, strict=True)]
        fixed += mask.count(0)
    return re.compile(b"".join(parts)) if fixed >= _SCAN_FIXED else None


def _jump(code: bytes) -> bytes | None:
    """A jump, short or near, as a pattern (Intel SDM volume 2: 7x cb, 0F 8x cd; EB cb, E9 cd)."""
    if code[0] in (0xEB, 0xE9):
        return rb"(?:\xeb[\s\S]|\xe9[\s\S]{4})"
    condition = code[0] if code[0] & 0xF0 == 0x70 else code[1] if code[0] == 0x0F and code[1] & 0xF0 == 0x80 else None
    if condition is None:
        return None
    short, near = re.escape(bytes([0x70 | condition & 0xF])), re.escape(bytes([0x80 | condition & 0xF]))
    return rb"(?:" + short + rb"[\s\S]|\x0f" + near + rb"[\s\S]{4})"
