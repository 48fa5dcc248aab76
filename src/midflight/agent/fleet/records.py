"""What must survive on a device that has a server, in SQLite (``fleet.db``): hotpatches in force, what is staged, and
outcomes that the server has not heard yet.

Everything is written before it is done, each step in a transaction of its own that is on disk when it returns. So a
device that is killed, or whose disk is full, has either recorded a step, and does it again after its restart, or not
recorded it, and then has not done it either.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from midflight.agent.state import StateError
from midflight.errors import InputError
from midflight.process.faults import point
from midflight.trust.checkin import Outcome, Result

FILE = "fleet.db"
_VERSION = 1
_SCHEMA = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE hotpatches (
    sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, sequence INTEGER NOT NULL, file TEXT NOT NULL, images TEXT NOT NULL,
    state TEXT NOT NULL, action TEXT NOT NULL, deployment TEXT, since REAL NOT NULL
);
CREATE TABLE baselines (
    sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, sequence INTEGER NOT NULL, format TEXT NOT NULL, file TEXT NOT NULL,
    place TEXT NOT NULL, kept TEXT NOT NULL, images TEXT NOT NULL, replaced TEXT NOT NULL, state TEXT NOT NULL,
    action TEXT NOT NULL, deployment TEXT, since REAL NOT NULL, boot TEXT NOT NULL, deadline REAL, warned INTEGER NOT
    NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT ''
);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, action TEXT NOT NULL, deployment TEXT, result TEXT NOT NULL, reason TEXT NOT
    NULL, detail TEXT NOT NULL, processes INTEGER NOT NULL, stopped_us INTEGER NOT NULL, at REAL NOT NULL, heard INTEGER
    NOT NULL DEFAULT 0, UNIQUE (action, result, reason)
);
"""
_MOST_HEARD = 1000
"""Outcomes that the server has heard and that are kept, so that none is told twice."""
MOST_AT_ONCE = 200
"""Outcomes in one check-in."""

HotpatchState = Literal["in_force", "out", "gone"]
"""``out``: to be taken out, or being so; ``gone``: it is, or was never there."""
BaselineState = Literal["staged", "swapping", "swapped", "current", "returning", "returned", "failed"]


@dataclass(frozen=True, slots=True)
class Ordered:
    """A hotpatch that is, or was, to be in force here."""

    sha256: str
    name: str
    sequence: int
    file: str
    images: tuple[str, ...]
    state: HotpatchState
    action: str
    deployment: str | None
    since: float
    """Wall clock when its state began."""

    @property
    def key(self) -> tuple[str, int]:
        """Name and sequence."""
        return self.name, self.sequence


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline that was laid ready here."""

    sha256: str
    name: str
    sequence: int
    format: str
    file: str
    """What is swapped in: a file beside its place, or a package."""
    place: str
    """The file that it replaces, or the name of the package."""
    kept: str
    """What was there before; empty: nothing was."""
    images: tuple[str, ...]
    replaced: tuple[str, ...]
    """Build-ids of what it replaces."""
    state: BaselineState
    action: str
    deployment: str | None
    since: float
    boot: str
    """The start of the machine during which it was laid ready."""
    deadline: float | None = None
    warned: int = 0
    """How many warnings were given before its restart."""
    detail: str = ""


class Records:
    """The file. Not for several threads.

    Raises:
        StateError: it cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.lost = ""
        """What was lost when a damaged file was put aside; empty: nothing."""
        try:
            self._database = _connect(self.path)
        except sqlite3.DatabaseError as error:
            self._database = self._anew(error)

    def _anew(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        aside = self.path.with_name(f"{FILE}.damaged-{time.time_ns()}")
        try:
            if isinstance(error, sqlite3.OperationalError):
                raise error  # full, locked or not readable: not damaged
            self.path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)
            self.lost = (
                f"{self.path} was damaged ({error}) and is now {aside.name}: what the server ordered begins anew"
            )
            return _connect(self.path)
        except (OSError, sqlite3.Error) as worse:
            raise StateError(f"{self.path} cannot be used: {worse}; free some space or set MIDFLIGHT_STATE") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database:
                yield self._database
        except sqlite3.Error as error:
            raise StateError(f"{self.path} cannot be written ({error}): nothing new begins until it can") from None

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StateError(f"{self.path} cannot be read: {error}") from None

    # -- facts -------------------------------------------------------------------------------------------------------

    def fact(self, key: str, default: Any = None) -> Any:
        """Something that was remembered."""
        rows = self._rows("SELECT value FROM facts WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else default

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Remember, all together. What is the same already is not written.

        Raises:
            StateError: it cannot be written.
        """
        new = [(key, text) for key, value in facts.items() if (text := json.dumps(value)) != json.dumps(self.fact(key))]
        if new:
            with self._writing() as database:
                database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", new)

    # -- hotpatches --------------------------------------------------------------------------------------------------

    def hotpatches(self) -> list[Ordered]:
        """All that are known, oldest first."""
        return [_ordered(row) for row in self._rows("SELECT * FROM hotpatches ORDER BY since")]

    def order(self, ordered: Ordered) -> None:
        """Record a hotpatch, or what becomes of it.

        Raises:
            StateError: it cannot be written; then it is not to be done.
        """
        point(f"fleet-order-{ordered.state}")
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO hotpatches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (
                ordered.sha256, ordered.name, ordered.sequence, ordered.file, json.dumps(ordered.images),
                ordered.state, ordered.action, ordered.deployment, ordered.since,
            ))  # fmt: skip
        point(f"fleet-ordered-{ordered.state}")

    def forget(self, sha256: str) -> None:
        """Remove a hotpatch that is gone."""
        with self._writing() as database:
            database.execute("DELETE FROM hotpatches WHERE sha256 = ?", (sha256,))

    # -- baselines ---------------------------------------------------------------------------------------------------

    def baselines(self) -> list[Baseline]:
        """All that are known, oldest first."""
        return [_baseline(row) for row in self._rows("SELECT * FROM baselines ORDER BY since")]

    def baseline(self, one: Baseline) -> Baseline:
        """Record a baseline, or what becomes of it.

        Raises:
            StateError: it cannot be written; then it is not to be done.
        """
        point(f"fleet-baseline-{one.state}")
        with self._writing() as database:
            values = (
                one.sha256, one.name, one.sequence, one.format, one.file, one.place, one.kept, json.dumps(one.images),
                json.dumps(one.replaced), one.state, one.action, one.deployment, one.since, one.boot, one.deadline,
                one.warned, one.detail,
            )  # fmt: skip
            database.execute(f"INSERT OR REPLACE INTO baselines VALUES ({', '.join('?' * len(values))})", values)
        point(f"fleet-baselined-{one.state}")
        return one

    def drop_baseline(self, sha256: str) -> None:
        """Remove a baseline that something later replaced."""
        with self._writing() as database:
            database.execute("DELETE FROM baselines WHERE sha256 = ?", (sha256,))

    # -- outcomes ----------------------------------------------------------------------------------------------------

    def post(self, outcome: Outcome) -> bool:
        """Keep an outcome until the server has heard it; False: it has one already for this action, result and
        reason.

        Raises:
            StateError: it cannot be written.
        """
        told = "SELECT 1 FROM outbox WHERE action = ? AND result = ? AND reason = ?"
        if self._rows(told, outcome.action, outcome.result, outcome.reason):
            return False
        point(f"fleet-post-{outcome.result}")
        with self._writing() as database:
            database.execute(
                "INSERT INTO outbox (action, deployment, result, reason, detail, processes, stopped_us, at) VALUES "
                "(?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    outcome.action, outcome.deployment, outcome.result, outcome.reason, outcome.detail,
                    outcome.processes, outcome.stopped_us, outcome.at.timestamp(),
                ),
            )  # fmt: skip
        point(f"fleet-posted-{outcome.result}")
        return True

    def unheard(self) -> dict[int, Outcome]:
        """Outcomes that the server has not heard, oldest first, by number."""
        rows = self._rows(
            "SELECT id, action, deployment, result, at, reason, detail, processes, stopped_us FROM outbox "
            "WHERE heard = 0 ORDER BY id LIMIT ?",
            MOST_AT_ONCE,
        )
        return {
            row[0]: Outcome(
                row[1], row[2], cast(Result, row[3]), datetime.fromtimestamp(int(row[4]), UTC), row[5], row[6], row[7],
                row[8],
            )
            for row in rows
        }  # fmt: skip

    def heard(self, numbers: list[int]) -> None:
        """The server has answered a check-in with these."""
        if not numbers:
            return
        with self._writing() as database:
            database.executemany("UPDATE outbox SET heard = 1 WHERE id = ?", [(number,) for number in numbers])
            database.execute(
                "DELETE FROM outbox WHERE heard = 1 AND id <= (SELECT max(id) FROM outbox) - ?", (_MOST_HEARD,)
            )

    def close(self) -> None:
        """Let go."""
        with contextlib.suppress(sqlite3.Error):
            self._database.close()


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What is remembered, for those who look from outside; None: there is no such file.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with contextlib.closing(_connect(path)) as database:
            facts: dict[str, Any] = {k: json.loads(v) for k, v in database.execute("SELECT key, value FROM facts")}
            facts["unheard"] = database.execute("SELECT count(*) FROM outbox WHERE heard = 0").fetchone()[0]
            facts["baselines"] = [_baseline(row) for row in database.execute("SELECT * FROM baselines ORDER BY since")]
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return facts


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StateError(f"{path} was written by a newer Midflight: update this one")
        if version < _VERSION:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    except BaseException:
        database.close()
        raise
    path.chmod(0o600)
    return database


def _ordered(row: tuple[Any, ...]) -> Ordered:
    return replace(Ordered(*row), images=tuple(json.loads(row[4])))


def _baseline(row: tuple[Any, ...]) -> Baseline:
    return replace(Baseline(*row), images=tuple(json.loads(row[7])), replaced=tuple(json.loads(row[8])))
