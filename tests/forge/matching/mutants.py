"""Small falsifications of an image: a bit of an instruction, a jump, a call, a constant, a slot.

A mutant is bytes at an address, so that it can be made of every copy of the image, with names or without.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import iced_x86 as x86

from midflight.forge.matching import decode
from midflight.forge.matching.decode import is_near_branch, is_padding
from tests.forge.matching.truth import Symbols


@dataclass(frozen=True, slots=True)
class Mutant:
    """``new`` stands at ``vaddr`` instead of what was there."""

    kind: str
    vaddr: int
    new: bytes
    what: str
    targets: tuple[int, int] | None = None
    """Where a jump led, and where it leads."""

    def __str__(self) -> str:
        return f"{self.kind} at {self.vaddr:#x} ({self.what})"

    def apply(self, image: bytes) -> bytes:
        """The image with it."""
        data = bytearray(image)
        at = file_offset(image, self.vaddr)
        data[at : at + len(self.new)] = self.new
        return bytes(data)


def file_offset(image: bytes, vaddr: int) -> int:
    """Where in the file the byte is that will be at ``vaddr`` (gABI, program header). Raises ValueError."""
    (at,) = struct.unpack_from("<Q", image, 0x20)
    (count,) = struct.unpack_from("<H", image, 0x38)
    for i in range(count):
        type_, _, offset, address, _, size, *_ = struct.unpack_from("<IIQQQQQQ", image, at + 56 * i)
        if type_ == 1 and address <= vaddr < address + size:
            return int(offset + vaddr - address)
    raise ValueError(f"nothing of the file is at {vaddr:#x}")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a function in the image."""

    vaddr: int
    raw: bytes
    decoded: x86.Instruction
    fields: frozenset[int]
    """Offsets of bytes that hold displacement or immediate."""


def instructions(code: bytes, vaddr: int) -> Sequence[Instruction]:
    """The instructions of a function without its padding."""
    decoder = x86.Decoder(64, code, ip=vaddr)
    found = []
    for item in decoder:
        offsets = decoder.get_constant_offsets(item)
        start = item.ip - vaddr
        fields = {*range(offsets.displacement_offset, offsets.displacement_offset + offsets.displacement_size)}
        fields |= {*range(offsets.immediate_offset, offsets.immediate_offset + offsets.immediate_size)}
        if not is_padding(item):
            found.append(Instruction(item.ip, code[start : start + item.len], item, frozenset(fields - {0})))
    return found


def other_instructions(items: Iterable[Instruction], draw: random.Random) -> Iterator[Mutant]:
    """Of every instruction: another opcode, prefix, register or condition (one bit each, wherever it falls), and the
    same with one bit of its displacement or immediate when it is no reference to elsewhere."""
    for item in items:
        text = decode.text(item.decoded)
        fixed = [i for i in range(len(item.raw)) if i not in item.fields]
        for at in {fixed[-1], draw.choice(fixed)}:
            yield _flip("instruction", item, at, draw.randrange(8), text)
        if is_near_branch(item.decoded) and item.raw[0] & 0xF0 == 0x70:
            yield _flip("condition", item, 0, 0, text)
        if item.fields and not item.decoded.is_ip_rel_memory_operand and not is_near_branch(item.decoded):
            yield _flip("constant", item, draw.choice(sorted(item.fields)), draw.randrange(8), text)


def _flip(kind: str, item: Instruction, at: int, bit: int, text: str) -> Mutant:
    new = bytearray(item.raw)
    new[at] ^= 1 << bit
    return Mutant(kind, item.vaddr, bytes(new), f"{text}: byte {at}, bit {bit}")


def other_targets(items: Sequence[Instruction], places: Sequence[int], draw: random.Random) -> Iterator[Mutant]:
    """Every jump, call and reference to elsewhere leads to another place: a near one, and one of ``places``."""
    for item in items:
        size = 4 if len(item.raw) >= 5 else 1
        if is_near_branch(item.decoded):
            old = item.decoded.near_branch_target
            kind = "jump" if items[0].vaddr <= old <= items[-1].vaddr and item.raw[0] != 0xE8 else "call"
        elif item.decoded.is_ip_rel_memory_operand:
            kind, old = "reference", item.decoded.ip_rel_memory_address
        else:
            continue
        end = item.vaddr + len(item.raw)
        at = len(item.raw) - size if is_near_branch(item.decoded) else min(item.fields)
        nearby = [other.vaddr for other in items if other.vaddr != old]
        targets = [old + draw.choice((-8, -1, 1, 4, 8, 16)), draw.choice(places), draw.choice(nearby)]
        for target in targets:
            distance = target - end
            if target == old or not -(1 << 8 * size - 1) <= distance < 1 << 8 * size - 1:
                continue
            new = item.raw[:at] + distance.to_bytes(size, "little", signed=True) + item.raw[at + size :]
            yield Mutant(kind, item.vaddr, new, f"{decode.text(item.decoded)}: to {target:#x}", (old, target))


def other_bytes(vaddr: int, data: bytes, draw: random.Random, most: int) -> Iterator[Mutant]:
    """One bit of data, at up to ``most`` places."""
    for at in sorted(draw.sample(range(len(data)), min(most, len(data)))):
        yield Mutant("data", vaddr + at, bytes([data[at] ^ 1 << draw.randrange(8)]), f"byte {at} of {len(data)}")


def exchanged_relocations(image: bytes) -> Iterator[tuple[Mutant, tuple[int, int]]]:
    """Two relocations of one section exchange their symbols: each slot gets what the other one had. With the indexes of
    the two dynamic symbols."""
    symbols = Symbols(image)
    for name, type_, address, offset, size, _ in symbols.sections:
        if type_ != 4 or not address or not name.startswith(".rela"):
            continue
        entries = [(at, *struct.unpack_from("<QQq", image, offset + at)) for at in range(0, size, 24)]
        named = [entry for entry in entries if entry[2] >> 32 and entry[2] & 0xFFFFFFFF in (6, 7)]
        for one, two in zip(named[::2], named[1::2], strict=False):
            new = bytearray(image[offset + one[0] : offset + two[0] + 24])
            struct.pack_into("<Q", new, 8, two[2] & ~0xFFFFFFFF | one[2] & 0xFFFFFFFF)
            struct.pack_into("<Q", new, two[0] - one[0] + 8, one[2] & ~0xFFFFFFFF | two[2] & 0xFFFFFFFF)
            yield Mutant("slots", address + one[0], bytes(new), f"{name}"), (one[2] >> 32, two[2] >> 32)


def only_padding(code: bytes) -> bool:
    """Whether bytes are nothing but nops."""
    return all(map(is_padding, decode.decode(code)))
