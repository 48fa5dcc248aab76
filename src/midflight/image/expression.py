"""Evaluates DWARF expressions as they occur in call frame information.

Source: DWARF 5, 2.5 and 6.4.2 (operations that need an object, a type or a call are not allowed there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from midflight.image.dwarf import Cursor, bad

_WORD = (1 << 64) - 1
_MOST_STEPS = 2000
_DEEPEST = 256

# Opcode to (size, signed) of const1u … const8s.
_CONSTANTS = {0x08 + 2 * i + s: (1 << i, bool(s)) for i in range(4) for s in range(2)}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(operation: Callable[[int, int], int]) -> Callable[[int, int], int]:
    # A shift by the word size or more is not defined; 64 already empties the word.
    return lambda a, b: operation(a, min(b, 64))


def _divide(a: int, b: int) -> int:
    a, b = _signed(a), _signed(b)
    if b == 0:
        raise bad("an expression divides by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _modulo(a: int, b: int) -> int:
    if b == 0:
        raise bad("an expression divides by zero")
    return a % b


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1B: _divide,
    0x1C: lambda a, b: a - b,
    0x1D: _modulo,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: _shift(lambda a, b: a << b),
    0x25: _shift(lambda a, b: a >> b),
    0x26: _shift(lambda a, b: _signed(a) >> b),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: a == b,
    0x2A: lambda a, b: _signed(a) >= _signed(b),
    0x2B: lambda a, b: _signed(a) > _signed(b),
    0x2C: lambda a, b: _signed(a) <= _signed(b),
    0x2D: lambda a, b: _signed(a) < _signed(b),
    0x2E: lambda a, b: a != b,
}
_UNARY: dict[int, Callable[[int], int]] = {
    0x19: lambda a: abs(_signed(a)),
    0x1F: lambda a: -a,
    0x20: lambda a: ~a,
}


def evaluate(
    expression: bytes,
    registers: Mapping[int, int],
    read_word: Callable[[int], int],
    initial: Sequence[int] = (),
    bias: int = 0,
) -> int:
    """The value of an expression. ``initial`` is what the stack starts with, ``bias`` is added to DW_OP_addr.

    Raises ImageError when the expression is malformed or uses an operation that call frame information may not, and
    LookupError when it needs a register whose value is not known; what ``read_word`` raises passes through."""
    stack = list(initial)
    cursor = Cursor(expression)
    for _ in range(_MOST_STEPS):
        if cursor.at == cursor.end:
            if not stack:
                raise bad("an expression has no value")
            return stack[-1]
        try:
            _step(cursor.byte(), cursor, stack, registers, read_word, bias)
        except IndexError:
            raise bad("an expression takes more from its stack than is there") from None
        if len(stack) > _DEEPEST:
            raise bad("an expression's stack grows too deep")
    raise bad("an expression does not end")


def _step(
    op: int,
    cursor: Cursor,
    stack: list[int],
    registers: Mapping[int, int],
    read_word: Callable[[int], int],
    bias: int,
) -> None:
    """Carry out one operation."""
    if 0x30 <= op <= 0x4F:  # lit0 … lit31
        stack.append(op - 0x30)
    elif 0x70 <= op <= 0x8F or op == 0x92:  # breg0 … breg31, bregx
        register = cursor.uleb() if op == 0x92 else op - 0x70
        offset = cursor.sleb()
        stack.append(known(registers, register) + offset & _WORD)
    elif op in _BINARY:
        second = stack.pop()
        stack.append(int(_BINARY[op](stack.pop(), second)) & _WORD)
    elif op in _UNARY:
        stack.append(_UNARY[op](stack.pop()) & _WORD)
    elif op in (0x06, 0x94):  # deref, deref_size
        size = cursor.byte() if op == 0x94 else 8
        if not 1 <= size <= 8:
            raise bad("an expression reads a word of impossible size")
        stack.append(read_word(stack.pop()) & (1 << 8 * size) - 1)
    elif op in _CONSTANTS:
        stack.append(cursor.fixed(*_CONSTANTS[op]) & _WORD)
    elif op in (0x10, 0x11):  # constu, consts
        stack.append((cursor.uleb() if op == 0x10 else cursor.sleb()) & _WORD)
    elif op == 0x03:  # addr
        stack.append(cursor.fixed(8) + bias & _WORD)
    elif op == 0x23:  # plus_uconst
        stack.append(stack.pop() + cursor.uleb() & _WORD)
    elif op in (0x28, 0x2F):  # bra, skip
        distance = cursor.fixed(2, signed=True)
        if op == 0x2F or stack.pop():
            cursor.at += distance
            if not 0 <= cursor.at <= cursor.end:
                raise bad("an expression jumps out of itself")
    elif op != 0x96:  # nop
        _shuffle(op, cursor, stack)


def _shuffle(op: int, cursor: Cursor, stack: list[int]) -> None:
    """The operations that only move things about on the stack."""
    if op == 0x12:  # dup
        stack.append(stack[-1])
    elif op == 0x13:  # drop
        stack.pop()
    elif op == 0x14:  # over
        stack.append(stack[-2])
    elif op == 0x15:  # pick
        stack.append(stack[-1 - cursor.byte()])
    elif op == 0x16:  # swap
        stack[-1], stack[-2] = stack[-2], stack[-1]
    elif op == 0x17:  # rot
        stack[-1], stack[-2], stack[-3] = stack[-2], stack[-3], stack[-1]
    else:
        raise bad(f"an expression uses the operation {op:#x}, which is not supported")


def known(registers: Mapping[int, int], register: int) -> int:
    """A register's value. Raises LookupError, saying which, when nobody knows it in this frame."""
    value = registers.get(register)
    if value is None:
        raise LookupError(f"register {register} is not known in this frame")
    return value
