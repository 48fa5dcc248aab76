"""Hotpatches made by hand, put into live processes by the engine or by the commands: for scenarios in which the fix
itself does not matter."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from midflight.engine import integrity, ledger
from midflight.engine.apply import apply
from midflight.engine.modules import Files
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits, Outcome
from midflight.patch.hotpatch import write_hotpatch
from midflight.process.linux import LinuxProcess
from midflight.trust.keys import load_private_key
from tests.engine.handmade import Handmade
from tests.live.harness import Lab, Target

PATIENT = {"busy": 30.0, "stop": 20.0, "call": 20.0}
"""Limits for scenarios that are about something else, on a machine that is busy with other work."""

HEAD = """
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static _Atomic long errors, rounds;
__attribute__((noinline)) int answer(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
static void nap(long us) { struct timespec t = {0, us * 1000}; nanosleep(&t, NULL); }
static void work(void) { int a = answer(1); if (a != 1 && a != 2) errors++; rounds++; }
static void ask(void) {
  char line[64];
  while (fgets(line, sizeof line, stdin)) printf("%d %ld\\n", answer(1), (long)errors);
}
static void begin(void) { alarm(240); setvbuf(stdout, NULL, _IOLBF, 0); }
static void spawn(void *(*f)(void *), int n, size_t stack) {
  pthread_attr_t a; pthread_attr_init(&a); if (stack) pthread_attr_setstacksize(&a, stack);
  while (n-- > 0) { pthread_t t; if (pthread_create(&t, &a, f, NULL)) abort(); pthread_detach(t); }
}
"""
"""The beginning of a target: ``begin``, ``spawn``, ``work`` and ``nap``, and ``ask``, which answers "answer errors"."""

LIFETIME = "alarm(240);"
"""What a target says first, so that it ends even when its test dies."""


def put(target: Target | int, hotpatch: Handmade, **limits: float) -> Outcome:
    """Apply by the engine."""
    with LinuxProcess(_pid(target)) as process, Files() as files:
        return apply(process, hotpatch, files, Limits(**{**PATIENT, **limits}))


def take(target: Target | int, name: str = "", **limits: float) -> Outcome:
    """Revert by the engine."""
    with LinuxProcess(_pid(target)) as process, Files() as files:
        return revert(process, files, Limits(**{**PATIENT, **limits}), lambda one: name in one.record.name)


def applied(target: Target | int, hotpatch: Handmade, **limits: float) -> Outcome:
    """Apply; it must work."""
    outcome = put(target, hotpatch, **limits)
    assert outcome.outcome == "applied", outcome
    return outcome


def reverted(target: Target | int, **limits: float) -> Outcome:
    """Revert; it must work."""
    outcome = take(target, "", **limits)
    assert outcome.outcome == "reverted", outcome
    return outcome


def refused(target: Target | int, hotpatch: Handmade, *words: str, **limits: float) -> Outcome:
    """Apply must fail, with a reason of one line that has all ``words``."""
    outcome = put(target, hotpatch, **limits)
    assert outcome.outcome in ("failed", "skipped"), outcome
    assert "\n" not in outcome.reason
    for word in words:
        assert word in outcome.reason, (word, outcome.reason)
    return outcome


def ledgers(target: Target | int) -> list[ledger.Ledger]:
    """What the process itself says of its hotpatches."""
    with LinuxProcess(_pid(target)) as process:
        return ledger.find(process)


def clean(target: Target | int) -> bool:
    """Whether all code in memory is explained by disk and ledger."""
    with LinuxProcess(_pid(target)) as process:
        return integrity.check(process).clean


def _pid(target: Target | int) -> int:
    return target if isinstance(target, int) else target.pid


@dataclass(frozen=True)
class Signed:
    """A hotpatch made by hand as a signed file."""

    path: Path
    trust: Path


def signed(lab: Lab, hotpatch: Handmade) -> Signed:
    """Write the file that the commands take."""
    path = lab.folder / f"{hotpatch.manifest.name}-{hotpatch.digest[:16]}.hotpatch"
    target = hotpatch.manifest.targets[0]
    member = f"payload/{target.build_id}.bin"
    manifest = replace(hotpatch.manifest, targets=(replace(target, payload=member),))
    payloads = {member: hotpatch.payloads[target.payload]}
    write_hotpatch(path, manifest, payloads, load_private_key(lab.key, ask=False))
    return Signed(path, lab.trust)


def build(folder: Path, name: str, source: str, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a program with the flags given and no others but -O2."""
    path = folder / f"{name}.c"
    path.write_text(source)
    out = folder / name
    subprocess.run([compiler, "-O2", "-o", str(out), str(path), *flags], check=True, capture_output=True)
    return out


def started(target: Target) -> Mapping[str, int]:
    """Figures of a process that must not grow."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{target.pid}/status").read_text().splitlines() if ":" in line
    )
    return {
        "maps": len(Path(f"/proc/{target.pid}/maps").read_text().splitlines()),
        "size": int(status["VmSize"].split()[0]),
        "resident": int(status["VmRSS"].split()[0]),
        "files": len(os.listdir(f"/proc/{target.pid}/fd")),
        "threads": int(status["Threads"]),
    }
