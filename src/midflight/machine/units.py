"""Units of systemd: written, brought up to date, started, taken away."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from midflight.errors import InputError

FOLDER = Path("/etc/systemd/system")


def runs() -> bool:
    """Whether systemd is the init of this machine (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def escaped(words: Sequence[str | Path]) -> str:
    """A command, or paths, as they stand in a unit (systemd.service(5): % and $ are its own)."""
    return shlex.join(map(str, words)).replace("%", "%%").replace("$", "$$")


def install(files: dict[str, str], start: bool) -> Path:
    """Write a unit, or bring one that is there up to date; where systemd runs, let it know, enable it, and start it
    (again) if wanted. What people want otherwise belongs in drop-ins: those stay.

    Args:
        files: contents by name below the folder of units; the first is the unit.

    Returns:
        The path of the unit.

    Raises:
        InputError: it cannot be written, or systemd does not take it.
    """
    unit = next(iter(files))
    try:
        for name, text in files.items():
            (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / name).write_text(text)
    except OSError as error:
        raise InputError(f"{FOLDER / unit} cannot be written: {error.strerror}; run as root") from None
    if runs():
        _systemctl("daemon-reload")
        _systemctl("enable", unit)
        if start:
            _systemctl("restart", unit)
    return FOLDER / unit


def uninstall(unit: str, drop_ins: Sequence[str] = ()) -> Path:
    """Stop a service and remove its unit, and those drop-ins that are ours. Returns the path that it had.

    Raises:
        InputError: it is not there, or cannot be removed.
    """
    path = FOLDER / unit
    if not path.exists():
        raise InputError(f"there is no {path}: nothing to remove")
    if runs():
        _systemctl("disable", "--now", unit)
    folder = FOLDER / f"{unit}.d"
    try:
        path.unlink()
        for name in drop_ins:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}; run as root") from None
    if runs():
        _systemctl("daemon-reload")
    return path


def _systemctl(*words: str) -> None:
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InputError(f"systemctl cannot be run: {error.strerror}") from None
    if done.returncode:
        raise InputError(f"systemctl {' '.join(words)} failed: {' '.join(done.stderr.split()) or done.returncode}")
