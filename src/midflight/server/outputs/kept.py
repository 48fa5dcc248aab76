"""Answers that look at every device of a large fleet, kept for a while: nobody but the very first waits for them.

An answer is kept for ``RATIO`` times as long as it took to find (``LONGEST_S`` at most), so that a question costs no
more than that share of a processor however often it is asked; after that the old answer is still given while a thread
finds the new one. What works on every device in Python is found :func:`apart`, in a process of its own, as a thread of
this one would hold up all others (docs/adr/0096)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from sqlalchemy.orm import Session

from midflight.errors import MidflightError
from midflight.server.store.database import Database

T = TypeVar("T")
RATIO = 20.0
LONGEST_S = 600.0
WAITING = 4
"""Requests that may wait for a first answer; more would take the threads from everything else."""
MOST = 64
"""Answers that are kept; those that were asked for least lately go."""
_log = logging.getLogger(__name__)


class StillCounting(MidflightError):
    """An answer that takes long is being found for others; it is there in a while."""


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any
    good_until: float


class Kept:
    """The answers of one process; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        """They are found one after the other, so that they leave the processors and connections to others."""
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._renewed: set[Hashable] = set()

    def get(self, question: Hashable, find: Callable[[Session], T]) -> T:
        """The answer. ``find`` gets a session to read with, and may run in another thread after this has returned. The
        caller must hold no connection to the database while it waits.

        Raises:
            StillCounting: others wait for answers already.
            Exception: what ``find`` raises, when there is no answer yet.
        """
        known = self._known(question)
        if known is None:
            known = self._first(question, find)
        elif time.monotonic() > known.good_until:
            self._renew(question, find)
        return cast(T, known.value)

    def _first(self, question: Hashable, find: Callable[[Session], Any]) -> _Answer:
        if not self._waiting.acquire(blocking=False):
            raise StillCounting("this is being counted over the whole fleet; come again in a few seconds")
        try:
            with self._one_at_a_time:
                # whoever waited for another one with the same question has its answer now
                return self._known(question) or self._find(question, find)
        finally:
            self._waiting.release()

    def _known(self, question: Hashable) -> _Answer | None:
        with self._lock:
            known = self._answers.get(question)
            if known is not None:
                self._answers.move_to_end(question)
            return known

    def _find(self, question: Hashable, find: Callable[[Session], Any]) -> _Answer:
        begin = time.monotonic()
        with self._database.read() as session:
            value = find(session)
        took = time.monotonic() - begin
        answer = _Answer(value, time.monotonic() + min(RATIO * took, LONGEST_S))
        with self._lock:
            self._answers[question] = answer
            self._answers.move_to_end(question)
            while len(self._answers) > MOST:
                self._answers.popitem(last=False)
        return answer

    def _renew(self, question: Hashable, find: Callable[[Session], Any]) -> None:
        with self._lock:
            if question in self._renewed:
                return
            self._renewed.add(question)

        def work() -> None:
            try:
                with self._one_at_a_time:
                    self._find(question, find)
            except Exception as error:  # the old answer is given until it goes well again
                _log.warning("%s is not found anew: %s", question, error)
            finally:
                with self._lock:
                    self._renewed.discard(question)

        threading.Thread(target=work, name="kept", daemon=True).start()


def apart(database: Database, find: Callable[..., T], *given: Any) -> T:
    """What ``find(session, *given)`` returns in a process of its own, of low priority, that ends with it. The function
    (of a module), what it is given and what it returns are pickled.

    Raises:
        MidflightError: it failed there; the log of this server says how.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    url = database.url.render_as_string(hide_password=False)
    process = context.Process(target=_apart, args=(there, url, find, given), name="midflight-apart", daemon=True)
    process.start()
    there.close()
    try:
        return cast(T, here.recv())
    except EOFError:
        raise MidflightError(f"{find.__name__} failed in its process; the server's log says why") from None
    finally:
        here.close()
        process.join()


def _apart(there: Connection, url: str, find: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.nice(10)
    database = Database(url, 1)
    with database.read() as session:
        there.send(find(session, *given))
    database.close()
