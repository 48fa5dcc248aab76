"""Unwinds stacks by .eh_frame: from registers and memory to the callers of a function, one frame or a whole stack.

Source: LSB Core 5.0, 10.6 (.eh_frame, .eh_frame_hdr); DWARF 5, 6.4; AMD64 supplement, 3.7 (register numbers) and 6.2.
Register 7 is the stack pointer, 16 the return address (here: the instruction pointer).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from midflight.errors import MidflightError
from midflight.image.cfa import Cie, Row, row_at
from midflight.image.dwarf import OMIT, Cursor, bad
from midflight.image.expression import evaluate, known

RBP, RSP, RIP = 6, 7, 16
_WORD = (1 << 64) - 1
_CALLEE_SAVED = (3, RBP, 12, 13, 14, 15)  # rbx rbp r12 r13 r14 r15
_TABLE_ENCODING = 0x3B  # datarel, signed 4 bytes: the only one that linkers write
_CACHED_ROWS = 1 << 16
_ENTRY_CODE = 64

Registers = Mapping[int, int]
ReadWord = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame description entry: the code from ``start`` to before ``end`` (link-time addresses).

    ``lsda`` is the address of the language-specific data (exception tables), or None."""

    start: int
    end: int
    cie: Cie
    program: bytes
    program_vaddr: int
    lsda: int | None

    @property
    def signal(self) -> bool:
        """Whether the frame was made by a signal (the code is a signal return trampoline)."""
        return self.cie.signal


class FrameTable:
    """The unwind information of one image. Parses an entry when it is asked for; keeps what it worked out.

    ``eh_frame`` begins at link-time address ``vaddr``; ``hdr`` is the .eh_frame_hdr at ``hdr_vaddr``, whose binary
    search table is used where it has one; without it an index is built once."""

    def __init__(self, eh_frame: bytes, vaddr: int, hdr: bytes | None = None, hdr_vaddr: int = 0) -> None:
        self._data = eh_frame
        self._vaddr = vaddr
        self._hdr = hdr or b""
        self._hdr_vaddr = hdr_vaddr
        self._cies: dict[int, Cie] = {}
        self._rows: dict[int, tuple[Frame, Row]] = {}

    def find(self, pc: int) -> Frame | None:
        """The frame description that covers a link-time address, or None. Raises ImageError when it is malformed."""
        if self._search_table is not None:
            at = self._search(pc)
            if at is None:
                return None
            frame = self._frame(at)
        else:
            starts, places = self._index
            position = bisect_right(starts, pc) - 1
            frame = self._frame(places[position]) if position >= 0 else None
        return frame if frame is not None and frame.start <= pc < frame.end else None

    def functions(self) -> Iterator[tuple[int, int]]:
        """(start, end) of every frame description, in file order: functions, and parts of functions such as .cold."""
        for frame in self.frames():
            yield frame.start, frame.end

    def frames(self) -> Iterator[Frame]:
        """Every frame description, in file order, up to the terminator."""
        for at in self._entries():
            frame = self._frame(at)
            if frame is not None:
                yield frame

    def row(self, pc: int) -> tuple[Frame, Row] | None:
        """The frame description that covers a link-time address, and the rules there (kept); or None."""
        found = self._rows.get(pc)
        if found is None:
            frame = self.find(pc)
            if frame is None:
                return None
            found = frame, row_at(frame.cie, frame.program, frame.program_vaddr, frame.start, pc)
            if len(self._rows) >= _CACHED_ROWS:
                self._rows.clear()
            self._rows[pc] = found
        return found

    # --- the search table ----------------------------------------------------------------------------------------

    @cached_property
    def _search_table(self) -> tuple[int, int] | None:
        """(offset in the header, number of entries) of a usable binary search table, or None."""
        if len(self._hdr) < 4 or self._hdr[0] != 1 or self._hdr[3] != _TABLE_ENCODING:
            return None
        _, pointer_encoding, count_encoding, _ = self._hdr[:4]
        cursor = Cursor(self._hdr, 4, vaddr=self._hdr_vaddr)
        cursor.pointer(pointer_encoding, self._hdr_vaddr)
        count = cursor.pointer(count_encoding) if count_encoding != OMIT else None
        if not count:
            return None
        if cursor.at + 8 * count > len(self._hdr):
            raise bad("the search table lies outside the .eh_frame_hdr")
        return cursor.at, count

    def _search(self, pc: int) -> int | None:
        """Offset in .eh_frame of the entry with the highest start that is not after ``pc``, or None."""
        assert self._search_table is not None
        table, high = self._search_table
        wanted = pc - self._hdr_vaddr
        low = 0
        while low < high:
            middle = (low + high) // 2
            if struct.unpack_from("<i", self._hdr, table + 8 * middle)[0] <= wanted:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return None
        start, entry = struct.unpack_from("<ii", self._hdr, table + 8 * (low - 1))
        at: int = self._hdr_vaddr + entry - self._vaddr
        frame = self._frame(at)
        if frame is None or frame.start != self._hdr_vaddr + start & _WORD:
            raise bad("the .eh_frame_hdr does not agree with the .eh_frame")
        return at

    @cached_property
    def _index(self) -> tuple[list[int], list[int]]:
        """Starts in order, and the offsets of their entries."""
        found = []
        for at in self._entries():
            frame = self._frame(at)
            if frame is not None and frame.start < frame.end:
                found.append((frame.start, at))
        found.sort()
        return [start for start, _ in found], [at for _, at in found]

    # --- entries -------------------------------------------------------------------------------------------------

    def _entries(self) -> Iterator[int]:
        """Offsets of the frame description entries, up to the terminator."""
        at = 0
        while at + 4 <= len(self._data):
            body, end = self._extent(at)
            if body == end:
                return
            if end - body < 4:
                raise bad("an entry is cut short")
            if self._data[body : body + 4] != b"\0\0\0\0":
                yield at
            at = end

    def _extent(self, at: int) -> tuple[int, int]:
        """Where the entry at ``at`` begins after its length, and where it ends."""
        if not 0 <= at <= len(self._data) - 4:
            raise bad("an entry lies outside the .eh_frame")
        length = int.from_bytes(self._data[at : at + 4], "little")
        body = at + 4
        if length == 0xFFFFFFFF:
            length = int.from_bytes(self._data[body : body + 8], "little")
            body += 8
        if body + length > len(self._data):
            raise bad("an entry runs past the end of the .eh_frame")
        return body, body + length

    def _frame(self, at: int) -> Frame | None:
        """The frame description at an offset; None when it describes nothing (code that the linker dropped)."""
        body, end = self._extent(at)
        cursor = Cursor(self._data, body, end, self._vaddr)
        distance = cursor.fixed(4)
        if distance == 0:
            raise bad("a frame description is expected where a common information entry is")
        cie = self._cie(body - distance)
        start = cursor.pointer(cie.pointer_encoding)
        size = cursor.pointer(cie.pointer_encoding & 0x0F)
        if start is None:
            return None
        lsda = None
        if cie.augmented:
            augmentation = cursor.uleb()
            program = cursor.at + augmentation
            if program > end:
                raise bad("an entry is cut short")
            lsda = cursor.pointer(cie.lsda_encoding) if augmentation else None
            cursor.at = program
        vaddr = self._vaddr + cursor.at
        return Frame(start, start + (size or 0), cie, cursor.take(end - cursor.at), vaddr, lsda)

    def _cie(self, at: int) -> Cie:
        known_entry = self._cies.get(at)
        if known_entry is not None:
            return known_entry
        body, end = self._extent(at)
        cursor = Cursor(self._data, body, end, self._vaddr)
        if cursor.fixed(4) != 0:
            raise bad("a common information entry is expected where a frame description is")
        version = cursor.byte()
        augmentation = cursor.string()
        if version not in (1, 3) or augmentation[:1] not in (b"", b"z"):
            raise bad(f"version {version}, augmentation {augmentation[:8]!r} is not supported")
        code_alignment, data_alignment = cursor.uleb(), cursor.sleb()
        return_register = cursor.byte() if version == 1 else cursor.uleb()
        encoding, lsda, personality, signal = 0, OMIT, None, False
        if augmentation:
            program = cursor.uleb() + cursor.at
            for letter in augmentation[1:]:
                if letter == ord("R"):
                    encoding = cursor.byte()
                elif letter == ord("L"):
                    lsda = cursor.byte()
                elif letter == ord("P"):
                    personality = cursor.pointer(cursor.byte())
                elif letter == ord("S"):
                    signal = True
                else:
                    raise bad(f"augmentation {augmentation[:8]!r} is not supported")
            if not cursor.at <= program <= end:
                raise bad("an entry is cut short")
            cursor.at = program
        cie = Cie(
            code_alignment,
            data_alignment,
            return_register,
            encoding,
            lsda,
            personality,
            signal,
            bool(augmentation),
            cursor.take(end - cursor.at),
        )
        self._cies[at] = cie
        return cie


# --- one step --------------------------------------------------------------------------------------------------------


class Extent(Protocol):
    """What unwind information says of a function, whatever its format."""

    @property
    def start(self) -> int:
        """First link-time address."""

    @property
    def end(self) -> int:
        """Link-time address behind the last."""

    @property
    def signal(self) -> bool:
        """Whether the frame was made by the system, on top of whatever was interrupted."""


@dataclass(frozen=True, slots=True)
class Step:
    """One frame unwound. ``caller`` is the caller's registers (16: where it goes on); None: this is the outermost
    frame. ``return_slot`` is where on the stack the return address stands, None when it is elsewhere."""

    frame: Extent
    cfa: int
    caller: dict[int, int] | None
    return_slot: int | None


def step(table: FrameTable, pc: int, registers: Registers, read_word: ReadWord, bias: int = 0) -> Step | None:
    """Unwind one frame: ``pc`` (link-time) is in its code, ``registers`` are its own. None: ``pc`` is not covered.

    A caller's ``pc`` is its return address minus one, unless the frame called was a signal's: a call may be the last
    instruction of a function. Raises ImageError when the information is malformed, LookupError when a register that is
    needed is not known; what ``read_word(address)`` raises passes through."""
    found = table.row(pc)
    if found is None:
        return None
    frame, row = found
    if row.cfa_expression is not None:
        cfa = evaluate(row.cfa_expression, registers, read_word, bias=bias)
    elif row.cfa_register is not None:
        cfa = known(registers, row.cfa_register) + row.cfa_offset & _WORD
    else:
        raise bad("no rule says where the frame is")
    column = frame.cie.return_register
    caller = dict(registers) if frame.signal else {r: registers[r] for r in _CALLEE_SAVED if r in registers}
    caller[RSP] = cfa
    slot: int | None = None
    for register, rule in row.rules.items():
        kind = rule.kind
        if kind == "undefined":
            caller.pop(register, None)
            continue
        if kind == "same":
            if register in registers:
                caller[register] = registers[register]
            continue
        if kind in ("offset", "expression"):
            place = cfa + rule.number & _WORD
            if kind == "expression":
                place = evaluate(rule.code, registers, read_word, (cfa,), bias)
            caller[register] = read_word(place)
            if register == column:
                slot = place
        elif kind == "val_offset":
            caller[register] = cfa + rule.number & _WORD
        elif kind == "register":
            caller[register] = known(registers, rule.number)
        else:
            caller[register] = evaluate(rule.code, registers, read_word, (cfa,), bias)
    rule_of_return = row.rules.get(column)
    if rule_of_return is None or rule_of_return.kind == "same":
        raise bad("no rule says where the return address is")
    if rule_of_return.kind == "undefined":
        return Step(frame, cfa, None, None)
    caller[RIP] = caller[column]
    return Step(frame, cfa, caller, slot)


def unwind(
    table: FrameTable, pc: int, registers: Registers, read_word: ReadWord, bias: int = 0
) -> dict[int, int] | None:
    """The caller's registers, as :func:`step` finds them; None at the outermost frame. Raises LookupError when
    ``pc`` is not covered."""
    found = step(table, pc, registers, read_word, bias)
    if found is None:
        raise LookupError(f"no unwind information covers {pc:#x}")
    return found.caller


# --- a whole stack ---------------------------------------------------------------------------------------------------


class Unwinds(Protocol):
    """How the code of one image in a process unwinds, whatever the format of its unwind information."""

    @property
    def bias(self) -> int:
        """What is added to link-time addresses."""

    def step(self, link: int, registers: Registers, read_word: ReadWord) -> Step | None:
        """As :func:`step`, at a link-time address."""

    def extent(self, link: int) -> Extent | None:
        """The function that a link-time address is in."""

    def is_entry(self, link: int) -> bool:
        """Whether it is in start-up code, which has no caller and perhaps no unwind information either."""


@dataclass(frozen=True, slots=True)
class Module:
    """An image in a process: its unwind information, its load bias, and the link-time address of its entry point, or 0
    (it is only needed where start-up code has no unwind information, as in musl)."""

    bias: int
    table: FrameTable
    entry: int = 0

    def step(self, link: int, registers: Registers, read_word: ReadWord) -> Step | None:
        """See :class:`Unwinds`."""
        return step(self.table, link, registers, read_word, self.bias)

    def extent(self, link: int) -> Extent | None:
        """See :class:`Unwinds`."""
        return self.table.find(link)

    def is_entry(self, link: int) -> bool:
        """See :class:`Unwinds`."""
        return bool(self.entry) and 0 <= link - self.entry < _ENTRY_CODE


@dataclass(frozen=True, slots=True)
class FrameState:
    """One frame of a stack; all addresses are those of the process.

    ``pc`` is where the frame goes on. ``at`` is an address inside the instruction that it stands at: ``pc`` in the
    innermost frame and in one that a signal interrupted, ``pc`` - 1 (inside the call) in any other. ``start`` and
    ``end`` are the code range that the unwind information gives. ``return_address`` is None in the outermost frame."""

    pc: int
    at: int
    cfa: int
    return_address: int | None
    return_slot: int | None
    start: int
    end: int
    signal: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack, innermost frame first. ``complete``: the outermost frame was reached; otherwise ``reason`` says why not,
    and nothing is known about what follows the last frame."""

    frames: tuple[FrameState, ...]
    complete: bool
    reason: str


def walk(
    registers: Registers | Sequence[int],
    find_module: Callable[[int], Unwinds | None],
    read_word: ReadWord,
    limit: int = 4096,
) -> Stack:
    """Unwind a whole stack from a thread's registers (by DWARF number).

    ``find_module(address)`` says which image's code an address is in. ``read_word(address)`` reads 8 bytes of
    memory; what it raises (LookupError, OSError, ValueError, struct.error, MidflightError) ends the walk, incomplete.

    Complete is only what ends at a return address that is undefined (``_start``, ``clone``), at a return into the first
    instructions of a module's entry point, or at return address 0 with frame pointer 0 (AMD64 supplement 3.4.1: so is
    the deepest frame marked)."""
    state: Registers = registers if isinstance(registers, Mapping) else dict(enumerate(registers))
    frames: list[FrameState] = []
    exact = True
    while True:
        if len(frames) >= limit:
            return Stack(tuple(frames), False, f"the stack has more than {limit} frames")
        pc = state.get(RIP, 0)
        if pc == 0 and frames and state.get(RBP) == 0:
            return Stack(tuple(frames), True, "return address 0")
        at = pc if exact else pc - 1 & _WORD
        try:
            module = find_module(at)
            if module is None:
                return Stack(tuple(frames), False, f"{pc:#x} is in no known image")
            link = at - module.bias
            found = module.step(link, state, read_word)
        except (LookupError, OSError, ValueError, struct.error, MidflightError) as error:
            return Stack(tuple(frames), False, f"at {pc:#x}: {error}")
        if found is None:
            if frames and module.is_entry(link):
                return Stack(tuple(frames), True, "entry point")
            return Stack(tuple(frames), False, f"no unwind information covers {pc:#x}")
        frame, bias = found.frame, module.bias
        target = None if found.caller is None else found.caller[RIP]
        frames.append(
            FrameState(pc, at, found.cfa, target, found.return_slot, frame.start + bias, frame.end + bias, frame.signal)
        )
        if found.caller is None:
            return Stack(tuple(frames), True, "outermost frame")
        # A signal handler may run on another stack, above or below the interrupted one; any other caller is above.
        if not frame.signal and not state.get(RSP, 0) < found.cfa == found.caller[RSP]:
            return Stack(tuple(frames), False, f"at {pc:#x}: the caller's frame is not above its callee's")
        exact = frame.signal
        state = found.caller
