"""The background tasks: what is done again and again, how often, and one way to run them all.

Embedded (SQLite, one process) they run on a timer inside the API process; with PostgreSQL, ``midflight server
worker`` runs them through procrastinate. Either way each may run in several processes at once: the functions see to
it themselves.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from midflight.server.settings import Settings
from midflight.server.store.database import Database
from midflight.server.store.fleet import FleetCache
from midflight.server.work import devices, rollouts, upkeep

_log = logging.getLogger(__name__)

MODULES: tuple[str, ...] = ("midflight.server.work.tasks", "midflight.server.outputs.tasks")
"""Modules that have TASKS (one line for each)."""


@dataclass(frozen=True, slots=True)
class Context:
    """What tasks work with."""

    database: Database
    settings: Settings
    fleet: FleetCache = field(default_factory=FleetCache)


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is done every so often. ``run`` may be killed at any moment, and is simply run again."""

    name: str
    every: timedelta
    run: Callable[[Context, datetime], object]


TASKS: tuple[Task, ...] = (
    Task(
        "take-catalogue", timedelta(seconds=10), lambda c, now: upkeep.take_catalogue(c.database, c.settings, now)
    ),
    Task("regroup", timedelta(seconds=5), lambda c, now: devices.regroup(c.database, c.fleet, now)),
    Task("propose", timedelta(seconds=10), lambda c, now: upkeep.propose(c.database, c.fleet, now)),
    Task("advance", timedelta(seconds=5), lambda c, now: rollouts.advance_all(c.database, c.fleet, now)),
    Task("silence", timedelta(seconds=30), lambda c, now: devices.mark_silence(c.database, c.fleet, now)),
    Task("compliance", timedelta(seconds=10), lambda c, now: devices.evaluate_compliance(c.database, c.fleet, now)),
    Task("fold", timedelta(seconds=10), lambda c, now: upkeep.fold(c.database)),
    Task("repository", timedelta(minutes=5), lambda c, now: upkeep.renew_repository(c.settings, now)),
    Task("prune", timedelta(hours=1), lambda c, now: upkeep.prune(c.database, c.settings, now)),
)  # fmt: skip


def all_tasks() -> list[Task]:
    """The tasks of all modules."""
    return [task for name in MODULES for task in importlib.import_module(name).TASKS]


class Timer:
    """Runs what is due, one task after the other, in the thread that calls :meth:`tick`."""

    def __init__(self, context: Context, tasks: Sequence[Task] | None = None) -> None:
        self._context = context
        self._tasks = list(all_tasks() if tasks is None else tasks)
        self._due: dict[str, datetime] = {}

    def tick(self, now: datetime) -> list[str]:
        """Run what is due; a task that fails is logged and tried again at its next time. Returns the names."""
        ran = []
        for task in self._tasks:
            if now < self._due.get(task.name, now):
                continue
            self._due[task.name] = now + task.every
            run(task, self._context, now)
            ran.append(task.name)
        return ran


def run(task: Task, context: Context, now: datetime) -> bool:
    """Run a task; returns whether it went well. What went wrong is logged."""
    try:
        task.run(context, now)
    except Exception:
        _log.exception("background task %s failed; it is tried again in %s", task.name, task.every)
        return False
    return True
