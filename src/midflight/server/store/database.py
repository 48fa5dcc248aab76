"""The connection to the database: one engine a process, sessions for reading and for writing.

SQLite runs in WAL mode; a writing transaction takes the write lock when it begins, so that two writers wait for each
other (30 s at most) and never fail half-way. Those of one process wait in a queue, before they take a connection:
SQLite itself lets writers look again and again who comes first, in which one of many may starve. PostgreSQL runs at
READ COMMITTED; rows that must be changed by one worker alone are locked with FOR UPDATE SKIP LOCKED (see
:func:`claimed`)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import orjson
from sqlalchemy import Engine, Select, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from midflight.errors import InputError, MidflightError
from midflight.server.store import meta

Query = TypeVar("Query", bound=Select[Any])


_TRY_AGAIN = ("40001", "40P01")
"""SQLSTATE of a transaction that lost against another one (serialization failure, deadlock)."""


def lost_a_race(error: DBAPIError) -> bool:
    """Whether the same transaction may well succeed when it is tried again."""
    return getattr(error.orig, "sqlstate", None) in _TRY_AGAIN


class DatabaseError(MidflightError):
    """The database cannot be reached, or is not at the version that this program needs."""


UNAVAILABLE = (DBAPIError, PoolTimeout, DatabaseError)
"""What a transaction may raise through no fault of its own; the same may well succeed later."""
_PATIENCE_S = 30


def reason(error: Exception) -> str:
    """Why it could not be done, in one line, for the log."""
    return " ".join(str((isinstance(error, DBAPIError) and error.orig) or error).split())


class Queue:
    """A lock that is had in the order in which it was asked for. It may be let go by another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def __len__(self) -> int:
        """How many wait for it."""
        return len(self._waiting)

    @contextmanager
    def turn(self, patience_s: float) -> Iterator[None]:
        """Have it for the block.

        Raises:
            DatabaseError: others had it for longer than one wants to wait.
        """
        called = threading.Event()
        with self._lock:
            if self._held:
                self._waiting.append(called)
            else:
                self._held = True
                called.set()
        if not called.wait(patience_s):
            with self._lock:
                if not called.is_set():
                    self._waiting.remove(called)
                    raise DatabaseError(f"others have been writing for {patience_s:g} s; try again")
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._held = False


def json_text(value: Any) -> str:
    """JSON as stored; keys that are no strings become strings.

    Raises:
        InputError: there is a number of more than 64 bits in it, or a text that is none.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError as error:
        raise InputError(f"this cannot be kept: {error}") from None


class Database:
    """A database, connected lazily; safe to share between threads, not between processes."""

    def __init__(self, url: str, connections: int = 8) -> None:
        """Does not connect yet.

        Raises:
            InputError: the URL is none, or of another database.
        """
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise InputError(f"{url!r} is no database URL; give sqlite:///FILE or postgresql+psycopg://…") from None
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
            raise InputError(f"{parsed.drivername} is not supported; give sqlite:///FILE or postgresql+psycopg://…")
        self.url = parsed
        self.sqlite = parsed.drivername == "sqlite"
        self.engine = self._sqlite(connections) if self.sqlite else self._postgresql(connections)
        self._writers = Queue() if self.sqlite else None
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        event.listen(self._sessions, "before_commit", meta.write_stamps)

    def _sqlite(self, connections: int) -> Engine:
        engine = create_engine(
            self.url,
            json_serializer=json_text,
            json_deserializer=orjson.loads,
            pool_size=connections,
            max_overflow=0,
            connect_args={"timeout": _PATIENCE_S, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # the driver begins nothing by itself; we say when, and how
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begun(connection: Any) -> None:
            writing = connection.get_execution_options().get("writing")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

        return engine

    def _postgresql(self, connections: int) -> Engine:
        return create_engine(
            self.url,
            json_serializer=json_text,
            json_deserializer=orjson.loads,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 10, "application_name": "midflight"},
        )

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; nothing of it is kept."""
        session = self._sessions()
        try:
            yield session
        finally:
            session.rollback()
            session.close()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that writes: committed when the block ends, rolled back when it raises."""
        with self._writers.turn(_PATIENCE_S) if self._writers is not None else nullcontext():
            session = self._sessions()
            try:
                session.connection(execution_options={"writing": True})
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise
            finally:
                session.close()

    def check(self) -> None:
        """Whether it answers.

        Raises:
            DatabaseError: it does not.
        """
        try:
            with self.read() as session:
                session.execute(text("SELECT 1"))
        except OperationalError as error:
            raise DatabaseError(
                f"database {self.url.render_as_string(hide_password=True)} does not answer: "
                f"{str(error.orig).splitlines()[0]}; start it or mend the setting database"
            ) from None

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def claimed(statement: Query) -> Query:
    """The statement with its rows locked for this transaction alone, rows that others hold left out.

    SQLite has no row locks and needs none: a writing transaction has the whole database.
    """
    return statement.with_for_update(skip_locked=True)
