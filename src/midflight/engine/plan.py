"""What one hotpatch would change in one process, with every expected byte proven - or why it must not.

Nothing here changes the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from midflight.engine.ledger import Ledger, State, Write
from midflight.engine.modules import Module, Modules
from midflight.errors import EngineError, ProcessError, ProcessGone
from midflight.patch.manifest import Function, Manifest, Target
from midflight.process.model import Process

JUMP_NEAR = 5
JUMP_SHORT = 2


class Hotpatch(Protocol):
    """A verified hotpatch, as ``midflight.patch`` reads it."""

    @property
    def manifest(self) -> Manifest:
        """What it changes."""

    @property
    def payloads(self) -> Mapping[str, bytes]:
        """Payload bytes by member name."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""


class Inapplicable(EngineError):
    """The hotpatch has no business in this process (already there, superseded, another baseline): skipped, no
    failure."""


@dataclass(frozen=True, slots=True)
class Site:
    """One place to be written: what is there now, what a revert puts back, and the near jump's own address if it is
    one."""

    address: int
    now: bytes
    before: bytes


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """One function: its manifest row, and its sites in writing order (the padding of a short or hotpatch entry comes
    first)."""

    function: Function
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """One target of the hotpatch in one instance of its image."""

    module: Module
    target: Target
    payload: bytes
    functions: tuple[FunctionPlan, ...]
    replaces: tuple[Ledger, ...]
    restores: tuple[Write, ...]
    retired: Ledger | None
    """Memory of an earlier life of this very hotpatch, to be used again."""


def writes_in_force(ledgers: Sequence[Ledger]) -> dict[int, tuple[Ledger, Write]]:
    """What is written where, by the latest hotpatch of each place."""
    latest: dict[int, tuple[Ledger, Write]] = {}
    for ledger in sorted(ledgers, key=lambda item: item.order):
        if ledger.in_force:
            for write in ledger.record.writes():
                latest[write.address] = (ledger, write)
    return latest


def lost(process: Process, ledger: Ledger, everything: Sequence[Ledger]) -> bool:
    """Whether nothing of a hotpatch in force is in the code any more: its library was unloaded (and perhaps
    loaded anew)."""
    top = writes_in_force(everything)
    for write in ledger.record.writes():
        above, _ = top.get(write.address, (ledger, write))
        if above.base != ledger.base:
            return False
        try:
            if process.read(write.address, len(write.before)) != write.before:
                return False
        except ProcessGone:
            raise
        except ProcessError:
            continue
    return True


def original(process: Process, start: int, size: int, ledgers: Sequence[Ledger]) -> bytes:
    """Code of an image without what hotpatches in force wrote there.

    Raises:
        EngineError: what stands there is not what the ledger says.
    """
    data = bytearray(process.read(start, size))
    for ledger in sorted((item for item in ledgers if item.in_force), key=lambda item: -item.order):
        for write in ledger.record.writes():
            low, high = max(write.address, start), min(write.address + len(write.after), start + size)
            if low < high:
                part = slice(low - write.address, high - write.address)
                if data[low - start : high - start] != write.after[part]:
                    raise EngineError(
                        f"process {process.pid}: the code at {write.address:#x} is not what its ledger says "
                        "(run `midflight check`)"
                    )
                data[low - start : high - start] = write.before[part]
    return bytes(data)


def _prove_code(process: Process, module: Module, function: Function, ledgers: Sequence[Ledger]) -> None:
    for code in function.ranges:
        start = module.bias + code.vaddr
        if hashlib.sha256(original(process, start, code.size, ledgers)).hexdigest() != code.sha256:
            raise EngineError(
                f"process {process.pid}: {function.name} in {module.path} is not the code that this hotpatch was made "
                "for (a breakpoint, another tool's hook, or tampering: run `midflight check`)"
            )


def _sites(
    process: Process,
    module: Module,
    function: Function,
    current: Mapping[int, tuple[Ledger, Write]],
    replaced: set[int],
) -> tuple[Site, ...]:
    entry = function.entry
    wanted = [(entry.vaddr, entry.before)]
    if entry.kind in ("short", "hotpatch") and entry.pad_vaddr is not None and entry.pad_before is not None:
        wanted.insert(0, (entry.pad_vaddr, entry.pad_before))
    sites = []
    for vaddr, expected in wanted:
        address = module.bias + vaddr
        now = process.read(address, len(expected))
        patched = current.get(address)
        if patched is None:
            if now != expected:
                raise EngineError(
                    f"process {process.pid}: the entry of {function.name} at {address:#x} holds {now.hex(' ')}, "
                    f"not {expected.hex(' ')} (a breakpoint or another tool's hook: remove it first)"
                )
            sites.append(Site(address, now, expected))
            continue
        ledger, write = patched
        if now != write.after or len(now) != len(write.after):
            raise EngineError(
                f"process {process.pid}: the entry of {function.name} at {address:#x} is not what its ledger says "
                "(run `midflight check`)"
            )
        # Replacing goes back to disk on a revert; stacking goes back to the hotpatch below.
        sites.append(Site(address, now, write.before if ledger.base in replaced else now))
    return tuple(sites)


def _relation(hotpatch: Hotpatch, ledgers: Sequence[Ledger]) -> tuple[Ledger, ...]:
    """The ledgers that this hotpatch replaces.

    Raises:
        Inapplicable: it is there already, or a newer one is.
    """
    manifest = hotpatch.manifest
    same = [item for item in ledgers if item.in_force and item.record.name == manifest.name]
    for ledger in same:
        if ledger.record.digest == hotpatch.digest:
            raise Inapplicable(f"{manifest.name} {manifest.sequence} is in force already")
        if ledger.record.sequence >= manifest.sequence:
            raise Inapplicable(
                f"{ledger.record.name} {ledger.record.sequence} is in force, not older than {manifest.sequence}"
            )
    return tuple(same)


def plan_target(
    process: Process, module: Module, hotpatch: Hotpatch, target: Target, ledgers: Sequence[Ledger]
) -> Plan:
    """Plan one target in one instance of its image; ``ledgers`` are those of the whole process.

    Raises:
        Inapplicable: nothing to do here.
        EngineError: the code that runs is not the expected one.
    """
    mine = [i for i in ledgers if i.record.build_id == target.build_id and i.record.bias == module.bias]
    replaces = _relation(hotpatch, mine)
    replaced = {ledger.base for ledger in replaces}
    current = writes_in_force(mine)
    for function in target.functions:
        _prove_code(process, module, function, mine)
    functions = tuple(FunctionPlan(f, _sites(process, module, f, current, replaced)) for f in target.functions)
    written = {site.address for f in functions for site in f.sites}
    restores = tuple(
        Write(address, write.before, write.after, write.before)
        for address, (ledger, write) in current.items()
        if ledger.base in replaced and address not in written
    )
    retired = next((i for i in mine if i.state is State.RETIRED and i.record.digest == hotpatch.digest), None)
    return Plan(
        module, target, hotpatch.payloads[target.payload], functions, replaces, restores, retired,
    )  # fmt: skip


def plan(modules: Modules, hotpatch: Hotpatch, ledgers: Sequence[Ledger]) -> tuple[Plan, ...]:
    """Plan a hotpatch for all instances of all its images in one process.

    Raises:
        Inapplicable: the process runs none of its baselines, or has it in force everywhere.
        EngineError: some code is not the expected one.
    """
    plans: list[Plan] = []
    reason: Inapplicable | None = None
    for target in hotpatch.manifest.targets:
        for module in modules.with_build_id(target.build_id):
            try:
                plans.append(plan_target(modules.process, module, hotpatch, target, ledgers))
            except Inapplicable as error:
                reason = error
    if not plans:
        raise reason or Inapplicable("it does not run this baseline")
    return tuple(plans)
