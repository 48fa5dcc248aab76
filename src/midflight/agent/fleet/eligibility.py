"""Whether this device can take a hotpatch, by what it knows itself. Pure. Each reason that applies is told.

The server has looked at the same question with older facts; what is found here counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from midflight.agent.fleet.reasons import Code
from midflight.trust.content import Description
from midflight.trust.instructions import Option

MEMORY_FLOOR_MIB = 64
"""Free memory below which nothing is applied: the target must not meet the out-of-memory killer."""
DISK_FLOOR = 64 << 20
"""Free bytes that a download must leave."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason, and its particulars for people."""

    code: Code
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What decisions need to know of this machine."""

    platform: str
    kernel: str
    agent: str
    memory_free_mib: int | None
    disk_free: int
    """Bytes, where content is kept."""
    images: frozenset[str]
    """Build-ids that processes map."""
    packages: Mapping[str, str]
    """Packages of mapped images, with their versions."""


def ineligible(
    about: Description, length: int, options: Mapping[str, Option], machine: Machine, hotpatches: bool
) -> list[Finding]:
    """Every reason against a hotpatch, the most telling first; empty: it can be taken.

    Args:
        length: bytes of the file, that must still be fetched.
        options: of the action: ``platforms`` (separated by commas), ``min_kernel``, ``min_agent``, ``memory_mib``,
            ``package``. They can only add reasons.
        hotpatches: whether the policy allows hotpatches.
    """
    found = []
    if not hotpatches:
        found.append(Finding(Code.HOTPATCH_DISABLED, "the policy of this device allows no hotpatches"))
    platforms = _text(options, "platforms")
    if platforms and machine.platform not in platforms.split(","):
        found.append(Finding(Code.WRONG_PLATFORM, f"{machine.platform}, not {platforms}"))
    for key, code, have in (
        ("min_kernel", Code.KERNEL_TOO_OLD, machine.kernel),
        ("min_agent", Code.AGENT_TOO_OLD, machine.agent),
    ):
        wanted = _text(options, key)
        if wanted and not at_least(have, wanted):
            found.append(Finding(code, f"{have or 'unknown'}, needs {wanted}"))
    if not machine.images & set(about.images):
        found.append(_no_baseline(_text(options, "package"), machine.packages))
    needed = options.get("memory_mib")
    floor = max(MEMORY_FLOOR_MIB, needed if type(needed) is int else 0)
    if machine.memory_free_mib is not None and machine.memory_free_mib < floor:
        found.append(Finding(Code.MEMORY_LOW, f"{machine.memory_free_mib} MiB free, needs {floor}"))
    found += no_room(length, machine.disk_free)
    return found


def no_room(length: int, free: int) -> list[Finding]:
    """Whether there is no disk space for so many bytes."""
    if not length or free >= length + DISK_FLOOR:
        return []
    return [Finding(Code.DISK_LOW, f"{free >> 20} MiB free, needs {(length + DISK_FLOOR) >> 20}")]


def at_least(version: str, wanted: str) -> bool:
    """Whether a version of a kernel or an agent is so new: the numbers in it are compared, as many as are wanted."""
    have, want = ([int(n[:18]) for n in _NUMBER.findall(text)] for text in (version, wanted))
    return bool(have) and have[: len(want)] >= want


def superseded(about: Description, in_force: Collection[tuple[str, int]]) -> Finding | None:
    """Whether something later is in force already."""
    for name, sequence in in_force:
        if name == about.name and sequence > about.sequence:
            return Finding(Code.SUPERSEDED, f"{name} {sequence} is in force")
    return None


def _no_baseline(package: str, packages: Mapping[str, str]) -> Finding:
    if package and package in packages:
        return Finding(Code.BASELINE_NOT_CURRENT, f"{package} {packages[package]} runs, which this hotpatch is not for")
    return Finding(Code.NOT_AFFECTED, "no process maps an image that it is for")


def _text(options: Mapping[str, Option], key: str) -> str:
    value = options.get(key)
    return value if type(value) is str else ""
