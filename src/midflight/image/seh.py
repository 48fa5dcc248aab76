"""Unwinds stacks of 64-bit Windows by .pdata and .xdata: RUNTIME_FUNCTION and UNWIND_INFO.

Source: Microsoft, "x64 exception handling" (struct RUNTIME_FUNCTION, struct UNWIND_INFO, unwind codes, unwind
procedure) and "x64 prolog and epilog". A function without an entry is a leaf: its return address is on top of the
stack. Register numbers here are the processor's own (rax rcx rdx rbx rsp rbp rsi rdi r8 ...), as unwind codes have
them; the interface has DWARF numbers, as all unwinding here.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from midflight.errors import ImageError
from midflight.image.unwind import RIP, Extent, ReadWord, Registers, Step

_TO_DWARF = (0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15)
"""DWARF number by the processor's."""
_RSP = 4
_NONVOLATILE = (3, _RSP, 5, 6, 7, 12, 13, 14, 15)  # rbx rsp rbp rsi rdi r12 ... r15
_CHAINED = 4
_PUSH_NONVOL, _ALLOC_LARGE, _ALLOC_SMALL, _SET_FPREG, _SAVE_NONVOL, _SAVE_NONVOL_FAR = range(6)
_EPILOG, _SPARE, _SAVE_XMM128, _SAVE_XMM128_FAR, _PUSH_MACHFRAME = range(6, 11)
_LONGEST_EPILOG = 64
_DEEPEST_CHAIN = 32
_WORD = (1 << 64) - 1

ReadCode = Callable[[int, int], bytes]
"""(address relative to the image, size): that many bytes of it, or as many as there are."""


@dataclass(frozen=True, slots=True)
class Function:
    """An entry of .pdata: code [start, end), its UNWIND_INFO at ``unwind``; all relative to the image."""

    start: int
    end: int
    unwind: int
    signal: bool = False


@dataclass(frozen=True, slots=True)
class _Info:
    """UNWIND_INFO: slots of 16 bits; ``chain`` is the entry that the codes go on in."""

    version: int
    prolog: int
    frame_register: int
    frame_offset: int
    slots: tuple[int, ...]
    chain: Function | None


class FunctionTable:
    """The functions of one image, sorted, and what unwinds them. ``read`` reads the image (or the payload) in memory.

    Raises:
        ImageError: they are not sorted, or overlap.
    """

    def __init__(self, functions: Sequence[Function], read: ReadCode) -> None:
        self._functions = list(functions)
        self._starts = [f.start for f in self._functions]
        self._read = read
        self._infos: dict[int, _Info] = {}
        for one, other in zip(self._functions, self._functions[1:], strict=False):
            if other.start < one.end:
                raise ImageError(f"the function table is not sorted at {other.start:#x}")

    @classmethod
    def parse(cls, table: bytes, read: ReadCode) -> FunctionTable:
        """From the bytes of RUNTIME_FUNCTION entries."""
        rows = (Function(*row) for row in struct.iter_unpack("<III", table[: len(table) // 12 * 12]))
        return cls([row for row in rows if row.start < row.end], read)

    def find(self, at: int) -> Function | None:
        """The entry that covers an address; None: a leaf function."""
        index = bisect_right(self._starts, at) - 1
        if index < 0:
            return None
        found = self._functions[index]
        return found if at < found.end else None

    def info(self, at: int) -> _Info:
        """The UNWIND_INFO at an address (kept)."""
        if at not in self._infos:
            # Bit 0 set: not UNWIND_INFO, but another RUNTIME_FUNCTION, which tells (an old form of chaining).
            head = self._exactly(at & ~3, 4)
            if head[0] & 7 not in (1, 2):
                raise ImageError(f"unwind information of version {head[0] & 7} at {at:#x} is not supported")
            count = head[2]
            data = self._exactly(at + 4, 2 * count)
            chain = None
            if head[0] >> 3 & _CHAINED:
                chain = Function(*struct.unpack("<III", self._exactly(at + 4 + 2 * (count + 1 & ~1), 12)))
            self._infos[at] = _Info(
                head[0] & 7, head[1], head[3] & 15, head[3] >> 4, struct.unpack(f"<{count}H", data), chain
            )
        return self._infos[at]

    def _exactly(self, at: int, size: int) -> bytes:
        data = self._read(at, size)
        if len(data) != size:
            raise ImageError(f"unwind information at {at:#x} is not there")
        return data

    def code(self, at: int, end: int) -> bytes:
        """Code from an address on, as much of it as an epilog takes."""
        return self._read(at, min(_LONGEST_EPILOG, end - at))


@dataclass(frozen=True, slots=True)
class Module:
    """An image (or a payload) in a process: where it is, and its functions."""

    bias: int
    table: FunctionTable

    def step(self, link: int, registers: Registers, read_word: ReadWord) -> Step | None:
        """See :class:`midflight.image.unwind.Unwinds`."""
        return step(self.table, link, registers, read_word, self.bias)

    def extent(self, link: int) -> Extent | None:
        """See :class:`midflight.image.unwind.Unwinds`."""
        return self.table.find(link)

    def is_entry(self, link: int) -> bool:
        """Every thread's outermost frame has return address 0; start-up code needs no rule of its own."""
        return False


class _State:
    """The processor's general registers while one frame is unwound; those that are not known are absent."""

    def __init__(self, registers: Registers, read_word: ReadWord) -> None:
        self.known = {number: registers[dwarf] for number, dwarf in enumerate(_TO_DWARF) if dwarf in registers}
        self._read_word = read_word

    def get(self, number: int) -> int:
        if number not in self.known:
            raise LookupError(f"register {number} is not known")
        return self.known[number]

    def load(self, number: int, address: int) -> None:
        self.known[number] = self._read_word(address & _WORD)

    def pop(self, number: int) -> None:
        self.load(number, self.get(_RSP))
        self.known[_RSP] = self.get(_RSP) + 8 & _WORD

    def raise_stack(self, size: int) -> None:
        self.known[_RSP] = self.get(_RSP) + size & _WORD


def step(table: FunctionTable, at: int, registers: Registers, read_word: ReadWord, bias: int = 0) -> Step:
    """Unwind one frame: ``at`` (relative to the image) is in its code, ``registers`` are its own.

    In a caller ``at`` is the return address minus one; epilogs are looked for at the instruction that is next (``at``
    when the registers say so, otherwise a call was interrupted, which no epilog holds). Raises ImageError when the
    information is malformed, LookupError when a register that is needed is not known; what ``read_word`` raises passes
    through.
    """
    state = _State(registers, read_word)
    function = table.find(at)
    machine_frame: tuple[int, int] | None = None
    if function is not None and not (registers.get(RIP) == bias + at and _in_epilog(table, function, at, state)):
        machine_frame = _undo_prolog(table, function, at, state)
    extent = function or Function(at, at + 1, 0)
    if machine_frame is not None:
        pc, pointer = machine_frame
        caller = _by_dwarf(state.known)
        caller[RIP], caller[7] = pc, pointer
        interrupted = Function(extent.start, extent.end, extent.unwind, True)
        return Step(interrupted, pointer, caller if pc else None, None)
    slot = state.get(_RSP)
    pc = read_word(slot)
    state.known[_RSP] = slot + 8 & _WORD
    if not pc:
        return Step(extent, slot + 8, None, None)
    caller = _by_dwarf({number: state.known[number] for number in _NONVOLATILE if number in state.known})
    caller[RIP] = pc
    return Step(extent, slot + 8, caller, slot)


def _by_dwarf(known: dict[int, int]) -> dict[int, int]:
    return {_TO_DWARF[number]: value for number, value in known.items()}


def _in_epilog(table: FunctionTable, function: Function, at: int, state: _State) -> bool:
    """Whether the next instruction is in an epilog; its rest is then carried out on ``state``, but for the return.

    An epilog is ``add rsp, n`` or ``lea rsp, [frame + n]``, pops of 64-bit registers, and ``ret`` or a jump to another
    function (x64 prolog and epilog, "Epilog code").
    """
    code = table.code(at, function.end)
    position, pointer = _stack_restored(table, function, code, state)
    pops = []
    while position < len(code):
        rex = code[position] & 0xF8 == 0x40 and code[position] & 1
        prefixed = code[position] & 0xF0 == 0x40
        opcode = code[position + prefixed] if position + prefixed < len(code) else 0
        if not 0x58 <= opcode <= 0x5F:
            break
        pops.append(opcode - 0x58 + (8 if rex else 0))
        position += 1 + prefixed
    if not _leaves(function, code, position, at):
        return False
    if position == 0 and code[:1] in (b"\xe9", b"\xeb") and table.info(function.unwind).slots:
        # The end of a tail call's epilog, or a jump to a part of the function that the compiler moved elsewhere.
        raise LookupError("a jump may be an epilog or not")
    if pointer is not None:
        state.known[_RSP] = pointer & _WORD
    for number in pops:
        state.pop(number)
    return True


def _stack_restored(
    table: FunctionTable, function: Function, code: bytes, state: _State
) -> tuple[int, int | None]:  # fmt: skip
    """(bytes of the instruction that frees the frame, the stack pointer after it); (0, None) when it is none."""
    if code[:3] == b"\x48\x83\xc4" and len(code) >= 4:
        return 4, state.get(_RSP) + int.from_bytes(code[3:4], "little", signed=True)
    if code[:3] == b"\x48\x81\xc4" and len(code) >= 7:
        return 7, state.get(_RSP) + int.from_bytes(code[3:7], "little", signed=True)
    frame = table.info(function.unwind).frame_register
    # lea rsp, disp8/disp32[frame]: REX.W (REX.B for r8 ... r15), 8D, modrm with reg 4
    if frame and len(code) >= 4 and code[0] == 0x48 | frame >> 3 and code[1] == 0x8D and frame & 7 != _RSP:
        if code[2] == 0x60 | frame & 7:
            return 4, state.get(frame) + int.from_bytes(code[3:4], "little", signed=True)
        if code[2] == 0xA0 | frame & 7 and len(code) >= 7:
            return 7, state.get(frame) + int.from_bytes(code[3:7], "little", signed=True)
    return 0, None


def _leaves(function: Function, code: bytes, position: int, at: int) -> bool:
    """Whether an instruction leaves the function for good."""
    rest = code[position : position + 5]
    if rest[:1] in (b"\xc3", b"\xc2") or rest[:2] == b"\xf3\xc3":
        return True
    if rest[:2] == b"\xff\x25" or (len(rest) >= 3 and rest[0] == 0x48 and rest[1] == 0xFF and rest[2] & 0x38 == 0x20):
        return True
    # Jumps inside of the function are no epilogs.
    here = at + position
    if rest[:1] == b"\xe9" and len(rest) == 5:
        target = here + 5 + int.from_bytes(rest[1:5], "little", signed=True)
    elif rest[:1] == b"\xeb" and len(rest) >= 2:
        target = here + 2 + int.from_bytes(rest[1:2], "little", signed=True)
    else:
        return False
    return not function.start < target < function.end


def _undo_prolog(table: FunctionTable, function: Function, at: int, state: _State) -> tuple[int, int] | None:
    """Carry out the unwind codes of what the prolog has done so far, on ``state``; (pc, stack pointer) of a machine
    frame, where the last of them is one."""
    current: Function | None = function
    done = at - function.start
    for _ in range(_DEEPEST_CHAIN):
        assert current is not None
        info = table.info(current.unwind)
        result = _apply_codes(info, done, state)
        if result is not None or info.chain is None:
            return result
        # The prolog of the entry that this one is chained to has run as a whole.
        current, done = info.chain, 1 << 32
    raise ImageError(f"the unwind information at {function.unwind:#x} is chained without an end")


def _frame_base(info: _Info, done: int, state: _State) -> int:
    """What offsets of saved registers count from: the frame register's place once it is set, else the stack pointer."""
    if info.frame_register:
        set_at = [s & 255 for s in _first_slots(info) if s >> 8 & 15 == _SET_FPREG]
        if not set_at or done >= set_at[0]:
            return state.get(info.frame_register) - 16 * info.frame_offset
    return state.get(_RSP)


def _slots_of(operation: int, extra: int, version: int) -> int:
    """How many slots of 16 bits an unwind code takes."""
    if operation == _ALLOC_LARGE:
        return 3 if extra else 2
    if operation in (_SAVE_NONVOL, _SAVE_XMM128):
        return 2
    if operation in (_SAVE_NONVOL_FAR, _SAVE_XMM128_FAR):
        return 3
    if operation == _EPILOG and version == 1:
        return 2  # then UWOP_SAVE_XMM of old
    if operation > _PUSH_MACHFRAME or operation == _SPARE:
        raise ImageError(f"unwind code {operation} is not known")
    return 1


def _first_slots(info: _Info) -> list[int]:
    found, index = [], 0
    while index < len(info.slots):
        slot = info.slots[index]
        found.append(slot)
        index += _slots_of(slot >> 8 & 15, slot >> 12, info.version)
    return found


def _apply_codes(info: _Info, done: int, state: _State) -> tuple[int, int] | None:
    base = _frame_base(info, done, state)
    index = 0
    while index < len(info.slots):
        slot = info.slots[index]
        operation, extra = slot >> 8 & 15, slot >> 12
        count = _slots_of(operation, extra, info.version)
        values = info.slots[index + 1 : index + count]
        if len(values) != count - 1:
            raise ImageError("an unwind code is cut short")
        index += count
        # An instruction counts when it has been carried out: its code holds the offset behind it.
        if slot & 255 > done or (operation == _EPILOG and info.version == 2):
            continue
        number = values[0] | values[1] << 16 if len(values) == 2 else values[0] if values else 0
        if operation == _PUSH_NONVOL:
            state.pop(extra)
        elif operation == _ALLOC_LARGE:
            state.raise_stack(number if extra else number * 8)
        elif operation == _ALLOC_SMALL:
            state.raise_stack(extra * 8 + 8)
        elif operation == _SET_FPREG:
            state.known[_RSP] = state.get(info.frame_register) - 16 * info.frame_offset & _WORD
        elif operation == _SAVE_NONVOL:
            state.load(extra, base + number * 8)
        elif operation == _SAVE_NONVOL_FAR:
            state.load(extra, base + number)
        elif operation == _PUSH_MACHFRAME:
            at = state.get(_RSP) + (8 if extra else 0)
            return state._read_word(at), state._read_word(at + 24)
    return None
