"""The table ``[server]`` of agent.toml: what a device that has a server needs to know of its own surroundings.

[server]
proxy = "http://proxy.example:3128"         # to the server and to content
mirror = "/media/usb/midflight"             # content comes from this folder, made by midflight mirror
instructions = "/media/usb/instructions"    # a device without a network: instructions carried by hand
integrity = 600                             # seconds between two comparisons of memory with disk
patience = 120                              # seconds after which an apply counts as failed
warn = "/etc/midflight/warn"                # gets the text of a warning as its argument; default: wall
reboot = "systemctl reboot"
[server.files]                              # where a baseline of kind "file" belongs
thing = "/usr/sbin/thing"
[server.restart]                            # how what uses a baseline is restarted; default: its units of systemd
thing = "systemctl restart thing"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midflight.agent.settings import Reader

_KEYS = {"proxy", "mirror", "instructions", "integrity", "patience", "warn", "reboot", "files", "restart"}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """See the module. Commands are run by ``sh -c``; times are in seconds."""

    proxy: str | None = None
    mirror: Path | None = None
    instructions: Path | None = None
    integrity: float = 600.0
    patience: float = 120.0
    warn: str = ""
    reboot: str = "systemctl reboot"
    files: Mapping[str, Path] = field(default_factory=dict)
    restart: Mapping[str, str] = field(default_factory=dict)


def server_settings(raw: Mapping[str, Any]) -> ServerSettings:
    """Read the table.

    Raises:
        InputError: it says something that is not understood.
    """
    reader = Reader(raw, Path("agent.toml, [server]"))
    reader.only(raw, _KEYS)
    files, restart = reader.table("files"), reader.table("restart")
    for key in files:
        if not reader.text(files, key).startswith("/"):
            reader.fail(f"files.{key}", "an absolute path")
    found = ServerSettings()
    mirror, instructions = reader.text(raw, "mirror"), reader.text(raw, "instructions")
    return ServerSettings(
        proxy=reader.text(raw, "proxy") or None,
        mirror=Path(mirror) if mirror else None,
        instructions=Path(instructions) if instructions else None,
        integrity=reader.seconds(raw, "integrity", found.integrity, at_least=1.0),
        patience=reader.seconds(raw, "patience", found.patience, at_least=1.0),
        warn=reader.text(raw, "warn"),
        reboot=reader.text(raw, "reboot", found.reboot),
        files={name: Path(str(path)) for name, path in files.items()},
        restart={name: reader.text(restart, name) for name in restart},
    )
