"""The server as a service of systemd: one unit that serves, and with PostgreSQL one that works beside it.

Both run as the owner of the server's folder, and may write nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from midflight.errors import InputError
from midflight.machine import units
from midflight.server.settings import Settings

SERVER, WORKER = "midflight-server.service", "midflight-worker.service"


def unit(settings: Settings, command: Sequence[str], what: str) -> str:
    """A unit that runs a command for the server of these settings."""
    folders = {settings.folder.resolve(), settings.path(settings.repository).resolve()}
    values = {
        "@WHAT@": what,
        "@COMMAND@": units.escaped(command),
        "@USER@": _owner(settings.folder),
        "@FOLDERS@": units.escaped(sorted(folders)),
    }
    text = (files("midflight.server") / SERVER).read_text()
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def units_of(settings: Settings, midflight: Sequence[str], processes: int) -> dict[str, str]:
    """The units of a server, by name.

    Args:
        midflight: the command ``midflight``.
        processes: how many serve; more than one needs PostgreSQL.

    Raises:
        InputError: the settings do not allow it.
    """
    if processes > 1 and settings.sqlite:
        raise InputError("SQLite serves one process; leave out --processes, or set database to PostgreSQL")
    folder = str(settings.folder)
    run = [*midflight, "server", "run", folder, *(["--processes", str(processes)] if processes > 1 else []), "-q"]
    found = {SERVER: unit(settings, run, "devices, API and console")}
    if not settings.embedded_worker:
        found[WORKER] = unit(settings, [*midflight, "server", "worker", folder, "-q"], "background work")
    return found


def install(settings: Settings, midflight: Sequence[str], processes: int, start: bool) -> list[Path]:
    """Write the units, or bring those that are there up to date, and start them (again). Returns their paths.

    Raises:
        InputError: they cannot be written, or systemd does not take them.
    """
    return [units.install({name: text}, start) for name, text in units_of(settings, midflight, processes).items()]


def uninstall() -> list[Path]:
    """Stop the services and remove their units; the server's folder stays. Returns the paths that they had.

    Raises:
        InputError: there are none, or they cannot be removed.
    """
    worker = [units.uninstall(WORKER)] if (units.FOLDER / WORKER).exists() else []
    return [units.uninstall(SERVER), *worker]


def _owner(folder: Path) -> str:
    try:
        return folder.owner()
    except (OSError, KeyError) as error:
        raise InputError(f"cannot tell whose {folder} is ({error}); give it to an account of this machine") from None
