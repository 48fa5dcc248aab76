"""Stacks that no thread owns at the moment: what waits on them in a replaced function is found, or kept in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.engine.coroutines import runtime
from midflight.engine.modules import Files, Modules
from midflight.engine.recover import recover
from midflight.engine.transaction import Limits
from midflight.process.linux import LinuxProcess
from tests.engine.handmade import compile_c, make, returns
from tests.live.harness import Lab, Target, check
from tests.live.quick import LIFETIME, applied, clean, ledgers, refused, reverted

SWITCHES = {
    "ucontext": """
#include <ucontext.h>
static ucontext_t outside, inside;
static char stack[65536];
static void prepare(void (*body)(void)) {
  getcontext(&inside); inside.uc_stack.ss_sp = stack; inside.uc_stack.ss_size = sizeof stack;
  makecontext(&inside, body, 0);
}
static void enter(void) { swapcontext(&outside, &inside); }
static void leave(void) { swapcontext(&inside, &outside); }
""",
    # As QEMU does it: ucontext to begin with, setjmp and longjmp from then on (their stack pointers are mangled).
    "setjmp": """
#include <setjmp.h>
#include <ucontext.h>
static ucontext_t outside, inside;
static jmp_buf out, in;
static char *stack;
static int begun;
static void prepare(void (*body)(void)) {
  stack = malloc(65536);
  getcontext(&inside); inside.uc_stack.ss_sp = stack; inside.uc_stack.ss_size = 65536; makecontext(&inside, body, 0);
}
static void enter(void) { if (!_setjmp(out)) { if (begun++) _longjmp(in, 1); setcontext(&inside); } }
static void leave(void) { if (!_setjmp(in)) _longjmp(out, 1); }
""",
    # As libco does it: registers pushed, stack pointers exchanged.
    "libco": """
void co_switch(void **save, void *load);
__asm__(".globl co_switch\\nco_switch: push %rbp\\n push %rbx\\n push %r12\\n push %r13\\n push %r14\\n push %r15\\n"
        "mov %rsp, (%rdi)\\n mov %rsi, %rsp\\n pop %r15\\n pop %r14\\n pop %r13\\n"
        "pop %r12\\n pop %rbx\\n pop %rbp\\n ret\\n"
        ".type co_switch,@function\\n.size co_switch, .-co_switch");
static void *outside, *inside;
static void prepare(void (*body)(void)) {
  void **top = (void **)((char *)mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + 65536);
  *--top = 0; *--top = (void *)body; top -= 6; inside = top;
}
static void enter(void) { co_switch(&outside, inside); }
static void leave(void) { co_switch(&inside, outside); }
""",
}

TARGET = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
@SWITCH@
__attribute__((noinline)) int step(int x) {
  /* Waits in the middle of its work until somebody comes back to it. */
  leave();
  __asm__ volatile("" : "+r"(x));
  return @STEP@;
}
static int result, rounds;
static void body(void) { for (;;) { result = step(rounds); rounds++; leave(); } }
int main(void) {
  char line[64];
  @LIFE@
  setvbuf(stdout, NULL, _IOLBF, 0);
  prepare(body);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) { enter(); printf("%d %d\\n", result, rounds); }
  return 0;
}
"""


def source(switch: str, step: str = "x * 0 + 1") -> str:
    return TARGET.replace("@SWITCH@", SWITCHES[switch]).replace("@LIFE@", LIFETIME).replace("@STEP@", step)


@pytest.mark.parametrize(
    "switch, flag",
    [("ucontext", "-pie"), ("ucontext", "-static"), ("setjmp", "-pie"), ("libco", "-Wl,-export-dynamic")],
)
def test_a_function_that_a_coroutine_waits_in_is_busy(tmp_path: Path, switch: str, flag: str) -> None:
    program = compile_c(tmp_path, "target", source(switch), flag)
    with Target.start(program) as target:
        assert target.ask() == "0 0"  # waits in step
        refused(target, make(program, {"step": returns(2)}), "coroutine", "step", "--timeout", busy=0.2)
        assert ledgers(target) == [] and clean(target)
        assert target.ask() == "1 1"  # waits outside
        assert target.ask() == "1 1"  # in step again
        refused(target, make(program, {"step": returns(2)}), "coroutine", "step", busy=0.2)
        assert target.ask() == "1 2"


def test_it_is_patched_when_the_coroutine_waits_elsewhere(tmp_path: Path) -> None:
    program = compile_c(tmp_path, "target", source("ucontext"))
    hotpatch = make(program, {"step": returns(2)})
    with Target.start(program) as target:
        assert [target.ask(), target.ask()] == ["0 0", "1 1"]
        applied(target, hotpatch)
        assert [target.ask(), target.ask()] == ["2 2", "2 3"]
        reverted(target)
        assert [target.ask(), target.ask()] == ["2 3", "1 4"]
        assert clean(target)


def test_a_pointer_to_a_function_is_no_coroutine_in_it(tmp_path: Path) -> None:
    """Whoever links OpenSSL has a runtime of coroutines and never uses it; tables of callbacks are everywhere."""
    program = compile_c(
        tmp_path,
        "target",
        """
#include <setjmp.h>
#include <stdio.h>
#include <ucontext.h>
#include <unistd.h>
#include <sys/prctl.h>
static jmp_buf jump;
static ucontext_t context;
__attribute__((noinline)) int callback(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
int (*volatile table[])(int) = {callback};
int main(int count, char **words) {
  char line[64];
  @LIFE@
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (count > 9 && !_setjmp(jump)) { setcontext(&context); _longjmp(jump, 1); }
  puts("ready");
  while (fgets(line, sizeof line, stdin)) printf("%d\\n", table[0](1));
  return 0;
}
""".replace("@LIFE@", LIFETIME),
    )
    with Target.start(program) as target:
        assert target.ask() == "1"
        applied(target, make(program, {"callback": returns(2)}))
        assert target.ask() == "2"
        reverted(target)
        assert target.ask() == "1"


@pytest.mark.parametrize("lend", [1, 0], ids=["with another thread", "alone"])
def test_the_stack_that_a_thread_left_counts(tmp_path: Path, lend: int) -> None:
    # The main thread works on another stack; its own waits in the function.
    program = compile_c(
        tmp_path,
        "target",
        source("ucontext")
        .replace("int main(void)", "static int run(void)")
        .replace("prepare(body);", "")
        .replace(
            '{ enter(); printf("%d %d\\n", result, rounds); }',
            "{ if (*line == 'x') leave(); puts(\"here\"); } exit(0);",
        )
        + """
static void other(void) { run(); }
__attribute__((noinline)) int waits(int x) { enter(); __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
static void *idle(void *p) { pause(); return p; }
int main(void) {
  pthread_t t;
  if (LEND) pthread_create(&t, 0, idle, 0);
  prepare(other);
  printf("left with %d\\n", waits(1));
  printf("then %d\\n", waits(1));
}
""",
        f"-DLEND={lend}",
    )
    hotpatch = make(program, {"waits": returns(2)})
    with Target.start(program) as target:
        assert target.ask() == "here"
        # Nothing is ever mapped by a thread that runs on a stack of which nobody knows how far it reaches.
        refused(target, hotpatch, "coroutine", "waits" if lend else "not a thread's own", busy=0.2)
        assert ledgers(target) == [] and clean(target)
        assert target.ask() == "here"
        assert target.ask("x") == "left with 1"


def test_new_code_stays_as_long_as_a_coroutine_waits_in_it(lab: Lab) -> None:
    before, after = source("ucontext"), source("ucontext", "x * 0 + 2 + (rand() < 0)")
    fix = lab.fix("coroutine", {"target.c": before}, {"target.c": after})
    with Target.start(fix.image) as target:
        assert [target.ask(), target.ask()] == ["0 0", "1 1"]
        fix.apply(target.pid)
        assert [target.ask(), target.ask(), target.ask()] == ["1 1", "2 2", "2 2"]
        # It waits in new code, and is resumed there although nothing leads there any more.
        fix.revert(target.pid)
        assert check(target.pid)["processes"][0]["clean"]
        assert target.ask() == "2 3"
        assert [target.ask(), target.ask()] == ["2 3", "1 4"]
        with LinuxProcess(target.pid) as process, Files() as files:
            recover(process, files, Limits())
        assert [target.ask(), target.ask()] == ["1 4", "1 5"]
        fix.apply(target.pid)
        assert [target.ask(), target.ask()] == ["1 5", "2 6"]


def has_runtime(program: Path) -> bool:
    """Whether the engine would look for coroutines in a process of this program."""
    with Target.start(program) as target, LinuxProcess(target.pid) as process, Files() as files:
        return runtime(Modules(process, process.maps(), files)) is not None


def test_a_program_that_merely_links_openssl_has_no_coroutines(tmp_path: Path) -> None:
    """libcrypto switches stacks for asynchronous jobs, which a program must ask for."""
    waits = "#include <stdio.h>\n#include <unistd.h>\nint %s(void);\nint main(int c, char **v) {\n"
    waits += '  puts("ready"); fflush(stdout); alarm(60); pause();\n  return %s();\n}'
    for function, expected in (("OpenSSL_version_num", False), ("ASYNC_start_job", True)):
        program = compile_c(tmp_path, function, waits.replace("%s", function), "-Wl,--no-as-needed", "-lcrypto")
        assert has_runtime(program) is expected
