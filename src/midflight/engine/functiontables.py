"""Makes Windows know how a payload unwinds: RtlAddFunctionTable and RtlDeleteFunctionTable (Microsoft's API reference).

Without it an exception that passes through new code does not fail: it silently finds no handler and restores wrong
registers. So every payload is registered before anything leads to it, and a failure to do so is the end of the apply.

Both functions take locks, and a thread of ours must call them: it is started with one argument only, so the two calls
stand as code in a page behind the payload (:func:`calls`), which the ledger describes like the payload itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from midflight.engine.exports import Exports
from midflight.engine.ledger import FLAG_DEREGISTERING, FLAG_REGISTERED, FLAG_UNWIND, Ledger, set_flags
from midflight.engine.pemodules import PeModules
from midflight.errors import EngineError
from midflight.patch.manifest import Import
from midflight.process.faults import point
from midflight.process.model import RIP, Process

_DELETE_AT = 64
CALLS_SIZE = 128
ROW = 12
"""Bytes of one RUNTIME_FUNCTION."""


@dataclass(frozen=True, slots=True)
class FunctionTables:
    """Addresses of the two functions in one process."""

    add: int
    delete: int


def find(modules: PeModules) -> FunctionTables:
    """The functions of this process.

    Raises:
        EngineError: its ntdll exports no such functions.
    """
    exports = Exports(modules)
    wanted = [Import(f"Rtl{word}FunctionTable", None, "ntdll.dll", "func") for word in ("Add", "Delete")]
    return FunctionTables(exports.address(wanted[0]), exports.address(wanted[1]))


def calls(tables: FunctionTables, table: int, size: int, base: int) -> bytes:
    """Code of two thread functions: at 0 ``RtlAddFunctionTable(table, size / 12, base)``, at 64
    ``RtlDeleteFunctionTable(table)``. Their result is the thread's."""
    enter, leave = b"\x48\x83\xec\x28", b"\xff\xd0\x48\x83\xc4\x28\xc3"  # sub rsp, 40 ... call rax, add rsp, 40, ret
    first = b"\x48\xb9" + struct.pack("<Q", table)  # mov rcx, table
    more = b"\xba" + struct.pack("<I", size // ROW) + b"\x49\xb8" + struct.pack("<Q", base)  # mov edx, n; mov r8, base
    add = enter + first + more + b"\x48\xb8" + struct.pack("<Q", tables.add) + leave
    delete = enter + first + b"\x48\xb8" + struct.pack("<Q", tables.delete) + leave
    return (add.ljust(_DELETE_AT, b"\xcc") + delete).ljust(CALLS_SIZE, b"\xcc")


def register(process: Process, ledger: Ledger, timeout: float) -> Ledger:
    """Register the payload of ``ledger``. Its flag says so before it happens, and another one when it has happened.

    Raises:
        EngineError: the system refused, for want of memory.
        ProcessError: the call did not return in time.
    """
    at = ledger.record.unwind_object
    if at is None:
        raise EngineError(f"{ledger.record.name}: its ledger has no code to register unwind data with")
    ledger = set_flags(process, ledger, ledger.flags | FLAG_UNWIND)
    point("unwind-announced")
    if not process.call(at, (), lambda _: True, timeout) & 0xFF:
        set_flags(process, ledger, ledger.flags & ~FLAG_UNWIND)
        raise EngineError(f"process {process.pid}: the system did not take the unwind data of {ledger.record.name}")
    point("unwind-registered")
    return set_flags(process, ledger, ledger.flags | FLAG_REGISTERED)


def registered(ledger: Ledger) -> bool:
    """Whether it is certain that the system knows the payload."""
    return bool(ledger.flags & FLAG_REGISTERED) and not ledger.flags & FLAG_DEREGISTERING


def deregister(process: Process, ledger: Ledger, timeout: float) -> Ledger:
    """Take the registration back. To ask twice does no harm: the system says that it knows no such table.

    Raises:
        EngineError: a thread of a killed engine is still at it.
        ProcessError: the call did not return in time.
    """
    at = ledger.record.unwind_object
    assert at is not None
    if not ledger.flags & FLAG_REGISTERED and _on_its_way(process, at, timeout):
        raise EngineError(f"process {process.pid}: a thread is about to register {ledger.record.name}: try again")
    ledger = set_flags(process, ledger, ledger.flags | FLAG_DEREGISTERING)
    point("deregistering")
    process.call(at + _DELETE_AT, (), lambda _: True, timeout)
    point("deregistered")
    return set_flags(process, ledger, ledger.flags & ~(FLAG_UNWIND | FLAG_REGISTERED | FLAG_DEREGISTERING))


def _on_its_way(process: Process, at: int, timeout: float) -> bool:
    """Whether some thread is in the two calls, will return there, or was started there and has not come far yet."""
    with process.stop(timeout) as stopped:
        for thread in stopped.threads:
            if not thread.complete or any(at <= value < at + CALLS_SIZE for value in thread.registers[: RIP + 1]):
                return True
            for stack in thread.stacks:
                words = struct.unpack_from(f"<{len(stack.data) // 8}Q", stack.data)
                if any(at <= word < at + CALLS_SIZE for word in words):
                    return True
    return False
