"""The one door to what differs between the two kinds of images, ELF and PE; everything else in the engine is the same.

modules       what is loaded                             modules         pemodules
imports       what a payload's imports are bound to      scope           exports
unwinding     how its frames become known                unwinding       functiontables
parked stacks that no thread owns                        coroutines      fibers
"""

from __future__ import annotations

from collections.abc import Sequence

from midflight.engine import coroutines, unwinding
from midflight.engine.ledger import Ledger
from midflight.engine.modules import Files, Modules
from midflight.engine.safepoint import SafePoint
from midflight.engine.scope import Scope
from midflight.engine.stackcheck import StackCheck
from midflight.errors import EngineError
from midflight.patch.manifest import Import, Target
from midflight.process.model import Mapping, Process

UNWIND_ROOM = unwinding.OBJECT_SIZE


def modules_of(process: Process, maps: Sequence[Mapping], files: Files) -> Modules:
    """The modules of a process, at the moment of ``maps``."""
    if process.images == "pe":
        from midflight.engine.pemodules import PeModules

        return PeModules(process, maps, files)
    return Modules(process, maps, files)


def build_id_of(process: Process, mapping: Mapping, files: Files) -> str | None:
    """The identity of the image that executable memory is of; None when it has none.

    Raises:
        ProcessError: it cannot be opened.
    """
    if process.images == "pe":
        from midflight.engine.pemodules import identity

        return identity(process, mapping.start - mapping.offset)
    _, elf = files.image(process, mapping)
    return elf.build_id if elf is not None else None


class Unwinder:
    """How payloads become known to the unwinder of one process."""

    def __init__(self, modules: Modules, safe: SafePoint, timeout: float) -> None:
        self._modules, self._safe, self._timeout = modules, safe, timeout
        self._elf = None if modules.process.images == "pe" else unwinding.find(modules)

    def wanted(self, target: Target) -> bool:
        """Whether the payload of ``target`` is to be registered here.

        Raises:
            EngineError: it must be, and cannot.
        """
        if self._modules.process.images == "pe":
            # What Windows finds no entry for it takes for a leaf: an exception would go astray.
            if target.unwind is None and target.functions:
                raise EngineError("a hotpatch for a PE image without unwind data cannot be applied: build it again")
            return target.unwind is not None
        if target.unwind is not None and target.unwind.throws and self._elf is None:
            raise EngineError(
                f"process {self._modules.process.pid}: exceptions may pass through the new code, and no unwinder "
                "(libgcc_s) is loaded to register it with: restart the process with a fixed build"
            )
        return target.unwind is not None and self._elf is not None

    def calls(self, table: int, size: int, base: int) -> bytes:
        """Code that the page behind the payload is to hold; empty: it holds the unwinder's own record."""
        from midflight.engine import functiontables
        from midflight.engine.pemodules import PeModules

        if not isinstance(self._modules, PeModules):
            return b""
        return functiontables.calls(functiontables.find(self._modules), table, size, base)

    def register(self, ledger: Ledger) -> Ledger:
        """Register the payload of ``ledger``; see the two modules."""
        from midflight.engine import functiontables

        if self._modules.process.images == "pe":
            return functiontables.register(self._modules.process, ledger, self._timeout)
        assert self._elf is not None
        return unwinding.register(self._modules, self._safe, self._elf, ledger, self._timeout)

    def deregister(self, ledger: Ledger) -> Ledger:
        """Take it back; see the two modules."""
        from midflight.engine import functiontables

        if self._modules.process.images == "pe":
            return functiontables.deregister(self._modules.process, ledger, self._timeout)
        return unwinding.deregister(self._modules, self._safe, ledger, self._timeout)


def close_left(modules: Modules, ledgers: Sequence[Ledger]) -> int:
    """Close what an engine opened to write to, when it was killed just then (Windows); how many places.

    Code of an image that its own linker made writable stays so.
    """
    from midflight.engine.pemodules import PeModules

    if not isinstance(modules, PeModules):
        return 0
    process, closed = modules.process, 0
    maps = [m for m in process.maps() if m.writable and m.readable]
    for ledger in ledgers:
        for m in maps:
            if m.start == ledger.base:
                process.protect(m.start, m.end - m.start, "r")
                closed += 1
    code = [m for m in maps if m.executable and m.inode]
    for module in modules.all:
        image = modules.pe(module) if any(m.start - m.offset == module.bias for m in code) else None
        for m in code:
            if image is None or m.start - m.offset != module.bias:
                continue
            segment = image.segment_at(m.offset)
            if segment is not None and segment.executable and not segment.writable:
                process.protect(m.start, m.end - m.start, "rx")
                closed += 1
    return closed


def registered(process: Process, ledger: Ledger) -> bool:
    """Whether the unwinder knows the payload for certain."""
    from midflight.engine import functiontables

    if process.images == "pe":
        return functiontables.registered(ledger)
    return unwinding.registered(process, ledger)


def addresses(modules: Modules, imports: Sequence[Import], timeout: float) -> list[int]:
    """What imports are bound to in this process.

    Raises:
        EngineError: nobody defines one.
    """
    from midflight.engine.exports import Exports
    from midflight.engine.pemodules import PeModules

    if not imports:
        return []
    if isinstance(modules, PeModules):
        exports = Exports(modules)
        return [exports.address(wanted) for wanted in imports]
    # A resolver runs before anything else of a program is set up: it can neither lock nor allocate.
    scope = Scope(modules, lambda at: modules.process.call(at, (), lambda t: t.complete, timeout))
    return [scope.address(wanted) for wanted in imports]


def wait_until_clear(process: Process, modules: Modules, check: StackCheck, patience: float) -> None:
    """Wait until no parked stack stands in the code that ``check`` guards.

    Raises:
        EngineError: one does, until ``patience`` seconds have passed.
    """
    coroutines.wait_until_clear(process, modules, check, patience)
