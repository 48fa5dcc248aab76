"""Many requests at once: each gets its turn, none waits for what another can never give it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from midflight.server.api.turns import AT_ONCE, takes_a_turn
from midflight.server.store.database import Database, DatabaseError, Queue
from tests.server.conftest import on_sqlite
from tests.server.security.test_authorization import STATIC, rules

MANY = 3 * AT_ONCE


async def _all_at_once(app: FastAPI, token: str, database: Database) -> list[int]:
    """Statuses of many requests, half of them writing, that come while somebody else is writing."""
    headers = {"Authorization": f"Bearer {token}"}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://test", headers=headers, timeout=60) as client:
        with database.write():
            waiting = [
                asyncio.ensure_future(client.post("/api/v1/groups", json={"name": f"g-{n}"}))
                if n % 2
                else asyncio.ensure_future(client.get("/api/v1/groups"))
                for n in range(MANY)
            ]
            await asyncio.sleep(0.5)  # all have come, and taken what they can get
        return [answer.status_code for answer in await asyncio.gather(*waiting)]


def test_many_that_read_and_write_at_once_are_all_answered(app: FastAPI, database: Database, admin_token: str) -> None:
    statuses = asyncio.run(_all_at_once(app, admin_token, database))
    assert sorted(statuses) == [200] * (MANY // 2) + [201] * (MANY // 2)


@on_sqlite
def test_whatever_works_on_the_database_takes_turns(app: FastAPI) -> None:
    without = {rule.path for rule in rules(app) if not rule.page and not takes_a_turn(rule.path)}
    free = {path for path in without if not path.startswith(STATIC)}
    assert free == {"/healthz", "/.well-known/jwks.json"}
    assert not any(takes_a_turn(rule.path) for rule in rules(app) if rule.page)


@on_sqlite
def test_a_request_that_is_too_large_is_refused_as_before(admin: TestClient) -> None:
    answer = admin.post("/api/v1/groups", content=(b"x" * 65536 for _ in range(32)))  # its length is not announced
    assert answer.status_code == 413


async def _one_that_never_ends(app: FastAPI, token: str) -> int:
    """The status of a request that changes something, while others have not sent all of theirs."""
    headers = {"Authorization": f"Bearer {token}"}
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="https://test", headers=headers, timeout=60) as client:
        slow = [
            asyncio.ensure_future(client.post("/api/v1/policies/none/resume", content=trickle()))
            for _ in range(AT_ONCE + 1)
        ]
        await asyncio.sleep(0.2)
        answer = await client.post("/api/v1/groups", json={"name": "web"})
        never.set()
        await asyncio.gather(*slow)
        return answer.status_code


@on_sqlite
def test_who_sends_slowly_holds_up_nobody(app: FastAPI, admin_token: str) -> None:
    assert asyncio.run(_one_that_never_ends(app, admin_token)) == 201


def test_writers_get_their_turn_in_the_order_in_which_they_came() -> None:
    queue, order = Queue(), list[int]()
    came = threading.Semaphore(0)

    def write(number: int) -> None:
        came.release()
        with queue.turn(60):
            order.append(number)

    with queue.turn(60):
        writers = []
        for number in range(20):
            writers.append(threading.Thread(target=write, args=(number,)))
            writers[-1].start()
            came.acquire()
            while len(queue) <= number:
                pass
    for writer in writers:
        writer.join()
    assert order == list(range(20))


def test_who_waits_too_long_gives_up_and_leaves_the_queue_as_it_was() -> None:
    queue = Queue()
    with queue.turn(60), pytest.raises(DatabaseError, match="writing"), queue.turn(0.01):
        pass
    with queue.turn(0):
        assert len(queue) == 0
