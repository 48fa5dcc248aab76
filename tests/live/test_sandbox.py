"""Confined processes: seccomp filters that kill, strict mode, and memory that may never become executable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from midflight.engine.modules import Files
from midflight.engine.recover import recover
from midflight.engine.transaction import Limits
from midflight.process.linux import LinuxProcess
from tests.commands import midflight
from tests.engine.handmade import compile_c, make, returns
from tests.live.harness import Lab, Target
from tests.live.quick import HEAD, applied, clean, ledgers, put, reverted, signed, take

CONFINED = """
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define ON(nr, what) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, what)
#define END(what) BPF_STMT(BPF_RET | BPF_K, what)
#define KILL SECCOMP_RET_KILL_PROCESS
static void filter(struct sock_filter *f, unsigned short n) {
  struct sock_fprog p = {n, f};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p, 0, 0)) abort();
}
#define FILTER(...) do { struct sock_filter f[] = {__VA_ARGS__}; filter(f, sizeof f / sizeof *f); } while (0)
static void confine(const char *how) {
  if (!strcmp(how, "no memory calls"))
    FILTER(LOAD(nr), ON(SYS_mmap, KILL), ON(SYS_mprotect, KILL), ON(SYS_munmap, KILL),
      ON(SYS_mremap, KILL), END(SECCOMP_RET_ALLOW));
  if (!strcmp(how, "no mprotect"))
    FILTER(LOAD(nr), ON(SYS_mprotect, SECCOMP_RET_ERRNO | EPERM), END(SECCOMP_RET_ALLOW));
  if (!strcmp(how, "read write exit"))
    FILTER(LOAD(nr), ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_exit_group), END(KILL));
  if (!strcmp(how, "trap"))
    FILTER(LOAD(nr), ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_exit_group), END(SECCOMP_RET_TRAP));
  if (!strcmp(how, "strict") && prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) abort();
  /* As systemd's MemoryDenyWriteExecute=yes: no writable and executable mapping, no mprotect to executable. */
  if (!strcmp(how, "systemd"))
    FILTER(LOAD(nr),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 4), LOAD(args[2]), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 6),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 6, 0, 1), END(SECCOMP_RET_ERRNO | EPERM), LOAD(nr),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 4), LOAD(args[2]), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 4),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 4, 0, 1), END(SECCOMP_RET_ERRNO | EPERM), END(SECCOMP_RET_ALLOW));
  if (!strcmp(how, "mdwe") && prctl(PR_SET_MDWE, 1, 0, 0, 0)) abort();
}
int main(int c, char **v) {
  char in[64], out[64];
  begin();
  if (c > 2) spawn((void *(*)(void *))pause, 2, 0);
  puts("ready");
  confine(v[1]);
  while (read(0, in, sizeof in) > 0)
    if (write(1, out, snprintf(out, sizeof out, "%d %ld\\n", answer(1), (long)errors)) < 0) break;
  syscall(SYS_exit, 0);
}
"""

HOW = ["no memory calls", "no mprotect", "read write exit", "trap", "strict", "systemd", "mdwe"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("sandbox"), "confined", HEAD + CONFINED)


@pytest.mark.parametrize("how", HOW)
def test_a_confined_process_is_patched_and_lives(program: Path, how: str) -> None:
    hotpatch = make(program, {"answer": returns(2)})
    with Target.start(program, how) as target:
        for _ in range(3):
            assert target.ask() == "1 0"
            applied(target, hotpatch)
            assert target.ask() == "2 0"
            assert clean(target)
            reverted(target)
        assert target.ask() == "1 0"
        assert ledgers(target) == []
        status = Path(f"/proc/{target.pid}/status").read_text()
        if how != "mdwe":
            # As confined as before.
            assert f"\nSeccomp:\t{1 if how == 'strict' else 2}\n" in status


def test_a_thread_that_is_confined_alone(program: Path) -> None:
    # Filters belong to threads; here the main one has one, the others were made before.
    hotpatch = make(program, {"answer": returns(2)})
    with Target.start(program, "no memory calls", "threads") as target:
        applied(target, hotpatch)
        assert target.ask() == "2 0"
        reverted(target)
        assert target.ask() == "1 0"


def test_without_the_privilege_to_suspend_a_filter_it_is_refused(lab: Lab, tmp_path: Path, program: Path) -> None:
    # An ordinary user may trace a process of his own, but may not lift its filter.
    hotpatch = signed(lab, make(program, {"answer": returns(2)}, "unprivileged"))
    drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"]
    with Target.start(program, "read write exit") as target:
        done = subprocess.run(
            [*drop, sys.executable, "-m", "midflight", "apply", hotpatch.path, "--trust", hotpatch.trust,
             "--pid", str(target.pid)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and "CAP_SYS_ADMIN" in done.stdout, (done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        assert target.ask() == "1 0"
        midflight("apply", hotpatch.path, "--trust", hotpatch.trust, "--pid", str(target.pid))
        assert target.ask() == "2 0"


@pytest.mark.parametrize("how", ["no memory calls", "read write exit"])
def test_a_confined_process_survives_the_death_of_the_engine(program: Path, how: str) -> None:
    """The filter would kill it for the very calls that restore it, were its tracer to die with the engine."""
    hotpatch = make(program, {"answer": returns(2)})
    with Target.start(program, how) as target:
        for step in range(60):
            engine = os.fork()
            if engine == 0:
                try:
                    for _ in range(10):
                        put(target, hotpatch)
                        take(target)
                finally:
                    os._exit(0)
            time.sleep(0.002 + step * 0.0007)
            os.kill(engine, signal.SIGKILL)
            os.waitpid(engine, 0)
            assert target.ask().split()[0] in "12"
        with LinuxProcess(target.pid) as process, Files() as files:
            assert recover(process, files, Limits(stop=30, call=30)).outcome in ("recovered", "nothing")
        take(target)  # the last engine may have died when all was in
        applied(target, hotpatch)
        assert target.ask() == "2 0"
        reverted(target)
        assert target.ask() == "1 0"
