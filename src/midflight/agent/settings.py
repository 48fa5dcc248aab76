"""The settings of the agent: ``agent.toml`` in the folder of settings, every key with a default. Times are in seconds.

folder = "/var/lib/midflight/hotpatches"
trust = ["/etc/midflight/release.pub"]      # default: the keys in trust.d
removed = "keep"                            # or "revert": take out what disappears from the folder
timeout = 5.0
rescan = 60.0                               # seconds between two looks at everything; longer if they take long
processes = "all"                           # or those of the agent's own "pid", "mount" or "network" namespace,
                                            # or of a control group: "cgroup:/system.slice"

[health]
probes = ["curl -fsS localhost/health"]
probe_timeout = 10.0
checks = [60, 300, 900]
crash_window = 900
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from midflight.agent import health, scope
from midflight.errors import InputError
from midflight.machine.ownership import changeable_by
from midflight.machine.places import config_folder, hotpatch_folder

FILE = "agent.toml"
_SOURCE = {"folder", "trust", "removed", "timeout", "rescan", "processes", "health", "server"}
_HEALTH = {"probes", "probe_timeout", "checks", "crash_window"}


@dataclass(frozen=True, slots=True)
class Settings:
    """See the module."""

    folder: Path = field(default_factory=hotpatch_folder)
    trust: tuple[str, ...] = ()
    removed: Literal["keep", "revert"] = "keep"
    timeout: float = 5.0
    rescan: float = 60.0
    probes: tuple[str, ...] = ()
    probe_timeout: float = 10.0
    checks: tuple[float, ...] = health.CHECKS
    crash_window: float = health.CRASH_WINDOW
    processes: str = "all"
    server: Mapping[str, Any] = field(default_factory=dict)
    """The table for a device that has a server: :mod:`midflight.agent.fleet.settings`."""


def read_settings(path: Path | None = None) -> Settings:
    """The settings of this machine, or those of a file; the defaults where there is none.

    Raises:
        InputError: the file says something that is not understood, or others can change it.
    """
    given = path is not None
    path = path or config_folder() / FILE
    try:
        if not path.exists() and not given:
            return Settings()
        other = changeable_by(path)
        if other is not None:
            # Its probes are run as the administrator that we are.
            raise InputError(f"{path} can be changed by others ({other}): it is not believed; let root alone write it")
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    return _settings(raw, path)


def _settings(raw: Mapping[str, Any], path: Path) -> Settings:
    reader = Reader(raw, path)
    reader.only(raw, _SOURCE)
    inner = reader.table("health")
    reader.only(inner, _HEALTH)
    found = Settings()
    if "folder" in raw:
        found = replace(found, folder=Path(reader.text(raw, "folder")))
    if reader.text(raw, "removed", "keep") not in ("keep", "revert"):
        reader.fail("removed", '"keep" or "revert"')
    processes = reader.text(raw, "processes", found.processes)
    if processes not in scope.NAMES and not processes.startswith(scope.CGROUP):
        reader.fail("processes", f"one of {', '.join(scope.NAMES)}, or {scope.CGROUP}/PATH")
    return replace(
        found,
        processes=processes,
        server=reader.table("server"),
        trust=reader.texts(raw, "trust"),
        removed="revert" if raw.get("removed") == "revert" else "keep",
        timeout=reader.seconds(raw, "timeout", found.timeout),
        rescan=reader.seconds(raw, "rescan", found.rescan, at_least=0.1),
        probes=reader.texts(inner, "probes"),
        probe_timeout=reader.seconds(inner, "probe_timeout", found.probe_timeout),
        checks=reader.times(inner, "checks", found.checks),
        crash_window=reader.seconds(inner, "crash_window", found.crash_window),
    )


class Reader:
    """Takes values out of a TOML document; what is wrong is named by file and key."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self._raw, self._path = raw, path

    def fail(self, key: str, expected: str) -> NoReturn:
        """Say what a key must be."""
        raise InputError(f"{self._path}: {key} must be {expected}")

    def only(self, table: Mapping[str, Any], known: set[str]) -> None:
        """Nothing but these keys."""
        for key in table:
            if key not in known:
                raise InputError(f"{self._path}: there is no setting {key!r}; there are: {', '.join(sorted(known))}")

    def table(self, key: str) -> Mapping[str, Any]:
        """A table; empty when there is none."""
        value = self._raw.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, "a table")
        return dict(value)

    def text(self, table: Mapping[str, Any], key: str, default: str = "") -> str:
        """A text."""
        value = table.get(key, default)
        if not isinstance(value, str):
            self.fail(key, "a text")
        return str(value)

    def texts(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail(key, "a list of texts")
        return tuple(value)

    def seconds(self, table: Mapping[str, Any], key: str, default: float, at_least: float = 0.0) -> float:
        """A time."""
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value <= 86400:
            self.fail(key, f"seconds between {at_least:g} and 86400")
        return float(value)

    def times(self, table: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Times, each later than the one before."""
        value = table.get(key, list(default))
        good = isinstance(value, list) and all(isinstance(v, int | float) and 0 < v <= 86400 for v in value)
        if not good or list(value) != sorted(value):
            self.fail(key, "a list of seconds, in order")
        return tuple(float(one) for one in value)
