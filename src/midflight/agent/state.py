"""What must survive a restart of the agent, in SQLite: what was applied where and with what outcome, bars, and which
hotpatches are under observation. What runs in a process is never read from here: the process itself says that.

One file, ``agent.db``, in write-ahead mode, so that the commands that show it do not get in the agent's way. Writes are
collected and made together; bars at once, and on disk before anything is done about them. Nothing else waits for the
disk, which may take a second when others write too: history of the last moments is lost when the power fails, and a
thread of its own moves what was written from the write-ahead log to its place. A full disk loses nothing but time: what
could not be written is kept and tried again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from midflight.agent.health import Watch
from midflight.errors import InputError, MidflightError
from midflight.process.filelock import is_locked, try_lock

FILE, LOCK = "agent.db", "agent.lock"
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE applications (
    id INTEGER PRIMARY KEY, boot TEXT NOT NULL, pid INTEGER NOT NULL, start_time INTEGER NOT NULL, command TEXT NOT
    NULL, name TEXT NOT NULL, sequence INTEGER NOT NULL, digest TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT
    NULL, stopped REAL NOT NULL, at REAL NOT NULL, uptime REAL NOT NULL, ended TEXT NOT NULL DEFAULT ''
);
CREATE INDEX applications_by_process ON applications (boot, pid, start_time);
CREATE TABLE bars (
    name TEXT NOT NULL, sequence INTEGER NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL, cause TEXT NOT NULL
    DEFAULT 'hand', PRIMARY KEY (name, sequence)
);
CREATE TABLE watches (
    boot TEXT NOT NULL, name TEXT NOT NULL, sequence INTEGER NOT NULL, since REAL NOT NULL, passed INTEGER NOT NULL,
    PRIMARY KEY (name, sequence)
);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_CHANGES = {1: "ALTER TABLE bars ADD COLUMN cause TEXT NOT NULL DEFAULT 'hand';"}
"""What brings a file of each version to the next."""
_WATCHES = "SELECT name, sequence, since, passed FROM watches WHERE boot = ?"
_KEPT = 20_000
"""Applications in the history; the oldest go first."""
_MOST_PENDING = 20_000
_CHECKPOINT_EVERY = 60.0


Cause = Literal["crashed", "health_failed", "hand"]
"""Why something is barred, for programs."""


class StateError(MidflightError):
    """What the agent remembers cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A hotpatch that is not applied on this machine until somebody has looked."""

    name: str
    sequence: int
    reason: str
    since: float
    """Wall clock, seconds since 1970."""
    cause: Cause = "hand"


@dataclass(frozen=True, slots=True)
class Application:
    """What became of one hotpatch in one process."""

    pid: int
    start_time: int
    command: str
    name: str
    sequence: int
    digest: str
    outcome: str
    reason: str
    stopped: float
    uptime: float
    """Seconds since the machine started, at that moment."""
    at: float = 0.0
    ended: str = ""
    """How the process ended; empty: it has not, as far as is known."""


class State:
    """The file of one agent. Not for several threads.

    Raises:
        StateError: it cannot be opened.
    """

    def __init__(self, folder: Path, boot: str) -> None:
        self._folder, self._boot = folder, boot
        self.trouble = ""
        """Why the last write failed; empty: it did not."""
        self.lost = ""
        """What was lost when a damaged file was put aside; empty: nothing."""
        self._pending: deque[tuple[str, Sequence[Any]]] = deque()
        self._bars: dict[tuple[str, int], Bar] = {}
        self._lock = self._take_lock()
        self._database = self._open()
        self._version: int | None = None
        self._closing = threading.Event()
        self._checkpoints = threading.Thread(target=self._checkpoint, name="checkpoints", daemon=True)
        self._checkpoints.start()
        self.reread_bars()

    def _checkpoint(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            database = sqlite3.connect(self._folder / FILE, timeout=0.0)
            while not self._closing.wait(_CHECKPOINT_EVERY):
                with contextlib.suppress(sqlite3.Error):
                    database.execute("PRAGMA wal_checkpoint(PASSIVE)")
            database.close()

    def _take_lock(self) -> int:
        try:
            handle = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            raise StateError(f"{self._folder / LOCK} cannot be made: {error.strerror}") from None
        if not try_lock(handle):
            os.close(handle)
            raise StateError(f"another agent runs already (it has {self._folder / LOCK} locked)")
        return handle

    def _open(self) -> sqlite3.Connection:
        path = self._folder / FILE
        try:
            return connect(path)
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{FILE}.damaged-{time.time_ns()}")
            try:
                path.replace(aside)
                for suffix in ("-wal", "-shm"):
                    path.with_name(FILE + suffix).unlink(missing_ok=True)
                self.lost = f"{path} was damaged ({error}) and is now {aside.name}: bars and history begin anew"
                return connect(path)
            except (OSError, sqlite3.Error) as worse:
                raise StateError(f"{path} cannot be used: {worse}; free some space or set MIDFLIGHT_STATE") from None

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(self, statement: str, *values: Any) -> None:
        self._pending.append((statement, values))
        if len(self._pending) > _MOST_PENDING:
            # Of a disk that stays full the oldest history is given up; bars are kept in memory as well.
            self._pending.popleft()

    @property
    def dirty(self) -> bool:
        """Whether something is to be written."""
        return bool(self._pending)

    def flush(self, durably: bool = False) -> bool:
        """Write what was collected, and wait for the disk if that is to be ``durably``; False when it failed, and it
        stays collected."""
        if not self._pending:
            return True
        try:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durably else 'NORMAL'}")
            with self._database:
                for statement, values in self._pending:
                    self._database.execute(statement, values)
        except sqlite3.Error as error:
            self.trouble = str(error)
            return False
        self._pending.clear()
        self.trouble = ""
        return True

    def note(self, one: Application) -> None:
        """What became of a hotpatch in a process."""
        self._write(
            "INSERT INTO applications (boot, pid, start_time, command, name, sequence, digest, outcome, reason, "
            "stopped, at, uptime) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._boot, one.pid, one.start_time, one.command, one.name, one.sequence, one.digest, one.outcome,
            one.reason, one.stopped, time.time(), one.uptime,
        )  # fmt: skip

    def ended(self, pid: int, start_time: int, how: str) -> None:
        """A process is not there any more."""
        self._write(
            "UPDATE applications SET ended = ? WHERE boot = ? AND pid = ? AND start_time = ? AND ended = ''",
            how, self._boot, pid, start_time,
        )  # fmt: skip

    def fact(self, key: str, value: Any) -> None:
        """Something about the agent itself, for those who look at it."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", key, json.dumps(value))

    def prune(self) -> None:
        """Forget the oldest history, and processes of earlier starts of the machine."""
        restarted = "UPDATE applications SET ended = 'the machine restarted' WHERE boot <> ? AND ended = ''"
        self._write(restarted, self._boot)
        oldest = "DELETE FROM applications WHERE id <= (SELECT max(id) FROM applications) - ? AND ended <> ''"
        self._write(oldest, _KEPT)

    # -- bars --------------------------------------------------------------------------------------------------------

    def bars(self) -> dict[tuple[str, int], Bar]:
        """What is barred, by name and sequence."""
        return dict(self._bars)

    def bar(self, name: str, sequence: int, reason: str, cause: Cause = "hand") -> None:
        """Bar a hotpatch; on disk when this returns, unless :attr:`trouble` says that the disk does not take it: then
        it holds as long as this agent runs, and is written as soon as that is possible."""
        bar = Bar(name, sequence, reason, time.time(), cause)
        self._bars[name, sequence] = bar
        self._write("INSERT OR REPLACE INTO bars VALUES (?, ?, ?, ?, ?)", name, sequence, reason, bar.since, cause)
        self.flush(durably=True)

    def reread_bars(self) -> bool:
        """Whether somebody else changed the bars (``midflight agent unbar``) since the last call."""
        if self._pending and not self.flush():
            return False  # what is in memory is newer
        try:
            version = self._database.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version:
                return False
            rows = self._database.execute("SELECT name, sequence, reason, since, cause FROM bars").fetchall()
        except sqlite3.Error as error:
            self.trouble = str(error)
            return False
        self._version = version
        found = {(row[0], row[1]): Bar(*row) for row in rows}
        changed = found.keys() != self._bars.keys()
        self._bars = found
        return changed

    # -- observation -------------------------------------------------------------------------------------------------

    def watch(self, name: str, sequence: int, since: float, passed: int = 0) -> None:
        """A hotpatch is under observation since this uptime."""
        self._write("INSERT OR REPLACE INTO watches VALUES (?, ?, ?, ?, ?)", self._boot, name, sequence, since, passed)

    def unwatch(self, name: str, sequence: int) -> None:
        """It is not any more."""
        self._write("DELETE FROM watches WHERE name = ? AND sequence = ?", name, sequence)

    def watches(self) -> list[Watch]:
        """What is under observation since this start of the machine."""
        self.flush()
        rows = self._rows(_WATCHES, self._boot)
        return [Watch(*row) for row in rows]

    def ordered(self) -> set[tuple[str, int]]:
        """What was ordered when an agent last knew, by name and sequence."""
        rows = self._rows("SELECT value FROM facts WHERE key = 'ordered'")
        return {(str(name), int(sequence)) for name, sequence in json.loads(rows[0][0])} if rows else set()

    def alive(self) -> list[Application]:
        """The successful applications to processes that had not ended when this was last known."""
        return [one for one in _applications(self._database, self._boot) if one.outcome in ("applied", "already")]

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self.trouble = str(error)
            return []

    def close(self) -> None:
        """Write what is left, and let go."""
        self.flush(durably=True)
        self._closing.set()
        self._checkpoints.join(5.0)
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        os.close(self._lock)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, and make its tables if it is new.

    Raises:
        sqlite3.Error: it cannot be used.
    """
    database = sqlite3.connect(path, timeout=5.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise StateError(f"{path} was written by a newer Midflight: update this one")
        if version < _SCHEMA_VERSION:
            steps = "".join(_CHANGES[n] for n in range(version, _SCHEMA_VERSION)) if version else _SCHEMA
            database.executescript(f"BEGIN; {steps} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
    except BaseException:
        database.close()
        raise
    return database


def _applications(database: sqlite3.Connection, boot: str) -> list[Application]:
    rows = database.execute(
        "SELECT pid, start_time, command, name, sequence, digest, outcome, reason, stopped, uptime, at, ended "
        "FROM applications WHERE boot = ? AND ended = '' ORDER BY id",
        (boot,),
    )
    return [Application(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the file says, for those who look at it from outside."""

    running: bool
    facts: dict[str, Any]
    bars: tuple[Bar, ...]
    watches: tuple[Watch, ...]
    applications: tuple[Application, ...]
    """Of this start of the machine, to processes that had not ended; the newest of each process and name."""


def look(folder: Path, boot: str) -> Snapshot:
    """What an agent remembers, whether it runs or not.

    Raises:
        InputError: there is nothing.
    """
    with _existing(folder) as database:
        facts = {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM facts")}
        bars = tuple(
            Bar(*r) for r in database.execute("SELECT name, sequence, reason, since, cause FROM bars ORDER BY since")
        )
        watches = database.execute(_WATCHES, (boot,)).fetchall()
        latest = {(one.pid, one.start_time, one.name): one for one in _applications(database, boot)}
    return Snapshot(
        is_locked(folder / LOCK), facts, bars, tuple(Watch(*row) for row in watches), tuple(latest.values())
    )


def set_bar(folder: Path, bar: Bar) -> None:
    """Bar a hotpatch from outside; a running agent notices.

    Raises:
        InputError: there is no agent's state, or it cannot be written.
    """
    with _existing(folder) as database:
        values = (bar.name, bar.sequence, bar.reason, bar.since, bar.cause)
        database.execute("INSERT OR REPLACE INTO bars VALUES (?, ?, ?, ?, ?)", values)


def take_bar(folder: Path, name: str, sequence: int | None) -> list[tuple[str, int]]:
    """Take bars away from outside; which ones.

    Raises:
        InputError: there is no agent's state, or it cannot be written.
    """
    with _existing(folder) as database:
        rows: list[tuple[str, int]] = database.execute(
            "DELETE FROM bars WHERE name = ? AND (? IS NULL OR sequence = ?) RETURNING name, sequence",
            (name, sequence, sequence),
        ).fetchall()
    return rows


@contextlib.contextmanager
def _existing(folder: Path) -> Any:
    path = folder / FILE
    if not path.exists():
        raise InputError(f"no agent has run here: there is no {path}")
    try:
        database = connect(path)
        try:
            with database:
                yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be used: {error}") from None
