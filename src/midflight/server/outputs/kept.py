"""Answers that take long to find, kept for a while: nobody but the very first waits for them.

What was found in less than ``QUICK_S`` is found anew each time. What takes longer is kept for ``RATIO`` times as long
as it took (``LONGEST_S`` at most), so that a question costs no more than that share of a processor however often it is
asked; after that the old answer is still given while a thread finds the new one (docs/adr/0095)."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy.orm import Session

from midflight.errors import MidflightError
from midflight.server.store.database import Database

T = TypeVar("T")
QUICK_S = 0.2
RATIO = 20.0
LONGEST_S = 600.0
WAITING = 4
"""Requests that may wait for a first answer; more would take the threads from everything else."""
MOST = 64
"""Answers that are kept, the ones that were asked for least lately go."""
_log = logging.getLogger(__name__)


class StillCounting(MidflightError):
    """An answer that takes long is being found for others; it is there in a while."""


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any
    found: float
    took: float

    @property
    def good(self) -> bool:
        return time.monotonic() < self.found + min(RATIO * self.took, LONGEST_S)


class Kept:
    """The answers of one process; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._waiting = threading.BoundedSemaphore(WAITING)
        """Questions that take long are worked on one after the other, so that they leave the rest of the processors and
        connections to others."""
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._renewed: set[Hashable] = set()

    def get(self, question: Hashable, find: Callable[[Session], T]) -> T:
        """The answer; ``find`` gets a session to read with, and may run in another thread after this has returned. The
        caller keeps no connection to the database while it waits.

        Raises:
            StillCounting: others wait for answers already.
            Exception: what ``find`` raises, when there is no answer yet.
        """
        known = self._known(question)
        if known is None:
            known = self._first(question, find)
        elif known.took < QUICK_S:
            known = self._find(question, find)
        elif not known.good:
            self._renew(question, find)
        return cast(T, known.value)

    def _first(self, question: Hashable, find: Callable[[Session], Any]) -> _Answer:
        if not self._waiting.acquire(blocking=False):
            raise StillCounting("this is being counted over the whole fleet; come again in a few seconds")
        try:
            with self._one_at_a_time:
                # whoever waited for another one with the same question has its answer now
                known = self._known(question)
                return known if known is not None and known.took >= QUICK_S else self._find(question, find)
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
        answer = _Answer(value, time.monotonic(), time.monotonic() - begin)
        with self._lock:
            # a quick one need not be remembered, but how quick it was
            self._answers[question] = answer if answer.took >= QUICK_S else _Answer(None, answer.found, answer.took)
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
