"""Threads in every condition: always busy, hundreds, born and dying, with odd stacks, without their main thread."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.engine.handmade import compile_c, make, returns
from tests.live.harness import Target
from tests.live.quick import HEAD, applied, clean, ledgers, put, refused, reverted, started, take


def program(folder: Path, text: str, *flags: str) -> Path:
    return compile_c(folder, "target", HEAD + text, *flags)


def cycle(target: Target, path: Path, times: int = 3, functions: tuple[str, ...] = ("answer",)) -> None:
    """Apply and revert, the target's own answers being the proof."""
    hotpatch = make(path, {name: returns(2) for name in functions})
    for _ in range(times):
        assert target.ask() == "1 0"
        applied(target, hotpatch)
        assert target.ask() == "2 0"
        reverted(target)
    assert target.ask() == "1 0"
    assert clean(target)


def test_32_threads_that_do_nothing_else_than_run_the_function(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "static void *spin(void *p) { for (;;) work(); return p; }"
        'int main(void) { begin(); spawn(spin, 32, 65536); puts("ready"); ask(); }',
    )
    with Target.start(path) as target:
        cycle(target, path, 2)


def test_memory_is_given_back_however_much_room_the_stacks_have(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "static void *rest(void *p) { for (;;) { work(); nap(2000); } return p; }"
        'int main(void) { begin(); spawn(rest, 128, 8 << 20); puts("ready"); ask(); }',
    )
    with Target.start(path) as target:
        cycle(target, path, 1)
        take(target)
        assert ledgers(target) == [], "a GiB of stacks that nobody wrote to was taken for memory to be searched"


def test_a_function_that_one_of_many_threads_never_leaves_is_named_with_its_thread(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        """
static _Atomic int stay = 1, tid;
__attribute__((noinline)) int forever(int x) { while (stay) nap(500); __asm__ volatile("" : "+r"(x)); return x; }
static void *run(void *p) { tid = syscall(SYS_gettid); forever(1); for (;;) { tid = 0; nap(500); } return p; }
static void *others(void *p) { for (;;) { work(); nap(300); } return p; }
int main(void) {
  char line[64];
  begin(); spawn(others, 12, 0); spawn(run, 1, 0);
  while (!tid) nap(100);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'e') { stay = 0; while (tid) nap(100); }
    printf("%d %ld %d\\n", answer(1), (long)errors, (int)tid);
  }
}
""",
    )
    hotpatch = make(path, {"forever": returns(1), "answer": returns(2)})
    with Target.start(path) as target:
        _, _, tid = target.ask().split()
        refused(target, hotpatch, f"thread {tid}", "forever", busy=0.3)
        assert target.ask() == f"1 0 {tid}"
        assert ledgers(target) == [] and clean(target)
        # libcare calls it frame_finish: as soon as the function returns, it can be patched.
        done: list[object] = []
        waits = threading.Thread(target=lambda: done.append(applied(target, hotpatch)))
        waits.start()
        time.sleep(0.3)
        assert not done
        assert target.ask("end").endswith(" 0")
        waits.join(60)
        assert done
        assert target.ask() == "2 0 0"


def test_a_recursion_of_ten_megabytes(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        """
static _Atomic int deep, stay = 1;
__attribute__((noinline)) int down(int n) {
  volatile char room[200]; room[n % 200] = 1;
  if (n) return down(n - 1) + room[n % 200];
  deep = 1;
  while (stay) { work(); nap(300); }
  return 0;
}
static void *run(void *p) { down(50000); deep = 0; for (;;) { work(); nap(300); } return p; }
int main(void) {
  char line[64];
  begin(); spawn(run, 1, 32 << 20);
  while (!deep) nap(100);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'e') { stay = 0; while (deep) nap(100); }
    printf("%d %ld\\n", answer(1), (long)errors);
  }
}
""",
        "-fno-optimize-sibling-calls",
    )
    with Target.start(path) as target:
        cycle(target, path)
        refused(target, make(path, {"down": returns(2)}, "deep"), "down", busy=0.2)
        assert target.ask("end") == "1 0"
        applied(target, make(path, {"down": returns(2)}, "deep"))
        assert target.ask() == "1 0"


def test_threads_on_tiny_stacks_and_stacks_in_the_heap(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        """
static void *spin(void *p) { for (;;) { work(); syscall(SYS_sched_yield); } return p; }
int main(void) {
  begin();
  for (int i = 0; i < 6; i++) {
    pthread_attr_t a; pthread_t t; pthread_attr_init(&a);
    /* three in the heap, three that end right below a page that must not be touched */
    size_t size = 16384;
    char *s = i < 3 ? aligned_alloc(4096, size)
                    : (char *)mmap(0, size + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + 4096;
    if (i >= 3) mprotect(s, size, PROT_READ | PROT_WRITE);
    if (pthread_attr_setstack(&a, s, size) || pthread_create(&t, &a, spin, NULL)) abort();
  }
  puts("ready"); ask();
}
""",
    )
    with Target.start(path) as target:
        cycle(target, path)


def test_threads_on_alternate_signal_stacks(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        """
static _Atomic int in_handler, stay = 1;
static void handler(int n) { in_handler++; while (stay) { work(); nap(200); } in_handler--; (void)n; }
__attribute__((noinline)) int interrupted(int x) { raise(SIGUSR1); __asm__ volatile("" : "+r"(x)); return x; }
static void *run(void *p) {
  stack_t s = {.ss_sp = malloc(65536), .ss_size = 65536};
  sigaltstack(&s, NULL);
  interrupted(1);
  for (;;) { work(); nap(200); }
  return p;
}
int main(void) {
  char line[64];
  struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  sigaction(SIGUSR1, &a, NULL);
  begin(); spawn(run, 4, 0);
  while (in_handler < 4) nap(100);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'e') { stay = 0; while (in_handler) nap(100); nap(2000); }
    printf("%d %ld\\n", answer(1), (long)errors);
  }
}
""",
    )
    with Target.start(path) as target:
        cycle(target, path)
        # The interrupted stack counts as well.
        refused(target, make(path, {"interrupted": returns(2)}, "below"), "interrupted", busy=0.2)
        assert target.ask("end") == "1 0"
        applied(target, make(path, {"interrupted": returns(2)}, "below"))
        assert target.ask() == "1 0"


def test_threads_that_are_born_and_die_at_full_speed(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        """
static void *brief(void *p) { work(); return p; }
static void *churn(void *p) {
  for (;;) { pthread_t t[4]; for (int i = 0; i < 4; i++) if (pthread_create(t + i, NULL, brief, NULL)) abort();
             for (int i = 0; i < 4; i++) pthread_join(t[i], NULL); }
  return p;
}
int main(void) { begin(); spawn(churn, 3, 0); puts("ready"); ask(); }
""",
    )
    with Target.start(path) as target:
        cycle(target, path, 15)


def test_783_threads(tmp_path: Path) -> None:
    # As many as a virtual machine of libcare's users had, each of them at work now and then.
    path = program(
        tmp_path,
        "static void *run(void *p) { for (;;) { work(); nap(60000); } return p; }"
        'int main(void) { begin(); spawn(run, 782, 65536); puts("ready"); ask(); }',
    )
    with Target.start(path) as target:
        assert len(os.listdir(f"/proc/{target.pid}/task")) == 783
        cycle(target, path, 2)


def test_a_main_thread_that_left(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        """
static void *run(void *p) { nap(1000); puts("ready"); ask(); exit(0); return p; }
int main(void) { begin(); spawn(run, 1, 0); pthread_exit(NULL); }
""",
    )
    with Target.start(path) as target:
        cycle(target, path)


def test_cancelled_and_exiting_threads_unwind_through_the_function(tmp_path: Path) -> None:
    # pthread_cancel(3) and pthread_exit(3) unwind the stack: the frames of old code that wait there must still do.
    path = program(
        tmp_path,
        """
static _Atomic int cleaned, inside;
static void clean(void *p) { cleaned++; (void)p; }
__attribute__((noinline)) int waits(int x) {
  pthread_cleanup_push(clean, NULL);
  inside++;
  for (;;) pause();
  pthread_cleanup_pop(0);
  return x;
}
static void *run(void *p) { waits(1); return p; }
int main(void) {
  char line[64];
  pthread_t t[4];
  begin();
  for (int i = 0; i < 4; i++) pthread_create(t + i, NULL, run, NULL);
  while (inside < 4) nap(100);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'c') for (int i = 0; i < 4; i++) { pthread_cancel(t[i]); pthread_join(t[i], NULL); }
    printf("%d %d\\n", answer(1), (int)cleaned);
  }
}
""",
        "-fexceptions",
    )
    with Target.start(path) as target:
        # Policy entry: threads may stay in the old version, which leads into nothing new.
        applied(target, make(path, {"waits": returns(2), "answer": returns(2)}, policy="entry"))
        assert target.ask() == "2 0"
        assert target.ask("cancel") == "2 4"
        reverted(target)
        assert target.ask() == "1 4"


def test_nothing_is_left_behind_in_the_process(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "static void *idle(void *p) { for (;;) { work(); nap(500); } return p; }"
        'int main(void) { begin(); spawn(idle, 8, 65536); puts("ready"); ask(); }',
    )
    with Target.start(path) as target:
        cycle(target, path, 3)
        before = started(target)
        cycle(target, path, 20)
        after = started(target)
        assert {k: v for k, v in after.items() if k != "resident"} == {
            k: v for k, v in before.items() if k != "resident"
        }
        assert after["resident"] <= before["resident"] + 64


@pytest.mark.parametrize("number", range(8))
def test_a_process_that_exits_meanwhile(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    # 25 times each: at random moments, by exit and by a signal, with one thread and with many.
    folder = tmp_path_factory.mktemp("exits")
    path = program(
        folder,
        """
static void *idle(void *p) { for (;;) { work(); nap(100); } return p; }
int main(int c, char **v) {
  begin(); spawn(idle, atoi(v[1]), 65536); puts("ready"); nap(atol(v[2]));
  if (v[3][0] == 'k') kill(getpid(), SIGKILL);
  _exit(7);
}
""",
    )
    hotpatch = make(path, {"answer": returns(2)})
    outcomes = []
    for trial in range(25):
        how = "kill" if trial % 2 else "exit"
        with Target.start(path, str(number), str(300 + trial * 450), how) as target:
            outcome = put(target, hotpatch)
            outcomes.append(outcome.outcome)
            if outcome.outcome == "applied":
                outcome = take(target)
            assert outcome.outcome in ("applied", "reverted", "skipped", "failed")
            assert "\n" not in outcome.reason
            if outcome.outcome in ("skipped", "failed"):
                assert "ended" in outcome.reason, outcome.reason
            assert target.process.wait(60) == (-9 if trial % 2 else 7)
    assert outcomes
