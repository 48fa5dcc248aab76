"""Unwinding of real processes: every stack must be the one that gdb's own unwinder sees, to the outermost frame."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.image.samples import run
from tests.image.stacks import ATTACHED, EXCEPTIONS, RESOLVER, STEPPED, STEPPING, THREADS, Observation, Unwinder, gdb


def observe(command: list[str], where: Path) -> Observation:
    """Start a program, wait until its threads are where they should be, and let gdb look at them."""
    target = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert target.stdout is not None and target.stdout.readline() == "ready\n"
        return gdb(ATTACHED, where, "-p", str(target.pid))
    finally:
        target.kill()
        target.wait()


def check(observation: Observation) -> list[int]:
    """All stacks are complete and are gdb's; returns their depths."""
    unwinder = Unwinder(observation)
    depths = []
    for snapshot in observation.snapshots:
        stack = unwinder.walk(snapshot)
        assert [hex(frame.pc) for frame in stack.frames] == [hex(pc) for pc in snapshot.frames]
        assert stack.complete, stack.reason
        for frame in stack.frames[:-1]:
            assert frame.start <= frame.at < frame.end
            if frame.return_slot is not None:
                assert frame.return_address is not None
                word = frame.return_address.to_bytes(8, "little")
                assert any(
                    data[frame.return_slot - at :][:8] == word
                    for at, data in snapshot.stacks
                    if at <= frame.return_slot
                )
        depths.append(len(stack.frames))
    return depths


LAZY = ("-DLAZY", "-Wl,-z,lazy", "libresolver.so", "-Wl,-rpath,$ORIGIN")
BUILDS = {
    "gcc-O2": ("gcc", "-O2", "-fomit-frame-pointer", *LAZY),
    "gcc-O0": ("gcc", "-O0", "-fno-omit-frame-pointer", *LAZY),
    "gcc-no-pie": ("gcc", "-O3", "-march=haswell", "-no-pie", *LAZY),
    "gcc-static": ("gcc", "-O2", "-static"),
    "clang-O2": ("clang", "-O2", "-fuse-ld=lld", *LAZY),
}


@pytest.mark.parametrize("build", BUILDS)
def test_blocked_threads(build: str, tmp_path: Path) -> None:
    (tmp_path / "threads.c").write_text(THREADS)
    (tmp_path / "resolver.c").write_text(RESOLVER)
    run("gcc", "-O2", "-shared", "-fPIC", "resolver.c", "-o", "libresolver.so", cwd=tmp_path)
    compiler, *flags = BUILDS[build]
    run(compiler, "-w", "threads.c", *flags, "-pthread", "-o", "threads", cwd=tmp_path)
    depths = check(observe([str(tmp_path / "threads")], tmp_path))
    assert len(depths) == 9 and max(depths) > 60


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_exceptions_on_their_way(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "exceptions.cc").write_text(EXCEPTIONS)
    run(compiler, "-O2", "-w", "exceptions.cc", "-pthread", "-o", "exceptions", cwd=tmp_path)
    assert len(check(observe([str(tmp_path / "exceptions")], tmp_path))) == 4


@pytest.mark.parametrize("flags", [("gcc", "-O2"), ("gcc", "-O2", "-fcf-protection=full"), ("clang", "-O1")])
def test_every_instruction(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Prologues, epilogues, PLT entries, the lazy resolver and libc, one instruction after the other."""
    (tmp_path / "stepped.c").write_text(STEPPED)
    run(*flags, "-w", "stepped.c", "-Wl,-z,lazy", "-o", "stepped", cwd=tmp_path)
    observation = gdb(STEPPING.replace("STEPS", "600"), tmp_path, str(tmp_path / "stepped"))
    assert len(observation.snapshots) == 600
    depths = check(observation)
    assert len(set(depths)) > 4
