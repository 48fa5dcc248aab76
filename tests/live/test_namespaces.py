"""Processes that see another world than we do: namespaces, other roots, files that are gone or were replaced."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import Ran, midflight
from tests.engine.handmade import Handmade, compile_c, make, returns
from tests.live.harness import Lab, Target, check
from tests.live.quick import HEAD, applied, clean, refused, reverted, signed

ASKED = HEAD + 'int main(void) { begin(); spawn((void *(*)(void *))pause, 2, 0); puts("ready"); ask(); }'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("asked"), "asked", ASKED)


@pytest.fixture(scope="module")
def hotpatch(program: Path) -> Handmade:
    return make(program, {"answer": returns(2)})


def running(command: Path) -> int:
    """The one process that runs this very program (it may be below another that started it)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.stat(entry / "exe").st_ino == command.stat().st_ino:
                    found.append(int(entry.name))
            except OSError:
                continue
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    "words",
    [
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
        ["unshare", "--mount"],
        ["unshare", "--net", "--uts", "--ipc"],
        ["unshare", "--user", "--map-root-user"],
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount", "--net", "--ipc"],
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"],
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
        ["nice", "-n", "19"],
    ],
    ids=lambda words: " ".join(words[:3]) + f" {len(words)}",
)
def test_other_namespaces_and_users(tmp_path: Path, program: Path, hotpatch: Handmade, words: Sequence[str]) -> None:
    tmp_path.chmod(0o755)
    copy = Path(shutil.copy(program, tmp_path / "copy"))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    with Target.start(Path(words[0]), *words[1:], str(copy)) as target:
        pid = running(copy)
        assert target.ask() == "1 0"
        applied(pid, hotpatch)
        assert target.ask() == "2 0"
        assert clean(pid)
        reverted(pid)
        assert target.ask() == "1 0"


def test_a_process_in_another_root(lab: Lab, tmp_path: Path, program: Path) -> None:
    static = compile_c(tmp_path, "static", ASKED + "int more;", "-static")
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(static, root / "program")
    hotpatch = signed(lab, make(static, {"answer": returns(2)}, "chroot"))
    with Target.start(Path("chroot"), str(root), "/program") as target:
        pid = running(root / "program")
        midflight("apply", hotpatch.path, "--trust", hotpatch.trust, "--pid", str(pid))
        assert target.ask() == "2 0"
        assert check(pid)["processes"][0]["clean"]
        midflight("revert", hotpatch.path, "--pid", str(pid))
        assert target.ask() == "1 0"


@pytest.mark.parametrize("kind", ["bind", "overlay", "tmpfs"])
def test_files_below_mounts_that_only_the_target_sees(
    tmp_path: Path, program: Path, hotpatch: Handmade, kind: str
) -> None:
    (tmp_path / "low").mkdir()
    shutil.copy(program, tmp_path / "low/program")
    script = {
        "bind": "mkdir m && mount --bind low m && exec m/program",
        "overlay": "mkdir m o && mount -t tmpfs t o && mkdir o/u o/w "
        "&& mount -t overlay o -o lowerdir=low,upperdir=o/u,workdir=o/w m && exec m/program",
        "tmpfs": "mkdir m && mount -t tmpfs t m && cp low/program m/ && exec m/program",
    }[kind]
    with Target.start(Path("unshare"), "--mount", "sh", "-ec", f"cd {tmp_path}; {script}") as target:
        assert target.ask() == "1 0"
        applied(target, hotpatch)
        assert target.ask() == "2 0"
        assert clean(target)
        reverted(target)
        assert target.ask() == "1 0"


def test_a_file_that_was_deleted_or_replaced(lab: Lab, tmp_path: Path, program: Path) -> None:
    path = Path(shutil.copy(program, tmp_path / "server"))
    hotpatch = signed(lab, make(program, {"answer": returns(2)}, "replaced"))
    newer = compile_c(tmp_path, "newer", ASKED + "int more;")
    trust = ("--trust", str(hotpatch.trust))
    with Target.start(path) as old:
        path.unlink()
        midflight("apply", hotpatch.path, *trust, "--pid", str(old.pid))
        assert old.ask() == "2 0"
        midflight("revert", hotpatch.path, "--pid", str(old.pid))
        shutil.copy(newer, path)
        with Target.start(path) as new:
            rows = midflight("apply", hotpatch.path, *trust, "--all", "--json").json["processes"]
            assert [row["outcome"] for row in rows if row["pid"] == old.pid] == ["applied"]
            assert not [row for row in rows if row["pid"] == new.pid]
            assert (old.ask(), new.ask()) == ("2 0", "1 0")
            rows = midflight(
                "apply", hotpatch.path, *trust, "--pid", str(new.pid), "--json", status=1
            ).json["processes"]  # fmt: skip
            assert rows[0]["outcome"] == "skipped" and "baseline" in rows[0]["reason"]
            assert check(old.pid, new.pid)["processes"][0]["clean"]
            assert (old.ask(), new.ask()) == ("2 0", "1 0")


LIBRARY = """
static int calls;
__attribute__((noinline)) int answer(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
int count(void) { return ++calls; }
"""

LOADER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int (*answers[8])(int), (*count)(void);
  char line[64];
  int n = 0;
  alarm(240);
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (int i = 1; i < argc; i++) {
    void *h = i == 1 ? dlopen(argv[i], RTLD_NOW) : dlmopen(LM_ID_NEWLM, argv[i], RTLD_NOW);
    if (!h) { puts(dlerror()); return 1; }
    answers[n++] = (int (*)(int))dlsym(h, "answer");
    count = (int (*)(void))dlsym(h, "count");
    (void)count;
  }
  /* Once more, as data only: not an instance that runs. */
  mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, open(argv[1], O_RDONLY), 0);
  mmap(NULL, 4096, PROT_READ, MAP_SHARED, open(argv[1], O_RDONLY), 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    for (int i = 0; i < n; i++) printf("%d%s", answers[i](1), i + 1 < n ? " " : "\\n");
  }
}
"""


def test_a_library_that_is_loaded_several_times_from_several_places(tmp_path: Path) -> None:
    library = compile_c(tmp_path, "libanswer.so", LIBRARY, "-shared", "-fPIC")
    copy = str(shutil.copy(library, tmp_path / "copy.so"))
    loader = compile_c(tmp_path, "loader", LOADER)
    hotpatch = make(library, {"answer": returns(2)})
    with Target.start(loader, str(library), str(library), copy, copy) as target:
        assert target.ask() == "1 1 1 1"
        for _ in range(2):
            applied(target, hotpatch)
            assert target.ask() == "2 2 2 2"
            assert clean(target)
            reverted(target)
            assert target.ask() == "1 1 1 1"


def as_nobody(*words: str | Path) -> Ran:
    """``midflight`` as an ordinary user."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", sys.executable, "-m", "midflight"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": "", "HOME": "/nonexistent"}
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=environment, cwd="/")
    assert "Traceback" not in done.stdout + done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def test_an_ordinary_user_patches_what_is_his_and_nothing_else(lab: Lab, tmp_path: Path, program: Path) -> None:
    made = signed(lab, make(program, {"answer": returns(2)}, "ordinary"))
    for folder in (made.path.parent, *made.path.parent.parents, *tmp_path.parents, tmp_path, program.parent):
        if folder.name.startswith("pytest") or folder in (made.path.parent, tmp_path, program.parent):
            folder.chmod(0o755)
    words = ("apply", made.path, "--trust", made.trust)
    nobody = ("--reuid=65534", "--regid=65534", "--clear-groups", str(program))
    with Target.start(program) as roots, Target.start(Path("setpriv"), *nobody) as own:
        ran = as_nobody(*words, "--pid", str(own.pid))
        assert ran.status == 0, (ran.out, ran.err)
        assert own.ask() == "2 0"
        ran = as_nobody("check", "--pid", str(own.pid))
        assert ran.status == 0, (ran.out, ran.err)
        ran = as_nobody("revert", made.path, "--pid", str(own.pid))
        assert ran.status == 0, (ran.out, ran.err)
        assert own.ask() == "1 0"
        ran = as_nobody(*words, "--pid", str(roots.pid))
        assert ran.status == 1 and "root" in ran.out + ran.err, (ran.out, ran.err)
        assert len((ran.out + ran.err).splitlines()) < 8
        assert roots.ask() == "1 0"
        # All that may be touched is.
        ran = as_nobody(*words, "--all")
        assert own.ask() == "2 0" and roots.ask() == "1 0"
        for name in ("status", "scan", "revert", "recover"):
            more = () if name in ("status", "recover") else (made.path,)
            selection = () if name in ("scan",) else ("--all",)
            ran = as_nobody(name, *more, *selection)
            assert ran.status in (0, 1, 2), ran
        assert roots.ask() == "1 0"


def test_a_program_that_runs_with_the_rights_of_its_owner(tmp_path: Path, program: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith("pytest"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    path = Path(shutil.copy(program, tmp_path / "setuid"))
    os.chown(path, 1, 1)
    path.chmod(0o6755)
    hotpatch = make(program, {"answer": returns(2)})
    with Target.start(Path("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", str(path)) as target:
        assert "\nUid:\t65534\t1\t" in Path(f"/proc/{target.pid}/status").read_text()
        applied(target, hotpatch)
        assert target.ask() == "2 0"
        reverted(target)
        assert target.ask() == "1 0"


def test_kernel_threads_and_pids_that_do_not_exist(lab: Lab, program: Path) -> None:
    made = signed(lab, make(program, {"answer": returns(2)}, "kernel"))
    words = ("apply", made.path, "--trust", made.trust)
    ran = midflight(*words, "--pid", "2", status=1)
    assert "kernel" in ran.out + ran.err
    ran = midflight(*words, "--pid", "4194000", status=2)
    assert "no process 4194000" in ran.err
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ran = midflight(*words, "--pid", str(child.pid), status=1)  # a zombie
    assert "ended" in ran.out
    child.wait()


def test_a_process_whose_memory_another_shares(tmp_path: Path) -> None:
    path = compile_c(
        tmp_path,
        "shares",
        HEAD
        + """
#include <sched.h>
static char stack[65536];
static int child(void *p) { alarm(240); for (;;) pause(); }
int main(void) {
  begin();
  int c = clone(child, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
  puts("ready"); ask(); kill(c, 9);
}
""",
    )
    with Target.start(path) as target:
        refused(target, make(path, {"answer": returns(2)}), "shares its memory")
        child = int(Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text())
        refused(child, make(path, {"answer": returns(2)}), "shares its memory")
        assert target.ask() == "1 0"
        os.kill(child, signal.SIGKILL)
        os.kill(target.pid, 0)
