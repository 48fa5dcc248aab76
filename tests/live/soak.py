"""Applies and reverts over and over on one target under load, and says what it cost the target and the engine.

Run as ``python -m tests.live.soak [CYCLES]`` for as long as wanted.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from midflight.engine import integrity
from midflight.engine.apply import apply
from midflight.engine.modules import Files
from midflight.engine.recover import recover
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits
from midflight.process.linux import LinuxProcess
from tests.engine.handmade import compile_c, make, returns
from tests.live.harness import Target
from tests.live.quick import PATIENT, started

THREADS = 32

LOAD = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
static _Atomic long errors, rounds;
__attribute__((noinline)) int answer(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
__attribute__((noinline)) int other(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 10; }
static void work(void) {
  /* Vector registers and the red zone are in use all the time. */
  double sum = 0;
  for (int i = 0; i < 50; i++) {
    int a = answer(1), b = other(1);
    sum += a * 0.5 + b * 0.25;
    if ((a != 1 && a != 2 && a != 3) || (b != 10 && b != 20)) errors++;
  }
  if (sum < 50 * 3 || sum > 50 * 6.5) errors++;
  rounds++;
}
static void *sleeps(void *p) {
  for (struct timespec t = {0, 5000000}; ; work()) if (nanosleep(&t, NULL)) errors++;
  return p;
}
static void *polls(void *p) { for (;; work()) if (poll(NULL, 0, 4)) errors++; return p; }
static void *epolls(void *p) {
  int e = epoll_create1(0);
  struct epoll_event v;
  for (;; work()) if (epoll_wait(e, &v, 1, 6)) errors++;
  return p;
}
static void *waits(void *p) {
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t c = PTHREAD_COND_INITIALIZER;
  pthread_mutex_lock(&m);
  for (;; work()) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 5000000;
    if (t.tv_nsec >= 1000000000) { t.tv_nsec -= 1000000000; t.tv_sec++; }
    if (pthread_cond_timedwait(&c, &m, &t) != ETIMEDOUT) errors++;
  }
  return p;
}
static void *allocates(void *p) {
  for (unsigned s = 1;; work()) {
    for (int i = 0; i < 20; i++) { s = s * 1103515245 + 12345; free(memset(malloc(s >> 16), 1, s >> 16)); }
    usleep(3000);
  }
  return p;
}
int main(int argc, char **argv) {
  void *(*all[])(void *) = {sleeps, polls, epolls, waits, allocates};
  char line[64];
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (int i = 1; i < atoi(argv[1]); i++) {
    pthread_t t;
    pthread_attr_t a;
    pthread_attr_init(&a); pthread_attr_setstacksize(&a, 65536);
    if (pthread_create(&t, &a, all[i % 5], NULL)) return 1;
  }
  puts("ready");
  while (fgets(line, sizeof line, stdin)) printf("%d %d %ld %ld\n", answer(1), other(1), (long)errors, (long)rounds);
  return 0;
}
"""
"""A line in: "answer other errors rounds". Argument: how many threads."""


@dataclass(frozen=True)
class Figures:
    """What a soak found."""

    cycles: int
    seconds: float
    stopped: float
    """Mean seconds stopped per transaction."""
    longest: float
    rounds: int
    """How much the target worked meanwhile."""
    before: dict[str, int]
    after: dict[str, int]
    engine_before: dict[str, int]
    engine_after: dict[str, int]


def _engine() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    gc.collect()
    return {"files": len(os.listdir("/proc/self/fd")), "resident": int(resident), "objects": len(gc.get_objects())}


def soak(folder: Path, cycles: int) -> Figures:
    """Run; fails at the first thing that is not as it must be."""
    program = compile_c(folder, "load", LOAD)
    first = make(program, {"answer": returns(2), "other": returns(20)}, sequence=1)
    second = make(program, {"answer": returns(3)}, sequence=2)
    limits = Limits(**PATIENT)
    stops: list[float] = []

    def expect(words: str) -> int:
        *answer, errors, rounds = target.ask().split()
        assert (" ".join(answer), errors) == (words, "0"), f"{answer}, {errors} errors; expected {words}"
        return int(rounds)

    with Target.start(program, str(THREADS)) as target, LinuxProcess(target.pid) as process, Files() as files:
        for cycle in range(cycles + 100):
            if cycle == 100:  # pools, caches and stacks have their size by now
                recover(process, files, limits)
                began, done = time.monotonic(), expect("1 10")
                before, engine_before = dict(started(target)), _engine()
            outcome = apply(process, first, files, limits)
            assert outcome.outcome == "applied", outcome
            stops.append(outcome.stopped)
            if cycle % 20 == 7:
                expect("2 20")
                outcome = apply(process, second, files, limits)
                assert outcome.outcome == "applied", outcome
                expect("3 10")
            if cycle % 100 == 50:
                assert integrity.check(process).clean
            outcome = revert(process, files, limits, lambda one: True)
            assert outcome.outcome == "reverted", outcome
            stops.append(outcome.stopped)
            if cycle % 10 == 9:
                expect("1 10")
        recover(process, files, limits)
        assert integrity.check(process).clean
        rounds = expect("1 10") - done
        return Figures(
            cycles, time.monotonic() - began, sum(stops) / len(stops), max(stops), rounds,
            before, dict(started(target)), engine_before, _engine(),
        )  # fmt: skip


def main() -> None:
    """Soak as long as wanted, and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    print(f"{figures.cycles} cycles in {figures.seconds:.1f} s; the target worked {figures.rounds} rounds meanwhile")
    print(f"stopped {figures.stopped * 1e3:.2f} ms in the mean, {figures.longest * 1e3:.2f} ms at most")
    for name, before, after in (
        ("target", figures.before, figures.after),
        ("engine", figures.engine_before, figures.engine_after),
    ):
        print(f"{name}: " + ", ".join(f"{key} {before[key]} -> {after[key]}" for key in before))


if __name__ == "__main__":
    main()
