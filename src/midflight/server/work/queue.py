"""The background tasks on PostgreSQL: procrastinate keeps when each is due and lets one worker do it, however many
there are.

A task that was cut off (its worker was killed) is due again at its next time, as all of them are periodic and begin
where they were left; jobs that hang as "doing" are closed by the next worker that starts.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.jobs import Status
from sqlalchemy import text

from midflight.server.store.database import Database
from midflight.server.work.tasks import Context, Task, all_tasks, run

_log = logging.getLogger(__name__)
QUEUE = "midflight"


def ensure_schema(database: Database) -> bool:
    """Make procrastinate's tables, when there are none; returns whether they were made."""
    with database.engine.connect() as connection:
        there = connection.scalar(text("SELECT to_regclass('procrastinate_jobs')"))
    if there is not None:
        return False
    app = _app(database)
    with app.open():
        app.schema_manager.apply_schema()
    return True


def _app(database: Database) -> App:
    return App(connector=SyncPsycopgConnector(conninfo=_conninfo(database)))


def _conninfo(database: Database) -> str:
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


def worker_app(context: Context) -> App:
    """procrastinate's application: each task by its name, queued at its times."""
    app = App(connector=PsycopgConnector(conninfo=_conninfo(context.database)))
    for task in all_tasks():
        _register(app, task, context)

    @app.periodic(cron=cron(timedelta(seconds=30)))
    @app.task(name="close-stalled", queue=QUEUE, queueing_lock="close-stalled")
    async def close(timestamp: int) -> None:
        await close_stalled(app)

    del close
    return app


def _register(app: App, task: Task, context: Context) -> None:
    @app.periodic(cron=cron(task.every), periodic_id=task.name)
    @app.task(name=task.name, queue=QUEUE, queueing_lock=task.name, lock=task.name, pass_context=False)
    def work(timestamp: int) -> None:
        run(task, context, datetime.now(UTC))

    del work


def cron(every: timedelta) -> str:
    """The cron expression (with seconds, as the sixth field) for a task that is done every so often.

    Raises:
        ValueError: it is not a whole number of seconds that divides a minute, minutes that divide an hour, or an hour.
    """
    seconds = int(every.total_seconds())
    if 0 < seconds < 60 and 60 % seconds == 0:
        return f"* * * * * */{seconds}"
    if seconds % 60 == 0 and 0 < seconds < 3600 and 3600 % seconds == 0:
        return f"*/{seconds // 60} * * * *"
    if seconds == 3600:
        return "0 * * * *"
    raise ValueError(f"no cron expression for every {every}")


async def work(context: Context) -> None:
    """Do background work until stopped (SIGTERM, SIGINT): what is begun is finished."""
    app = worker_app(context)
    async with app.open_async():
        await close_stalled(app)
        await app.run_worker_async(queues=[QUEUE], concurrency=2, listen_notify=True, delete_jobs="always")


async def close_stalled(app: App) -> int:
    """Close the jobs of workers that were killed: they would keep their lock. Returns how many."""
    stalled = list(await app.job_manager.get_stalled_jobs())
    for job in stalled:
        if job.id is not None:
            await app.job_manager.finish_job_by_id_async(job.id, Status.FAILED, delete_job=True)
            _log.warning("background task %s was cut off; it is done again at its next time", job.task_name)
    return len(stalled)
