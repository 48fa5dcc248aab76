"""What this machine is: platform, kernel, memory, time zone, whether it waits for a restart."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from midflight import __version__
from midflight.agent.fleet import winfacts

_REBOOT_MARKS = (Path("/run/reboot-required"), Path("/var/run/reboot-required"))


@dataclass(frozen=True, slots=True)
class Facts:
    """See the module."""

    hostname: str
    platform: str
    """Like ``linux-x86_64``."""
    kernel: str
    agent: str
    timezone: str
    """IANA name."""
    os: str
    memory_total_mib: int
    memory_free_mib: int | None
    reboot_pending: bool


def facts() -> Facts:
    """This machine, now."""
    total, free = _memory()
    return Facts(
        hostname=(socket.gethostname() or "localhost")[:253],
        platform=f"{platform.system().lower()}-{machine()}",
        kernel=platform.release(),
        agent=__version__,
        timezone=_timezone(),
        os=_os(),
        memory_total_mib=total,
        memory_free_mib=free,
        reboot_pending=_reboot_pending(),
    )


def machine() -> str:
    """The architecture, as Linux names it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def machine_id() -> str:
    """Names this machine, also when it is enrolled again: a hash, since the id itself is not for others
    (machine-id(5)). Empty settings of a machine (a container) fall back to the host name."""
    if sys.platform == "win32":
        return sha256(f"midflight device {winfacts.machine_guid() or socket.gethostname()}".encode()).hexdigest()
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text:
            return sha256(f"midflight device {text}".encode()).hexdigest()
    return sha256(f"midflight device {socket.gethostname()}".encode()).hexdigest()


def disk_free(folder: Path) -> int:
    """Bytes that may be written there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _memory() -> tuple[int, int | None]:
    """Total and available memory in MiB (proc_meminfo(5))."""
    if sys.platform == "win32":
        return winfacts.memory()
    values = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    values[name] = int(rest.split()[0]) >> 10
    except (OSError, ValueError, IndexError):
        return 0, None
    return values.get("MemTotal", 0), values.get("MemAvailable")


def _reboot_pending() -> bool:
    if sys.platform == "win32":
        return winfacts.reboot_pending()
    return any(mark.exists() for mark in _REBOOT_MARKS)


def _timezone() -> str:
    if sys.platform == "win32":
        return winfacts.timezone()
    if os.environ.get("TZ", "").lstrip(":"):
        return os.environ["TZ"].lstrip(":")[:100]
    try:
        target = os.path.realpath("/etc/localtime")
        if "zoneinfo/" in target:
            return target.partition("zoneinfo/")[2]
        return Path("/etc/timezone").read_text().strip()[:100] or "UTC"
    except OSError:
        return "UTC"


def _os() -> str:
    if sys.platform == "win32":
        return f"Windows {platform.release()}"
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")[:200]
    except OSError:
        return "Linux"
