"""Processes that fork, exec and spawn meanwhile, foreign programs, other tools at work, and what the commands say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.process.linux import LinuxProcess
from midflight.process.ptrace import perf_event_open
from tests.commands import MIDFLIGHT, midflight
from tests.engine.handmade import compile_c, make, returns
from tests.live.harness import Lab, Target, check
from tests.live.quick import HEAD, Signed, applied, build, clean, ledgers, put, refused, reverted, signed, take

DIGEST = re.compile(r"\b[0-9a-f]{64}$")

# --- fork, exec, spawn -----------------------------------------------------------------------------------------------

FORKS = """
#include <spawn.h>
#include <sys/wait.h>
extern char **environ;
static const char *self, *how;
static _Atomic long children;
static void one(void) {
  int status = 0;
  pid_t p;
  char *arguments[] = {(char *)self, "child", NULL};
  if (*how == 'f') { p = fork(); if (!p) { int a = answer(1); _exit(a == 1 || a == 2 ? 0 : 1); } }
  else if (*how == 'v') { p = vfork(); if (!p) { execv(self, arguments); _exit(9); } }
  else if (posix_spawn(&p, self, NULL, NULL, arguments, environ)) abort();
  if (p < 0 || waitpid(p, &status, 0) != p || status) errors++;
  children++;
}
static void *storm(void *p) { for (;;) { one(); work(); } return p; }
int main(int c, char **v) {
  if (c > 1 && !strcmp(v[1], "child")) return answer(1) == 1 ? 0 : 8;
  begin();
  self = v[0]; how = v[1];
  spawn(storm, 2, 0);
  puts("ready");
  char line[64];
  while (fgets(line, sizeof line, stdin)) printf("%d %ld %d\\n", answer(1), (long)errors, children > 3);
}
"""


@pytest.mark.parametrize("how", ["fork", "vfork", "spawn"])
def test_a_process_that_makes_children_all_the_time(tmp_path: Path, how: str) -> None:
    path = compile_c(tmp_path, "forks", HEAD + FORKS)
    hotpatch = make(path, {"answer": returns(2)})
    with Target.start(path, how) as target:
        for _ in range(5):
            # Somebody who has just called vfork shares his memory: that is waited for by trying again.
            deadline = time.monotonic() + 60
            while (outcome := put(target, hotpatch)).outcome != "applied":
                assert "vfork" in outcome.reason and time.monotonic() < deadline, outcome
            assert target.ask().startswith("2 0")
            while (outcome := take(target)).outcome != "reverted":
                assert "vfork" in outcome.reason and time.monotonic() < deadline, outcome
            assert target.ask().startswith("1 0")
        time.sleep(0.2)
        assert target.ask() == "1 0 1"


EXECS = """
int main(int c, char **v) {
  char line[64];
  begin();
  spawn((void *(*)(void *))pause, 2, 0);
  puts("ready");
  if (c > 2) { nap(atol(v[2])); execl(v[1], v[1], NULL); abort(); }
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'x') execl(v[1], v[1], NULL);
    printf("%d %ld\\n", answer(1), (long)errors);
  }
}
"""


def test_exec_of_the_same_and_of_another_program(tmp_path: Path) -> None:
    path = compile_c(tmp_path, "execs", HEAD + EXECS)
    hotpatch = make(path, {"answer": returns(2)})
    other = compile_c(tmp_path, "other", HEAD + 'int main(void) { begin(); puts("other"); ask(); }')
    with Target.start(path, str(path)) as target:
        applied(target, hotpatch)
        assert target.ask() == "2 0"
        assert target.ask("x") == "ready"
        # A new program has nothing of the old one's memory.
        assert target.ask() == "1 0" and ledgers(target) == []
        applied(target, hotpatch)
        assert target.ask() == "2 0"
    with Target.start(path, str(other)) as target:
        applied(target, hotpatch)
        assert target.ask("x") == "other"
        assert target.ask() == "1 0"
        refused(target, hotpatch, "baseline")


def test_exec_at_random_moments_of_an_apply(tmp_path: Path) -> None:
    path = compile_c(tmp_path, "execs", HEAD + EXECS)
    other = compile_c(tmp_path, "other", HEAD + 'int main(void) { begin(); puts("other"); ask(); }')
    hotpatch = make(path, {"answer": returns(2)})
    for trial in range(60):
        with Target.start(path, str(other), str(200 + trial * 300)) as target:
            outcome = put(target, hotpatch)
            assert outcome.outcome in ("applied", "skipped", "failed")
            assert "\n" not in outcome.reason
            assert target.line() == "other"
            assert target.ask() == "1 0"
            assert clean(target)


# --- foreign ---------------------------------------------------------------------------------------------------------

TINY = """
.globl _start, answer
.text
_start: mov $1, %eax; mov $1, %edi; lea ready(%rip), %rsi; mov $6, %edx; syscall
1: mov $0, %eax; xor %edi, %edi; lea room(%rip), %rsi; mov $8, %edx; syscall
   test %eax, %eax; jle 2f
   call answer; add $48, %eax; mov %al, room(%rip); movb $10, room+1(%rip)
   mov $1, %eax; mov $1, %edi; lea room(%rip), %rsi; mov $2, %edx; syscall; jmp 1b
2: mov $60, %eax; xor %edi, %edi; syscall
.type answer, @function
answer: mov $1, %eax; nop; nop; nop; ret
.size answer, .-answer
.data
ready: .ascii "ready\\n"
.bss
room: .skip 16
"""

TINY_32 = """
.globl _start
.text
_start: mov $4, %eax; mov $1, %ebx; mov $ready, %ecx; mov $6, %edx; int $0x80
1: mov $3, %eax; xor %ebx, %ebx; mov $room, %ecx; mov $8, %edx; int $0x80
   test %eax, %eax; jle 2f
   mov $4, %eax; mov $1, %ebx; mov $room, %ecx; mov $2, %edx; int $0x80; jmp 1b
2: mov $1, %eax; xor %ebx, %ebx; int $0x80
.data
ready: .ascii "ready\\n"
.bss
room: .skip 16
"""


def assemble(folder: Path, name: str, text: str, bits: str) -> Path:
    """A program without any library."""
    source, out = folder / f"{name}.s", folder / name
    source.write_text(text)
    subprocess.run(["as", bits, "-o", f"{out}.o", str(source)], check=True)
    machine = "elf_i386" if bits == "--32" else "elf_x86_64"
    subprocess.run(["ld", "-m", machine, "--build-id", "-o", str(out), f"{out}.o"], check=True)
    return out


def test_a_program_with_no_code_to_borrow_is_refused(tmp_path: Path) -> None:
    path = assemble(tmp_path, "tiny", TINY, "--64")
    with Target.start(path) as target:
        assert target.ask() == "1"
        refused(target, make(path, {"answer": returns(2)}), "restart")
        assert target.ask() == "1"
        assert clean(target)


def test_a_32_bit_process_is_refused(lab: Lab, tmp_path: Path) -> None:
    path = assemble(tmp_path, "small", TINY_32, "--32")
    other = compile_c(tmp_path, "other", HEAD + 'int main(void) { puts("ready"); ask(); }')
    made = signed(lab, make(other, {"answer": returns(2)}, "bits"))
    with Target.start(path) as target:
        assert target.ask("a") == "a"
        ran = midflight("apply", made.path, "--trust", made.trust, "--pid", str(target.pid), status=1)
        assert "Traceback" not in ran.out and str(target.pid) in ran.out
        with LinuxProcess(target.pid) as process:
            assert "64-bit" in (process.untouchable() or "")
        assert target.ask("b") == "b"
        for command in ("status", "check"):
            ran = midflight(command, "--pid", str(target.pid), status=None)
            assert ran.status in (0, 1)
        assert target.ask("c") == "c"


@pytest.mark.parametrize("flags", [[], ["-static"], ["-static", "-DSIGNALS"]], ids=" ".join)
def test_a_program_of_another_c_library(tmp_path: Path, flags: list[str]) -> None:
    text = """
#ifdef SIGNALS
#define MORE signal(SIGUSR1, (void (*)(int))pause); raise(SIGWINCH);
#else
#define MORE
#endif
int main(void) { begin(); MORE puts("ready"); ask(); }
"""
    path = build(tmp_path, "musl", HEAD + text, "-Wl,--build-id", "-g", *flags, compiler="musl-gcc")
    hotpatch = make(path, {"answer": returns(2)})
    with Target.start(path) as target:
        assert target.ask() == "1 0"
        if flags == ["-static"]:
            # It has no signal handlers, and so nothing that returns from one, which is what our steps lean on.
            refused(target, hotpatch, "rt_sigreturn", "restart")
        else:
            for _ in range(3):
                applied(target, hotpatch)
                assert target.ask() == "2 0"
                reverted(target)
        assert target.ask() == "1 0" and clean(target)


# --- other tools -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = HEAD + 'int main(void) { begin(); spawn((void *(*)(void *))pause, 3, 0); puts("ready"); ask(); }'
    return compile_c(tmp_path_factory.mktemp("program"), "program", text)


@pytest.fixture
def target(program: Path) -> Iterator[Target]:
    with Target.start(program) as started:
        yield started


@pytest.fixture(scope="module")
def made(lab: Lab, program: Path) -> Signed:
    return signed(lab, make(program, {"answer": returns(2)}, "conditions"))


def entry_of(target: Target, program: Path) -> int:
    """Address of answer, as a first apply found it."""
    applied(target, make(program, {"answer": returns(2)}, "entry"))
    address = ledgers(target)[0].record.functions[0].old[0][0]
    reverted(target)
    return address


@pytest.mark.parametrize(
    "at, code, guess",
    [
        (0, b"\xe9\x01\x02\x03\x04", "jump"),
        (0, b"\xcc", "breakpoint"),
        (5, b"\xcc", "breakpoint"),
        (0, b"\xff\x25\0\0\0\0", "hook"),
    ],
    ids=["hook", "breakpoint", "breakpoint in the middle", "indirect hook"],
)
def test_the_hook_of_another_tool_is_named_and_left_alone(
    target: Target, program: Path, made: Signed, at: int, code: bytes, guess: str
) -> None:
    address = entry_of(target, program)
    with LinuxProcess(target.pid) as process:
        before = process.read(address + at, len(code))
        process.write(address + at, code)
        ran = midflight("apply", made.path, "--trust", made.trust, "--pid", str(target.pid), status=1)
        assert "answer" in ran.out
        report = check(target.pid, status=1)["processes"][0]
        assert not report["clean"]
        assert [d["start"] - address for d in report["differences"]] == [at]
        assert guess in report["differences"][0]["guess"]
        assert process.read(address + at, len(code)) == code
        process.write(address + at, before)
    assert target.ask() == "1 0"
    assert check(target.pid)["processes"][0]["clean"]


def test_a_hook_on_top_of_ours_stops_the_revert(target: Target, program: Path, made: Signed) -> None:
    midflight("apply", made.path, "--trust", made.trust, "--pid", str(target.pid))
    address = ledgers(target)[0].record.functions[0].old[0][0]
    with LinuxProcess(target.pid) as process:
        ours = process.read(address, 5)
        process.write(address, b"\xe9\x01\x02\x03\x04")
        ran = midflight("revert", made.path, "--pid", str(target.pid), status=1)
        assert "midflight check" in ran.out
        assert process.read(address, 5) == b"\xe9\x01\x02\x03\x04"
        process.write(address, ours)
    assert target.ask() == "2 0"
    midflight("revert", made.path, "--pid", str(target.pid))
    assert target.ask() == "1 0"


def test_preloaded_libraries(tmp_path: Path, program: Path) -> None:
    library = compile_c(tmp_path, "early.so", "int answer(int x) { return x * 0 + 5; }", "-shared", "-fPIC")
    with Target.start(program, env={"LD_PRELOAD": str(library)}) as target:
        applied(target, make(program, {"answer": returns(2)}))
        assert target.ask() == "2 0" and clean(target)
        reverted(target)
        assert target.ask() == "1 0"


def test_a_process_that_valgrind_translates_is_refused(program: Path) -> None:
    with Target.start(Path("valgrind"), "-q", str(program)) as target:
        refused(target, make(program, {"answer": returns(2)}), "valgrind")
        assert target.ask() == "1 0"


def test_a_profiler_that_samples_meanwhile(target: Target, program: Path) -> None:
    # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK, sampled every 100 us (perf_event_open(2)), as perf record does.
    attributes = bytearray(112)
    for offset, value, size in ((0, 1, 4), (4, 112, 4), (8, 1, 8), (16, 100_000, 8), (24, 7, 8), (40, 1 << 5, 8)):
        attributes[offset : offset + size] = value.to_bytes(size, "little")
    event = perf_event_open(bytes(attributes), target.pid)
    assert event >= 0
    try:
        for _ in range(5):
            applied(target, make(program, {"answer": returns(2)}))
            assert target.ask() == "2 0"
            reverted(target)
            assert target.ask() == "1 0"
    finally:
        os.close(event)


# --- the commands ----------------------------------------------------------------------------------------------------


def test_all_finds_many_processes_and_those_that_start_meanwhile(lab: Lab, program: Path, made: Signed) -> None:
    early = [Target.start(program) for _ in range(30)]
    late: list[Target] = []
    apply = subprocess.Popen(
        [*MIDFLIGHT, "apply", str(made.path), "--trust", str(made.trust), "--all", "--json"], stdout=subprocess.PIPE
    )
    try:
        for _ in range(4):
            late.append(Target.start(program))
        out, _ = apply.communicate(timeout=120)
        assert apply.returncode == 0, out
        rows = {row["pid"]: row["outcome"] for row in json.loads(out)["processes"]}
        assert all(rows[target.pid] == "applied" for target in early)
        assert all(target.ask() == "2 0" for target in early)
        # What the table says of a late one is true, whether it came early enough or not.
        for target in late:
            assert target.ask() == ("2 0" if rows.get(target.pid) == "applied" else "1 0")
        midflight("apply", made.path, "--trust", made.trust, "--all")
        assert all(target.ask() == "2 0" for target in late)
        assert all(len(line) <= 80 for line in midflight("status", "--all").out.splitlines())
        midflight("revert", made.path, "--all")
        assert all(target.ask() == "1 0" for target in early + late)
    finally:
        apply.kill()
        for target in early + late:
            target.stop(signal.SIGKILL)


@pytest.mark.parametrize("probe, fails", [("kill -0 $MIDFLIGHT_PIDS", False), ("exit 3", True), ("sleep 60", True)])
def test_probes(target: Target, made: Signed, probe: str, fails: bool) -> None:
    ran = midflight(
        "apply", made.path, "--trust", made.trust, "--pid", str(target.pid), "--probe", "true", "--probe", probe,
        "--probe-timeout", "1.5", status=1 if fails else 0,
    )  # fmt: skip
    assert target.ask() == ("1 0" if fails else "2 0")
    assert ("probe failed" in ran.out) is fails
    assert check(target.pid)["processes"][0]["clean"]


def test_what_the_commands_say_fits_a_terminal_and_is_true(target: Target, made: Signed) -> None:
    pid = str(target.pid)
    trust = ("--trust", str(made.trust))
    assert midflight("scan", made.path, "--json", status=1).json["processes"][0]["state"] == "needs"
    texts = [
        midflight("apply", made.path, *trust, "--pid", pid, "--dry-run").out,
        midflight("apply", made.path, *trust, "--pid", pid).out,
        midflight("apply", made.path, *trust, "--pid", pid).out,
        midflight("status", "--pid", pid).out,
        midflight("check", "--pid", pid).out,
        midflight("scan", made.path).out,  # all have it: status 0
        midflight("recover", "--pid", pid).out,
        midflight("revert", made.path, "--pid", pid, "--dry-run").out,
        midflight("revert", made.path, "--pid", pid).out,
        midflight("revert", made.path, "--pid", pid, status=None).out,
    ]
    for text in texts:
        # A digest is never cut: it is there to be copied.
        assert text and all(len(line) <= 80 or DIGEST.search(line) for line in text.splitlines()), text
        assert "\x1b" not in text
    assert "conditions" in texts[3] and "answer" in midflight("status", "--pid", pid, status=None).out + texts[3]
    assert midflight("apply", made.path, *trust, "--pid", pid, "--json").json["processes"][0]["outcome"] == "applied"
    for command in ("status", "check"):
        assert midflight(command, "--pid", pid, "--json").json["processes"][0]["pid"] == target.pid
    assert target.ask() == "2 0"


def test_two_engines_on_one_process_take_turns(target: Target, program: Path) -> None:
    hotpatches = [make(program, {"answer": returns(2)}, f"turn-{n}") for n in range(4)]
    outcomes: list[str] = []
    processes = [
        subprocess.Popen(
            [sys.executable, "-c",
             "import sys; from pathlib import Path; from tests.live.quick import put, take; "
             "from tests.engine.handmade import make, returns; "
             "h = make(Path(sys.argv[2]), {'answer': returns(2)}, sys.argv[3]); "
             "print([put(int(sys.argv[1]), h).outcome for _ in range(3)])",
             str(target.pid), str(program), item.manifest.name],
            stdout=subprocess.PIPE, text=True,
        )
        for item in hotpatches
    ]  # fmt: skip
    for process in processes:
        out, _ = process.communicate(timeout=120)
        outcomes.append(out.strip())
        assert process.returncode == 0
    assert set(outcomes) == {"['applied', 'already', 'already']"}
    assert target.ask() == "2 0" and clean(target)
    assert len(ledgers(target)) == 4
    reverted(target)
    assert target.ask() == "1 0" and clean(target) and ledgers(target) == []
