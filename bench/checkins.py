"""Check-ins of a whole fleet: latency and cost at the pace of 100,000 devices every 5 minutes, the stampede after an
outage, and whether the queries stay as fast with 1,000,000 devices as with 1,000.

PostgreSQL, two API processes and the load share this machine, over loopback, each request on a connection of its own,
as devices make them; without TLS (which a proxy may do), then with a whole handshake for each. Most check-ins bring
nothing new; some bring a changed state (NEWS).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
from sqlalchemy import text

from bench.measure import PROGRAMS, WORK, median, save, table
from midflight.server.install import install
from midflight.server.settings import Settings
from midflight.server.store import tables  # noqa: F401 - all tables
from midflight.server.store.base import to_micros
from midflight.server.store.database import Database
from midflight.server.store.documents import rings_of
from midflight.server.store.fleet import FleetCache
from midflight.server.store.tallies import recounts
from midflight.trust import checkin
from midflight.trust.keys import PrivateKey
from midflight.trust.requests import sign_request
from tests.server.postgresql import PostgreSQL

DEVICES = 100_000
INTERVAL_S = 300
SECONDS = 30
NEWS = 0.02
"""Share of the check-ins that bring a changed state."""
STAMPEDE = 4
"""How many times the usual rate the stampede comes at."""
SIZES = (1_000, 100_000, 1_000_000)
PROCESSES = 2
STATE = checkin.State("web", "linux-x86_64", "6.1.0-28-amd64", "0.1.0", "Europe/Berlin", "boot", 1024)
DIGEST = checkin.digest_of(checkin.state_document(STATE))
INVENTORY = "1" * 64
COMPLIANT, STALE = ("compliant", "up_to_date_hotpatched"), ("stale", "stale")
APPLIED, FAILED = ("applied", "applied"), ("failed", "failed")
POLICY: dict[str, Any] = {"rings": [{"name": "rest", "kind": "rest"}], "audience": {"groups": ["grp-all"]}}


@dataclass(frozen=True)
class Identity:
    """A device that is made up; all of them share one key."""

    key: PrivateKey
    fingerprint: str


def main() -> None:
    """Measure and print."""
    folder = WORK / "checkins"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    load = folder / "load"
    subprocess.run(["cc", "-O2", "-o", str(load), str(PROGRAMS / "load.c"), "-lssl", "-lcrypto"], check=True)
    key = PrivateKey.generate()
    server = PostgreSQL(
        {"shared_buffers": "512MB", "synchronous_commit": "on", "max_wal_size": "4GB", "jit": "off"}, fsync=True
    )
    try:
        url = server.create()
        made = install(folder / "server", database=url, listen="127.0.0.1:18443", public_url="https://bench.invalid")
        settings = Settings.load(made.settings.folder)
        database = Database(url)
        flat, long = [], []
        have = 0
        for size in SIZES:
            seed(url, have, size, key)
            have = size
            flat.append({"size": size} | queries(database, size))
            if size <= DEVICES:
                long.append({"size": size} | slow(database, url))
            if size == DEVICES:
                runs = loads(folder, load, settings, server, key)
        database.close()
    finally:
        server.remove()
    report(runs, flat, long)


def report(runs: list[dict[str, Any]], flat: list[dict[str, Any]], long: list[dict[str, Any]]) -> None:
    """Tables, and the JSON."""
    table(
        f"Check-ins of {DEVICES:,} devices, {PROCESSES} API processes and PostgreSQL on {os.cpu_count()} cores",
        ["load", "rate /s", "answered", "sent away", "lost", "p50 ms", "p99 ms", "max ms", "CPU ms API", "CPU ms DB"],
        [
            [
                run["load"],
                f"{run['rate']:.0f}",
                str(run["ok"]),
                str(run["away"]),
                str(run["failed"] + run["other"]),
                f"{run['p50_ms']:.1f}",
                f"{run['p99_ms']:.1f}",
                f"{run['max_ms']:.0f}",
                f"{run['cpu_api_ms']:.2f}",
                f"{run['cpu_db_ms']:.2f}",
            ]
            for run in runs
        ],
    )
    for title, lines in (
        ("Queries by number of devices (median, ms)", flat),
        ("What looks at every device, found beside the requests and kept", long),
    ):
        names = [name for name in lines[0] if name != "size"]
        sizes = [f"{line['size']:,}" for line in lines]
        table(title, ["", *sizes], [[name, *(f"{line[name]:.2f}" for line in lines)] for name in names])
    save("checkins", {"runs": runs, "queries": flat, "slow": long})


# -- a fleet that is made up


def seed(url: str, first: int, last: int, key: PrivateKey) -> None:
    """Devices from number ``first`` up to ``last``, five images each, all in one group and one deployment that is
    done."""
    now = to_micros(datetime.now(UTC))
    day = 86_400_000_000
    until = now + 30 * day
    state = json.dumps(checkin.state_document(STATE))
    same = {
        "token_id": "",
        "platform": STATE.platform,
        "kernel": STATE.kernel,
        "agent": STATE.agent,
        "timezone": STATE.timezone,
        "boot_id": STATE.boot_id,
        "memory_free_mib": STATE.memory_free_mib,
        "tags": "{}",
        "state_digest": DIGEST,
        "inventory_digest": INVENTORY,
        "sequence": 0,
        "integrity_violated": False,
        "restart_pending": False,
        "hotpatched": True,
        "lifted": "[]",
        "disabled_reason": "",
        "policy_id": "pol-all",
        "governance": "",
        "governance_detail": "",
        "version": 1,
    }
    with psycopg.connect(url.replace("+psycopg", "")) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")  # foreign keys are right, and need not be looked up
        if first == 0:
            _seed_once(cursor, now)
        ids = [device(n) for n in range(first, last)]
        _copy(
            cursor,
            f"device (id, machine_id, hostname, state, reported, enrolled, {', '.join(same)})",
            ((id, id, f"host-{id[4:]}", state, now, now, *same.values()) for id in ids),
        )
        _copy(
            cursor,
            "certificate (fingerprint, device_id, public_key, not_before, not_after, pem, revoked, revoked_reason)",
            ((fingerprint(n), device(n), key.public.raw, now - day, until, "", None, None) for n in range(first, last)),
        )
        _copy(cursor, "presence (device_id, last_seen)", ((id, now) for id in ids))
        _copy(
            cursor,
            "answer (device_id, sequence, digest, expires, until, interval_s, regroup)",
            ((id, 1, "0" * 64, until, until, INTERVAL_S, False) for id in ids),
        )
        _copy(
            cursor,
            "device_image (device_id, image_id, processes)",
            ((id, 1 + (n * 7 + k * 31) % 200, 3) for n, id in enumerate(ids, first) for k in range(5)),
        )
        _copy(cursor, "group_member (group_id, device_id, listed)", (("grp-all", id, True) for id in ids))
        _copy(
            cursor,
            "compliance (device_id, policy_id, state, reason, detail, hotpatched, since, until, evaluated)",
            (
                (id, "pol-all", *(COMPLIANT if n % 50 else STALE), "", True, now, until, now)
                for n, id in enumerate(ids, first)
            ),
        )
        _copy(
            cursor,
            "compliance_change (device_id, at, state, before, reason, detail, policy_id)",
            (
                (id, now - n * 7 % 20 * day - n, "compliant", "unknown", "up_to_date_hotpatched", "", "pol-all")
                for n, id in enumerate(ids, first)
            ),
        )
        _copy(
            cursor,
            "membership (deployment_id, device_id, ring, state, reason, detail, since, offered)",
            (("dpl-all", id, 0, *(FAILED if n < 50 else APPLIED), "", now, now) for n, id in enumerate(ids, first)),
        )
        _copy(
            cursor,
            "outcome (device_id, action, result, deployment_id, content_id, reason, detail, processes, stopped_us, at,"
            " received)",
            (
                (id, "dpl-all.apply.1", "applied", "dpl-all", "hotpatch:p:1", "", "", 3, 150, now - n, now - n)
                for n, id in enumerate(ids, first)
            ),
        )
        _copy(
            cursor,
            "device_patch (device_id, sha256, build_id, content_id, name, sequence, processes, missing, stopped_us)",
            ((id, "2" * 64, f"{7:040x}", "hotpatch:p:1", "p", 1, 3, 0, 150) for id in ids),
        )
        _copy(
            cursor,
            "event (uid, kind, at, subject, actor, data, dispatched)",
            ((f"u{id}", "patch.applied", now, id, f"device:{id}", "{}", now) for id in ids),
        )
        cursor.execute("TRUNCATE tally")  # no trigger ran
        for statement in recounts():
            cursor.execute(statement)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def _seed_once(cursor: psycopg.Cursor[Any], now: int) -> None:
    def insert(table: str, **values: Any) -> None:
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))

    insert("content_cve", content_id="hotpatch:p:1", cve="CVE-2026-1", cvss=9.8, severity="high", exploited=False)
    insert("content_image", content_id="hotpatch:p:1", build_id=f"{7:040x}")
    insert("device_group", id="grp-all", name="all", description="", rule="", created=now, version=1)
    document = json.dumps(POLICY)
    insert("policy", id="pol-all", name="all", priority=0, document=document, created=now, updated=now, version=1)
    insert(
        "content",
        **{"id": "hotpatch:p:1", "kind": "hotpatch", "name": "p", "package": "p", "sequence": 1, "path": "p"},
        **{"sha256": "2" * 64, "length": 1, "classification": "security", "severity": "high", "description": ""},
        **{"published": now, "supersedes": "[]", "details": "{}", "revoked_reason": "", "revoked_revert": False},
        **{"missing": False, "version": 1},
    )
    insert(
        "deployment",
        **{"id": "dpl-all", "content_id": "hotpatch:p:1", "policy_id": "pol-all", "created": now, "created_by": "x"},
        **{"starts": now, "requested": "none", "effective": "done", "reason": "done_offered", "detail": ""},
        **{"since": now, "ring": 1, "ring_since": now, "first_offer": now, "accepted": "[]", "expedite": False},
        **{"rings": json.dumps(POLICY["rings"]), "live": True, "populated": now, "version": 1},
    )
    for name in ("catalogue", "deployments", "groups", "policies"):
        cursor.execute("INSERT INTO stamp VALUES (%s, 1) ON CONFLICT (name) DO UPDATE SET value = 9", (name,))
    for n in range(200):
        package = "p" if n % 2 else f"lib{n}"
        insert("image", build_id=f"{n:040x}", path=f"/usr/lib/lib{n}.so", package=package, version="1")


def _copy(cursor: psycopg.Cursor[Any], what: str, rows: Iterator[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {what} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def device(number: int) -> str:
    """The id of a device. Scattered, as ids are: neighbours in time are no neighbours in the index."""
    return f"dev-{number * 2654435761 % (1 << 32):08x}{number:08x}"


def fingerprint(number: int) -> str:
    """Of its certificate."""
    return f"{number * 40503 % (1 << 32):08x}{number:056x}"


# -- load


def loads(folder: Path, load: Path, settings: Settings, server: PostgreSQL, key: PrivateKey) -> list[dict[str, Any]]:
    """The usual pace with and without news, then the stampede."""
    rate = DEVICES / INTERVAL_S
    order = random.Random(1).sample(range(DEVICES), DEVICES)
    numbers = iter(order)
    plans: list[tuple[str, float, int, float, bool]] = [
        ("quiet", rate, SECONDS, 0.0, False),
        (f"{NEWS:.0%} with news", rate, SECONDS, NEWS, False),
        ("stampede", rate * STAMPEDE, 15, 0.0, False),
        ("after it", rate, 10, 0.0, False),
        (f"{NEWS:.0%} with news, TLS", rate, SECONDS, NEWS, True),
        ("stampede, TLS", rate * STAMPEDE, 15, 0.0, True),
        ("after it, TLS", rate, 10, 0.0, True),
    ]
    found = []
    for tls in (False, True):
        with serving(settings, tls) as api:
            path = folder / "requests"
            prepare(path, list(itertools.islice(numbers, 500)), key, NEWS)
            run(load, path, rate / 2, 500, tls)
            for name, pace, seconds, news, with_tls in plans:
                if with_tls is not tls:
                    continue
                count = int(pace * seconds)
                prepare(path, list(itertools.islice(numbers, count)), key, news)
                before = cpu(api), cpu(server.pid)
                result = run(load, path, pace, count, tls)
                after = cpu(api), cpu(server.pid)
                answered = max(1, result["ok"])
                found.append(
                    {"load": name, "rate": pace}
                    | result
                    | {
                        "cpu_api_ms": (after[0] - before[0]) * 1e3 / answered,
                        "cpu_db_ms": (after[1] - before[1]) * 1e3 / answered,
                    }
                )
    return found


def prepare(path: Path, numbers: list[int], key: PrivateKey, news: float) -> None:
    """Signed requests, ready to be sent, one for each device."""
    now = datetime.now(UTC)
    draw = random.Random(len(numbers))
    quiet = checkin.CheckIn(now.replace(microsecond=0), 1, DIGEST, INVENTORY)
    with path.open("wb") as file:
        for number in numbers:
            message = quiet
            if draw.random() < news:
                state = replace(STATE, memory_free_mib=256 * draw.randrange(5, 60))
                digest = checkin.digest_of(checkin.state_document(state))
                message = replace(quiet, state=state, state_digest=digest)
            body = checkin.encode_check_in(message)
            headers = sign_request(
                Identity(key, fingerprint(number)), "POST", checkin.CHECK_IN_PATH, body, to_micros(now), now
            )
            lines = [f"POST {checkin.CHECK_IN_PATH} HTTP/1.1", "host: bench", "connection: close"]
            lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
            data = "\r\n".join([*lines, "", ""]).encode() + body
            file.write(struct.pack("=I", len(data)) + data)


def run(load: Path, path: Path, rate: float, count: int, tls: bool) -> dict[str, Any]:
    """Send; what came of it."""
    command = [str(load), "18443", str(path), str(rate), str(count), *(["tls"] if tls else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    if done.stderr:
        print(done.stderr[:500], file=sys.stderr)
    return dict(json.loads(done.stdout))


@contextmanager
def serving(settings: Settings, tls: bool) -> Iterator[int]:
    """A server with its processes; the pid of the first."""
    environment = os.environ | {"MIDFLIGHT_SERVER_TLS": str(tls).lower()}
    ready = f"http{'s' if tls else ''}://127.0.0.1:18443/readyz"
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    command = [sys.executable, "-m", "midflight", "server", "run", str(settings.folder)]
    process = subprocess.Popen([*command, "--processes", str(PROCESSES), "-q"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urlopen(ready, timeout=5, context=anybody if tls else None) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def cpu(root: int) -> float:
    """Seconds of processor time of a process and all below it, ended ones included."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(entry.parent.name)
        parents[pid] = int(fields[1])
        spent[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def below(pid: int) -> bool:
        while pid > 1:
            if pid == root:
                return True
            pid = parents.get(pid, 0)
        return False

    return sum(seconds for pid, seconds in spent.items() if below(pid))


# -- queries


def queries(database: Database, size: int) -> dict[str, float]:
    """Median milliseconds of what is asked most."""
    from midflight.server.api import compliance
    from midflight.server.api.deployments import devices as member_list
    from midflight.server.api.devices import devices as device_list
    from midflight.server.checkin.lookup import Lookup
    from midflight.server.domain.model import DeviceState
    from midflight.server.outputs import gate, metrics
    from midflight.server.store import tallies
    from midflight.server.store.invalidate import members
    from midflight.server.work import rollouts

    draw = random.Random(size)
    now = datetime.now(UTC)
    rings = rings_of(POLICY["rings"])
    actor: Any = None
    lookup = Lookup(database)

    def measure(ask: Callable[[Any], object], write: bool = False) -> float:
        times = []
        for _ in range(30):
            with database.write() if write else database.read() as session:
                session.execute(text("SELECT 1"))
                begin = time.perf_counter()
                ask(session)
                times.append((time.perf_counter() - begin) * 1e3)
                if write:
                    session.rollback()
        return float(median(times))

    def prefix() -> str:
        return f"host-{device(draw.randrange(size))[4:10]}"

    return {
        "check-in": measure(lambda s: lookup.find(fingerprint(draw.randrange(size)))),
        "devices": measure(lambda s: device_list(s, actor)),
        "by name": measure(lambda s: device_list(s, actor, hostname=prefix())),
        "not ok": measure(lambda s: device_list(s, actor, compliance="noncompliant")),
        "members": measure(lambda s: member_list("dpl-all", s, actor, state=None, ring=0)),
        "offer 1": measure(lambda s: members(s, "dpl-none", 0), write=True),
        "gate": measure(lambda s: gate.by_certificate(s, fingerprint(draw.randrange(size)), now)),
        "summary": measure(lambda s: compliance.overview(s, actor, "pol-all")),
        "policy": measure(lambda s: tallies.devices(s, "pol-all")),
        "rings": measure(lambda s: rollouts.tallies(s, "dpl-all", rings, 0, now)),
        "metrics": measure(lambda s: metrics.text(metrics.exposition(database, 0))),
        "failed": measure(lambda s: member_list("dpl-all", s, actor, state=DeviceState.FAILED, ring=None)),
        "disabled": measure(lambda s: device_list(s, actor, disabled=True)),
        "of none": measure(lambda s: compliance.devices(s, actor, policy="pol-none", state=None)),
        "no event": measure(lambda s: compliance.events(s, actor, kind="device.integrity")),
    }


def slow(database: Database, url: str) -> dict[str, float]:
    """Seconds (and MiB that the process grew by) of what looks at every device: found beside the requests, and kept."""
    from midflight.server.domain.calendar import Calendar
    from midflight.server.outputs import curves, metrics, reports
    from midflight.server.outputs.fleetvex import fleet_vex
    from midflight.server.preview import preview

    now = datetime.now(UTC)
    with database.read() as session:
        fleet = FleetCache().get(session)
    contents = list(fleet.catalogue.contents.values())

    asked: dict[str, Callable[[Any], object]] = {
        "report": lambda s: reports.report(s, contents, now - timedelta(days=365), now),
        "silent": metrics.count_silent,
        "history": lambda s: curves.compliance_history(s, now, timedelta(days=30)),
        "coverage": lambda s: curves.coverage_curve(s, contents, "CVE-2026-1", "p"),
        "VEX": lambda s: fleet_vex(s, fleet, url),
        "preview": lambda s: preview(s, fleet, contents[0], Calendar(), now),
    }
    found = {}
    for name, ask in asked.items():
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is from now on (proc(5))
        before = peak()
        begin = time.perf_counter()
        with database.read() as session:
            ask(session)
        found[f"{name} s"] = time.perf_counter() - begin
        found[f"{name} MiB"] = peak() - before
    return found


def peak() -> float:
    """The most memory that this process had, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
