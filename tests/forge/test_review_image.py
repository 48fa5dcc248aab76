"""What a reviewer is shown of the whole image: when changed code runs, under which locks, what is new to look up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Finding
from midflight.forge.review.callgraph import call_graph
from midflight.forge.review.moments import moments
from midflight.forge.review.reviewing import new_imports
from midflight.image.elf import ElfFile
from midflight.patch.manifest import Import

BOTH = pytest.mark.parametrize("compiler", ["gcc", "clang"])
KINDS = pytest.mark.parametrize("flags", [("-fPIE", "-pie"), ("-fno-pie", "-no-pie")], ids=["pie", "no-pie"])

SERVER = """
#include <poll.h>
#include <pthread.h>
#include <unistd.h>
#define OWN __attribute__((noinline))
extern int read_table(int), seen;
static pthread_mutex_t mutex;
OWN void configure(int n) { seen += n * 3; }
OWN void each_option(int n) { seen ^= n; }
OWN void setup(int n) { configure(n); for (int i = 0; i < n; i++) each_option(i); }
OWN void guarded(int n) { seen -= n; }
OWN void answer(int n) { pthread_mutex_lock(&mutex); guarded(n); pthread_mutex_unlock(&mutex); seen |= n; }
OWN void by_pointer(int n) { seen *= n; }
OWN void in_table(int n) { seen *= n + 1; }
OWN void before(void) { seen = getppid(); }
OWN void unused(int n) { seen = n; }
__attribute__((constructor)) static void early(void) { before(); seen++; }
void (*hook)(int);
void (*const table[])(int) = {in_table};
OWN void serve(int n)
{
    struct pollfd set = {0, POLLIN, 0};
    while (poll(&set, 1, n) >= 0)
        answer(set.revents);
}
int seen;
int main(int argc, char **argv)
{
    (void)argv;
    setup(argc);
    hook = by_pointer;
    hook(argc);
    table[argc & 0](argc);
    serve(argc);
    return seen;
}
"""


def image(folder: Path, source: str, *flags: str, compiler: str = "gcc") -> Path:
    (folder / "unit.c").write_text(source)
    made = folder / "prog"
    command = [compiler, "-O1", "-g", *flags, "unit.c", "-o", str(made), "-lpthread"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return made


def ask(path: Path, *names: str) -> set[tuple[str, str]]:
    return {(item.code, item.symbol) for item in asked(path, *names)}


def asked(path: Path, *names: str) -> list[Finding]:
    with ElfFile.open(path) as elf:
        functions = {(Path("unit.o"), name): (name, Path("unit.c")) for name in names}
        return moments(call_graph(RunImage(elf)), functions)


@BOTH
@KINDS
def test_when_a_function_runs(tmp_path: Path, compiler: str, flags: tuple[str, str]) -> None:
    prog = image(tmp_path, SERVER, *flags, compiler=compiler)
    assert ask(prog, "setup", "configure", "each_option") == {
        ("MF175", "setup"),
        ("MF175", "configure"),
        ("MF175", "each_option"),
    }
    assert ask(prog, "answer", "by_pointer", "in_table", "main") == set()
    assert ask(prog, "before", "unused") == {("MF175", "before"), ("MF175", "unused")}
    reasons = {item.symbol: item.reason for item in asked(prog, "setup", "before", "unused")}
    assert "only main" in reasons["setup"]
    assert "constructors" in reasons["before"]
    assert "nothing in the image" in reasons["unused"]
    assert not any(item.blocks for item in asked(prog, "setup", "before", "unused"))


@BOTH
def test_a_function_of_a_library_can_run_at_any_time(tmp_path: Path, compiler: str) -> None:
    made = image(tmp_path, SERVER.replace("int main", "int start"), "-fPIC", "-shared", compiler=compiler)
    assert ask(made, "setup", "configure", "unused") == set()


@BOTH
@KINDS
def test_a_function_that_runs_under_a_lock(tmp_path: Path, compiler: str, flags: tuple[str, str]) -> None:
    prog = image(tmp_path, SERVER, *flags, compiler=compiler)
    (item,) = asked(prog, "guarded")
    assert (item.code, item.kind) == ("MF173", "note")
    assert "answer holds a lock (pthread_mutex_lock)" in item.reason
    assert ask(prog, "answer") == set()


def test_a_call_after_the_lock_was_given_back_is_not_under_it(tmp_path: Path) -> None:
    source = SERVER.replace("guarded(n); pthread_mutex_unlock(&mutex);", "pthread_mutex_unlock(&mutex); guarded(n);")
    assert ask(image(tmp_path, source), "guarded") == set()


def test_new_imports(tmp_path: Path) -> None:
    prog = image(tmp_path, SERVER)
    imports = (
        Import("poll", "GLIBC_2.2.5", "libc.so.6", "func"),
        Import("memmem", "GLIBC_2.2.5", "libc.so.6", "func"),
        Import("inflate", None, "libz.so.1", "func"),
        Import("somewhere", None, None, "func"),
    )
    with ElfFile.open(prog) as run:
        findings = list(new_imports(run, imports, "prog"))
    assert [(item.code, item.symbol, item.kind) for item in findings] == [
        ("MF176", "memmem", "note"),
        ("MF177", "inflate", "warning"),
        ("MF177", "somewhere", "warning"),
    ]
    assert "memmem@GLIBC_2.2.5" in findings[0].reason and "libc.so.6" in findings[0].reason
    assert "libz.so.1" in findings[1].reason
