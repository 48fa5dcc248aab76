"""What happens to devices that nobody means: connections that break off, clocks that jump, places without room."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from midflight.trust.content import Package
from midflight.trust.instructions import Window
from tests.agent.fleet.conftest import Fixes, build_id, publish
from tests.agent.fleet.control import ControlServer, apply, now
from tests.agent.fleet.harness import Device
from tests.agent.harness import fill
from tests.commands import until
from tests.live.harness import Target
from tests.trust.tls import Handler

pytestmark = pytest.mark.live
CLOCK = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) {
  long seconds = 0;
  FILE *file = fopen(getenv("CLOCK_AHEAD"), "r");
  if (file) { if (fscanf(file, "%ld", &seconds) != 1) abort(); fclose(file); }
  return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = syscall(SYS_clock_gettime, clock, now);
  if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
  return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *to) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (to) *to = exact.tv_sec;
  return exact.tv_sec;
}
"""
"""Sets the clock that tells people the time (CLOCK_REALTIME), for one program: a machine has only one of it, which is
not ours to set. The other clocks stay as they are, as they do when somebody sets it."""


class Clock:
    """The clock that an agent sees."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ahead, library = folder / "ahead", folder / "clock.so"
        (folder / "clock.c").write_text(CLOCK)
        words = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(folder / "clock.c")]
        subprocess.run(words, check=True, capture_output=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(self._ahead)}
        self.set(timedelta(0))

    def set(self, ahead: timedelta) -> None:
        """Set it, at once and as a whole."""
        fresh = self._ahead.with_suffix(".new")
        fresh.write_text(f"{ahead.total_seconds():.0f}")
        fresh.replace(self._ahead)


class Breaking:
    """Gives hotpatches in pieces: the connection breaks after each. The first one hangs, until it is let go."""

    def __init__(self, server: ControlServer, piece: int) -> None:
        self._server, self._piece = server, piece
        self.hangs, self.go = threading.Event(), threading.Event()
        self.given: list[tuple[int, int]] = []
        server.answering = self

    def __call__(self, handler: Handler, path: str, body: bytes) -> bool:
        if not path.endswith(".hotpatch"):
            return False
        data = (self._server.publisher.repository.public / path.removeprefix("/repo/")).read_bytes()
        asked = handler.headers.get("range", "")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Length", str(len(data) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        piece = data[start : start + self._piece]
        handler.wfile.write(piece)
        handler.wfile.flush()
        self.given.append((start, len(piece)))
        if len(self.given) == 1:
            self.hangs.set()
            self.go.wait(60)
        handler.close_connection = True
        return True


def test_a_download_goes_on_where_it_broke_off(server: ControlServer, fixes: Fixes, tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    breaking = Breaking(server, content.length // 4)
    with Target.start(fixes.program) as target:
        device.start()
        server.tell(server.device().id, apply(content))
        until(breaking.hangs.is_set, "in the middle of it")
        kept = device.state / "server" / "trust" / "partial"
        until(lambda: [one for one in kept.glob("*") if one.stat().st_size], "the first piece on the disk")
        device.stop(signal.SIGKILL)
        breaking.go.set()
        with device:
            until(lambda: target.ask() == "2", "patched")
            server.outcome("applied")
    starts = [start for start, _ in breaking.given]
    assert len(starts) >= 4 and starts == sorted(set(starts)), "none twice"
    assert sum(size for _, size in breaking.given) == content.length


def test_a_clock_that_jumps_lets_nothing_in_and_cuts_nobody_off(
    server: ControlServer, fixes: Fixes, tmp_path: Path
) -> None:
    clock = Clock(tmp_path / "clock")
    device = Device(tmp_path / "device")
    device.enroll(server)
    content = publish(server, fixes)
    device.start(**clock.env)
    night = Window(now() + timedelta(days=2), now() + timedelta(days=4))
    with Target.start(fixes.program) as target:
        id = server.device().id
        server.tell(id, apply(content), windows=(night,), policy={"any_time": False}, lifetime=timedelta(days=9))
        assert server.outcome("waiting").reason == "awaiting_window"
        for jump in (3, -30, 200, 3):
            clock.set(timedelta(days=jump))
            server.after_check_ins(4)
            assert target.ask() == "1", f"{jump} days: its window opens by the time of the server"
        clock.set(timedelta(days=-30))
        server.tell(id, apply(content, "act-2"))
        until(lambda: target.ask() == "2", "patched, although the clock is wrong")
        server.outcome("applied", "act-2")
        # By this clock the repository is over: nothing new comes in, and what is in force stays.
        clock.set(timedelta(days=3))
        second = publish(server, fixes, 2)
        server.tell(id, apply(content, "act-2"), apply(second, "act-3"))
        device.says("is expired")
        with Target.start(fixes.program) as late:
            until(lambda: late.ask() == "2", "patched as well")
        server.tell(id, apply(content, "act-4", "revert"))
        until(lambda: target.ask() == "1", "taken out: that needs no repository")
        server.outcome("reverted", "act-4")
        clock.set(timedelta(0))
        server.tell(id, apply(second, "act-3"))
        until(lambda: target.ask() == "3", "patched with the second, by the right clock")
    assert device.stop() == 0
    text = device.log.read_text()
    assert "Traceback" not in text and "internal error" not in text, text


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Path]:
    """The place of a program, on a disk with little room."""
    folder = tmp_path / "sbin"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
    yield folder / "answers"
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_baseline_without_room_at_its_place_leaves_it_alone_and_is_tried_again(
    server: ControlServer, fixes: Fixes, tmp_path: Path, cramped: Path
) -> None:
    cramped.write_bytes(fixes.program.read_bytes())
    cramped.chmod(0o755)
    filler = cramped.with_name("filler")
    fill(filler)
    device = Device(tmp_path / "device", f'[server.files]\nfleet-answers = "{cramped}"\n')
    device.enroll(server)
    package = Package("file", "fleet-answers", "2", "amd64")
    content = server.publisher.baseline(fixes.fixed, "fleet-answers", 2, (build_id(fixes.fixed),), package)
    with Target.start(cramped) as target, device:
        server.tell(server.device().id, apply(content, kind="baseline"))
        assert "free some space" in server.outcome("failed").detail
        assert cramped.read_bytes() == fixes.program.read_bytes() and target.ask() == "1"
        assert sorted(os.listdir(cramped.parent)) == ["answers", "filler"], "nothing half done"
        filler.unlink()
        server.outcome("staged")
        target.stop()
        until(lambda: cramped.read_bytes() == fixes.fixed.read_bytes(), "swapped in")
