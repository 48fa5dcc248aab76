"""Makes the target's own unwinder know the payload, so that exceptions and backtraces pass through new code.

libgcc finds frames of code that no loaded file describes only when they are registered (``__register_frame_info``, LSB
Core, "Interfaces for libgcc_s"; unwind-dw2-fde.c). Up to GCC 12 that takes one lock of its own and allocates nothing,
since the caller lends the memory of its record; from GCC 13 on it may allocate, and demands the stronger safe point.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midflight.engine.ledger import FLAG_DEREGISTERING, FLAG_UNWIND, Ledger, set_flags
from midflight.engine.modules import Module, Modules
from midflight.engine.safepoint import SafePoint
from midflight.engine.stackcheck import Range, StackCheck
from midflight.errors import EngineError
from midflight.image.elf import ElfFile
from midflight.process.faults import point
from midflight.process.model import NoSafeThread, Process

# struct object of libgcc has six words; the page behind it is ours anyway.
OBJECT_SIZE = 64
_REGISTER, _DEREGISTER = "__register_frame_info", "__deregister_frame_info"
_FIRST_ALLOCATING_GCC = 13


@dataclass(frozen=True, slots=True)
class Unwinder:
    """The unwinder of one process: absolute addresses of its two functions."""

    register: int
    deregister: int
    allocates: bool


def _symbol(elf: ElfFile, name: str) -> int | None:
    symbol = elf.dynamic_symbol(name)
    if symbol is None or not symbol.defined:
        symbol = elf.symbol(name)
    return symbol.value if symbol is not None and symbol.defined and symbol.value else None


def _allocates(elf: ElfFile) -> bool:
    releases = [int(m[1]) for v in elf.defined_versions if (m := re.fullmatch(r"GCC_(\d+)\..*", v))]
    if releases:
        return max(releases) >= _FIRST_ALLOCATING_GCC
    # A static program: its compiler's release is that of the unwinder in it.
    made_by = [int(m[1]) for c in elf.comments if (m := re.search(r"GCC: \(.*\) (\d+)\.", c))]
    return max(made_by, default=_FIRST_ALLOCATING_GCC) >= _FIRST_ALLOCATING_GCC


def find(modules: Modules) -> Unwinder | None:
    """The unwinder that this process throws with; None when it has none (yet)."""
    shared = [m for m in modules.all if (modules.image(m).soname or "").startswith("libgcc_s.so")]
    static = [m for m in modules.all if modules.image(m).kind == "executable" or modules.image(m).is_pie]
    for module in shared + static:
        elf = modules.image(module)
        register, deregister = _symbol(elf, _REGISTER), _symbol(elf, _DEREGISTER)
        if register and deregister:
            return Unwinder(module.bias + register, module.bias + deregister, _allocates(elf))
    return None


def is_unwinder(modules: Modules, module: Module) -> bool:
    """Whether a thread in this module may hold the unwinder's lock."""
    return (modules.image(module).soname or "").startswith("libgcc_s.so")


def is_loader(modules: Modules, module: Module) -> bool:
    """Whether a thread in this module may hold the dynamic loader's lock."""
    return (modules.image(module).soname or "").startswith("ld-linux")


def register(modules: Modules, safe: SafePoint, unwinder: Unwinder, ledger: Ledger, timeout: float) -> Ledger:
    """Register the payload of ``ledger``. Its flag says so before it happens: a killed engine leaves no doubt.

    Raises:
        ProcessError: no thread reached a safe point in time, or the call did not return.
    """
    record = ledger.record
    if record.unwind is None or record.unwind_object is None:
        raise EngineError(f"{record.name}: its ledger lends no memory to the unwinder")
    ledger = set_flags(modules.process, ledger, ledger.flags | FLAG_UNWIND)
    point("unwind-announced")
    try:
        modules.process.call(
            unwinder.register,
            (record.unwind[0], record.unwind_object),
            safe.blocked if unwinder.allocates else safe.light,
            timeout,
        )
    except NoSafeThread:
        set_flags(modules.process, ledger, ledger.flags & ~FLAG_UNWIND)
        raise
    return ledger


def registered(process: Process, ledger: Ledger) -> bool:
    """Whether the unwinder has taken the payload into its list; it writes its record there first."""
    at = ledger.record.unwind_object
    return at is not None and process.read(at, OBJECT_SIZE) != bytes(OBJECT_SIZE)


def deregister(modules: Modules, safe: SafePoint, ledger: Ledger, timeout: float) -> Ledger:
    """Take the registration back. It may free memory of the unwinder, so only a sleeping thread does it.

    Asking to take back what is not there would abort the program. So where an engine was killed around the
    registration, it is proven first that it happened, or that it did not and no thread is on its way to it; and where
    one was killed around this very call, nobody asks again: that payload keeps its memory.

    Raises:
        EngineError: it is not certain what the unwinder knows.
        ProcessError: no thread reached a safe point in time.
    """
    record, process = ledger.record, modules.process
    unwinder = find(modules)
    if unwinder is None or record.unwind is None or record.unwind_object is None:
        raise EngineError(f"process {process.pid}: its unwinder is gone")
    if ledger.flags & FLAG_DEREGISTERING:
        raise EngineError(f"process {process.pid}: {record.name} may be unknown to the unwinder already")
    if registered(process, ledger) or _on_its_way(modules, unwinder, timeout):
        if not registered(process, ledger):
            raise EngineError(f"process {process.pid}: a thread is about to register {record.name}: try again")
        ledger = set_flags(process, ledger, ledger.flags | FLAG_DEREGISTERING)
        point("deregistering")
        try:
            process.call(unwinder.deregister, (record.unwind[0],), safe.blocked, timeout)
        except NoSafeThread:
            set_flags(process, ledger, ledger.flags & ~FLAG_DEREGISTERING)
            raise
        process.write(record.unwind_object, bytes(OBJECT_SIZE))
    return set_flags(process, ledger, ledger.flags & ~(FLAG_UNWIND | FLAG_DEREGISTERING))


def _on_its_way(modules: Modules, unwinder: Unwinder, timeout: float) -> bool:
    found = modules.frames_at(unwinder.register)
    frame = found.extent(unwinder.register - found.bias) if found else None
    if found is None or frame is None:
        return True
    inside = Range(found.bias + frame.start, found.bias + frame.end, "the registration of unwind data")
    with modules.process.stop(timeout) as stopped:
        return bool(StackCheck([inside], modules.frames_at).busy(stopped.threads))
