"""Answers over a large fleet: found once and kept, found anew beside the requests, in a process of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from midflight.errors import MidflightError
from midflight.server.api import deps
from midflight.server.outputs import kept
from midflight.server.outputs.kept import WAITING, Kept, StillCounting, apart
from midflight.server.store.database import Database
from tests.server.conftest import on_sqlite
from tests.server.device import Device
from tests.server.outputs.test_reports import publish

PATHS = (
    "/api/v1/reports/fleet",
    "/api/v1/reports/vex",
    "/api/v1/content/con-hp/preview",
    "/api/v1/compliance/history",
    "/api/v1/reports/coverage/CVE-2026-1111",
)


def _without_times(document: object) -> object:
    if isinstance(document, dict):
        return {
            key: _without_times(value)
            for key, value in document.items()
            if key not in ("at", "since", "tracking", "notes", "states")
        }
    return [_without_times(each) for each in document] if isinstance(document, list) else document


def test_a_large_fleet_gets_the_answers_of_a_small_one_and_keeps_them(
    database: Database, admin: TestClient, new_device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(database)
    new_device(), new_device()
    small = {path: admin.get(path) for path in PATHS}
    monkeypatch.setattr(deps, "LARGE", 1)
    monkeypatch.setattr(kept, "RATIO", 1e9)
    large = {path: admin.get(path) for path in PATHS}
    for path in PATHS:
        assert large[path].status_code == small[path].status_code == 200, large[path].text
        assert _without_times(large[path].json()) == _without_times(small[path].json())
    new_device()
    assert {path: admin.get(path).content for path in PATHS} == {path: large[path].content for path in PATHS}
    monkeypatch.setattr(deps, "LARGE", 1000)
    assert admin.get(PATHS[0]).json()["devices"]["total"] == 3


@on_sqlite
def test_an_old_answer_is_given_while_the_new_one_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "RATIO", 0.0)
    answers, go, begun = iter(range(100)), threading.Event(), threading.Event()
    one = Kept(database)
    assert one.get("q", lambda _session: next(answers)) == 0

    def slowly(_session: Session) -> int:
        begun.set()
        assert go.wait(60)
        return next(answers)

    assert one.get("q", slowly) == 0
    assert begun.wait(60)
    assert one.get("q", slowly) == 0, "nobody waits, and it is not begun twice"
    go.set()
    while one.get("q", slowly) == 0:
        pass


@on_sqlite
def test_only_a_few_wait_for_a_first_answer(database: Database) -> None:
    go, begun = threading.Event(), threading.Event()
    one, found = Kept(database), []

    def slowly(_session: Session) -> str:
        begun.set()
        assert go.wait(60)
        return "found"

    waiting = [threading.Thread(target=lambda: found.append(one.get("q", slowly))) for _ in range(WAITING)]
    for thread in waiting:
        thread.start()
    assert begun.wait(60)
    while one._waiting._value:
        time.sleep(0.001)
    with pytest.raises(StillCounting):
        one.get("q", slowly)
    go.set()
    for thread in waiting:
        thread.join()
    assert found == ["found"] * WAITING


def whose(session: Session, word: str) -> tuple[str, int, int, str]:
    return word, os.getpid(), os.nice(0), session.get_bind().dialect.name


def die(_session: Session) -> None:
    os._exit(3)


def test_what_is_found_apart_is_found_by_another_process(database: Database) -> None:
    word, pid, nice, dialect = apart(database, whose, "given")
    assert (word, dialect) == ("given", database.engine.dialect.name)
    assert pid != os.getpid() and nice == min(19, os.nice(0) + 10)
    with pytest.raises(MidflightError, match="die failed"):
        apart(database, die)
