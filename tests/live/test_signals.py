"""Signals, interrupted system calls, job control and debuggers: the target must not notice, or it is refused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.handmade import Handmade, compile_c, make, returns
from tests.live.harness import Target
from tests.live.quick import HEAD, applied, clean, ledgers, refused, reverted

SIGNALS = 50_000

QUEUED = """
static long expected, lost, order;
static _Atomic int ready;
static void *receive(void *p) {
  sigset_t s; siginfo_t i;
  sigfillset(&s); pthread_sigmask(SIG_BLOCK, &s, NULL);  /* the handlers run in the main thread */
  sigemptyset(&s); sigaddset(&s, SIGRTMIN);
  ready++;
  for (;;) {
    if (sigwaitinfo(&s, &i) < 0) { errors++; continue; }
    if (i.si_code != SI_QUEUE || i.si_value.sival_int != expected) order++;
    expected++;
  }
  return p;
}
static volatile long handled, wrong;
static void handler(int n, siginfo_t *i, void *c) {
  if (i->si_code != SI_QUEUE || i->si_value.sival_int != handled) wrong++;
  handled++; (void)n; (void)c;
}
static _Atomic long ticks;
static void tick(int n) { ticks++; (void)n; }
int main(void) {
  struct sigaction a = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
  struct sigaction t = {.sa_handler = tick, .sa_flags = SA_RESTART};
  struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
  struct itimerspec often = {{0, 1000000}, {0, 1000000}};
  timer_t timer;
  char line[64];
  sigset_t s;
  begin();
  sigemptyset(&s); sigaddset(&s, SIGRTMIN); sigprocmask(SIG_BLOCK, &s, NULL);
  spawn(receive, 1, 0);
  while (!ready) nap(100);
  sigaction(SIGRTMIN + 2, &a, NULL);
  sigaction(SIGUSR1, &t, NULL);
  if (timer_create(CLOCK_MONOTONIC, &e, &timer) || timer_settime(timer, 0, &often, NULL)) abort();
  puts("ready");
  while (fgets(line, sizeof line, stdin))
    printf("%d %ld %ld %ld %ld %ld %ld\\n", answer(1), (long)errors, expected, order, handled, wrong, (long)ticks);
}
"""

# Sends the same signals to a process, waiting where its queue is full.
SENDER = """
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int main(int c, char **v) {
  int pid = atoi(v[1]), n = atoi(v[2]);
  struct timespec t = {0, 200000};
  for (int i = 0; i < n; i++)
    for (int k = 0; k < 3; k += 2) {
      union sigval s = {.sival_int = i};
      while (sigqueue(pid, SIGRTMIN + k, s)) { if (errno != EAGAIN) return 1; nanosleep(&t, NULL); }
      if (i % 50 == 0) nanosleep(&t, NULL);
    }
  return 0;
}
"""


def test_50_000_queued_signals_arrive_once_each_in_order_with_their_values(tmp_path: Path) -> None:
    path = compile_c(tmp_path, "target", HEAD + QUEUED, "-lrt")
    sender = compile_c(tmp_path, "sender", SENDER)
    hotpatch = make(path, {"answer": returns(2)})
    cycles = 0
    with Target.start(path) as target:
        # One stream is taken by sigwaitinfo in a thread, the other by a handler in the main thread.
        sends = subprocess.Popen([sender, str(target.pid), str(SIGNALS // 2)])
        while sends.poll() is None or cycles < 20:
            applied(target, hotpatch)
            reverted(target)
            cycles += 1
        assert sends.wait() == 0
        answer = ""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = target.ask()
            if answer.split()[2] == answer.split()[4] == str(SIGNALS // 2):
                break
            time.sleep(0.01)
        value, errors, waited, order, handled, wrong, ticks = map(int, answer.split())
        assert (value, errors, order, wrong) == (1, 0, 0, 0)
        assert (waited, handled) == (SIGNALS // 2, SIGNALS // 2)
        assert ticks > 100
        # The timer still ticks.
        time.sleep(0.2)
        assert int(target.ask().split()[6]) > ticks


CALLS = """
#include <arpa/inet.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#define LONG 600
static int failed(const char *name, int r) {
  errors++;
  return fprintf(stderr, "%s: %d %s\\n", name, r, strerror(errno));
}
#define CALL(name, expr) static void *name(void *p) { for (;;) failed(#name, (expr)); return p; }
static int fds[2], pair[2], udp, tcp, watch, epoll, sem, queue, timer_fd, event_fd, word;
static struct timespec long_time = {LONG, 0};
static struct timeval select_time = {LONG, 0};
static char b[512];
static int chosen(void) {
  fd_set f; FD_ZERO(&f); FD_SET(fds[0], &f);
  return select(fds[0] + 1, &f, 0, 0, &select_time);
}
static int polled(int timeout) { struct pollfd f = {fds[0], POLLIN, 0}; return poll(&f, 1, timeout); }
static int ppolled(void) { struct pollfd f = {fds[0], POLLIN, 0}; return ppoll(&f, 1, &long_time, NULL); }
static int slept(void) { struct timespec t = {LONG, 0}; return nanosleep(&t, NULL); }
static int until(void) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); t.tv_sec += LONG;
  return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}
static int waited(void) {
  sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2);
  return sigtimedwait(&s, NULL, &long_time);
}
static int epolled(void) { struct epoll_event e; return epoll_wait(epoll, &e, 1, LONG * 1000); }
static int semop1(int op) { struct sembuf s = {0, op, 0}; return semtimedop(sem, &s, 1, &long_time); }
static int message(void) { struct { long type; char text[8]; } m; return msgrcv(queue, &m, 8, 0, 0); }
static int sixty_four(void) { char buffer[64]; return read(event_fd, buffer, 8); }
CALL(c_read, read(fds[0], b, 1))
CALL(c_nanosleep, slept())
CALL(c_clock_nanosleep, until())
CALL(c_poll, polled(LONG * 1000))
CALL(c_poll_for_ever, polled(-1))
CALL(c_ppoll, ppolled())
CALL(c_select, chosen())
CALL(c_epoll_wait, epolled())
CALL(c_futex, syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time))
CALL(c_futex_for_ever, syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL))
CALL(c_semop, semop1(-1))
CALL(c_sigtimedwait, waited())
CALL(c_accept, accept(tcp, NULL, NULL))
CALL(c_recv_with_timeout, recv(pair[0], b, 1, 0))
CALL(c_recvfrom, recvfrom(udp, b, 1, 0, NULL, NULL))
CALL(c_msgrcv, message())
CALL(c_inotify, read(watch, b, sizeof b))
CALL(c_timerfd, read(timer_fd, b, 8))
CALL(c_eventfd, sixty_four())
CALL(c_pause, pause())
CALL(c_waitpid, waitpid(-1, NULL, 0))
CALL(c_write, write(fds[1] + 100, b, sizeof b))
int main(void) {
  void *(*all[])(void *) = {c_read, c_nanosleep, c_clock_nanosleep, c_poll, c_poll_for_ever, c_ppoll, c_select,
    c_epoll_wait, c_futex, c_futex_for_ever, c_semop, c_sigtimedwait, c_accept, c_recv_with_timeout, c_recvfrom,
    c_msgrcv, c_inotify, c_timerfd, c_eventfd, c_pause, c_waitpid, c_write};
  struct timeval timeout = {LONG, 0};
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct itimerspec once = {{0, 0}, {LONG, 0}};
  int full[2];
  sigset_t s;
  begin();
  sigemptyset(&s); sigaddset(&s, SIGUSR2); sigprocmask(SIG_BLOCK, &s, NULL);
  if (pipe(fds) || pipe(full) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) abort();
  setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  udp = socket(AF_INET, SOCK_DGRAM, 0); bind(udp, (void *)&any, sizeof any);
  tcp = socket(AF_INET, SOCK_STREAM, 0); bind(tcp, (void *)&any, sizeof any); listen(tcp, 1);
  setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  watch = inotify_init1(0); inotify_add_watch(watch, "/proc/self", IN_CREATE);
  epoll = epoll_create1(0); event_fd = eventfd(0, 0);
  sem = semget(IPC_PRIVATE, 1, 0600); queue = msgget(IPC_PRIVATE, 0600);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, 0); timerfd_settime(timer_fd, 0, &once, NULL);
  while (dup2(full[1], fds[1] + 100) < 0) abort();
  signal(SIGPIPE, SIG_IGN);
  if (!fork()) { alarm(240); for (;;) pause(); }
  /* A pipe that is full, so that the thread that writes to it waits. */
  { char page[4096] = {0}; for (int i = 0; i < 16; i++) if (write(full[1], page, sizeof page) != sizeof page) abort(); }
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) spawn(all[i], 1, 65536);
  nap(200000);
  puts("ready");
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'q') { semctl(sem, 0, IPC_RMID); msgctl(queue, IPC_RMID, NULL); puts("bye"); kill(0, SIGKILL); }
    printf("%d %ld\\n", answer(1), (long)errors);
  }
}
"""


def test_no_waiting_system_call_notices(tmp_path: Path) -> None:
    path = compile_c(tmp_path, "target", HEAD + CALLS)
    hotpatch = make(path, {"answer": returns(2)})
    with Target.start(path, start_new_session=True) as target:
        try:
            for _ in range(20):
                applied(target, hotpatch)
                assert target.ask() == "2 0"
                reverted(target)
                assert target.ask() == "1 0"
        finally:
            assert target.ask("quit") == "bye"


def test_every_thread_may_be_the_one_that_works_for_us(tmp_path: Path) -> None:
    # Memory is mapped by a thread of the target; here each time another call is what that thread was doing.
    for call in ("slept()", "polled(LONG * 1000)", "polled(-1)", "chosen()", "epolled()", "semop1(-1)", "waited()",
                 "message()", "until()", "accept(tcp, NULL, NULL)", "recv(pair[0], b, 1, 0)", "pause()"):  # fmt: skip
        head = CALLS.partition("int main(void) {")[0]
        alone = f"""
static void by_signal(int n) {{
  if (n == SIGTERM) {{ semctl(sem, 0, IPC_RMID); msgctl(queue, IPC_RMID, NULL); _exit(0); }}
  char t[64]; int k = snprintf(t, sizeof t, "%d %ld\\n", answer(1), (long)errors);
  if (write(1, t, k) < 0) abort(); }}
int main(void) {{
  struct sigaction a = {{.sa_handler = by_signal, .sa_flags = SA_RESTART}};
  struct timeval timeout = {{LONG, 0}};
  struct sockaddr_in any = {{.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}};
  sigset_t s;
  begin();
  sigemptyset(&s); sigaddset(&s, SIGUSR2); sigprocmask(SIG_BLOCK, &s, NULL);
  sigaction(SIGUSR1, &a, NULL); sigaction(SIGTERM, &a, NULL);
  if (pipe(fds) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) abort();
  setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  tcp = socket(AF_INET, SOCK_STREAM, 0); bind(tcp, (void *)&any, sizeof any); listen(tcp, 1);
  epoll = epoll_create1(0); sem = semget(IPC_PRIVATE, 1, 0600); queue = msgget(IPC_PRIVATE, 0600);
  puts("ready");
  for (;;) {{ int r = {call}; if (r >= 0 || errno != EINTR) errors += 100; else errors++; }}
}}
"""
        path = compile_c(tmp_path, "target", HEAD + head + alone, "-w")
        hotpatch = make(path, {"answer": returns(2)})
        with Target.start(path) as target:
            time.sleep(0.05)
            for _ in range(3):
                applied(target, hotpatch)
                reverted(target)
            applied(target, hotpatch)
            # Nothing came back from the call so far; a real signal is delivered by new code.
            os.kill(target.pid, signal.SIGUSR1)
            assert target.line() == "2 0", call
            assert target.stop(signal.SIGTERM) == 0


def test_reading_from_a_terminal_is_not_disturbed(tmp_path: Path) -> None:
    path = compile_c(tmp_path, "target", HEAD + 'int main(void) { begin(); puts("ready"); ask(); puts("end"); }')
    hotpatch = make(path, {"answer": returns(2)})
    ours, theirs = os.openpty()
    process = subprocess.Popen([path], stdin=theirs, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for expected in ("2 0\n", "2 0\n"):
            applied(process.pid, hotpatch)
            os.write(ours, b"half ")
            reverted(process.pid)
            applied(process.pid, hotpatch)
            os.write(ours, b"line\n")
            assert process.stdout.readline() == expected
            reverted(process.pid)
        os.write(ours, b"\x04")  # end of file
        assert process.stdout.readline() == "end\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[tuple[Target, Handmade]]:
    path = compile_c(
        tmp_path,
        "target",
        HEAD + "static void *idle(void *p) { for (;;) { work(); nap(500); } return p; }"
        'int main(void) { begin(); spawn(idle, 3, 0); puts("ready"); ask(); }',
    )
    with Target.start(path) as target:
        yield target, make(path, {"answer": returns(2)})


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def reaches(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while state(pid) not in wanted:
        assert time.monotonic() < deadline, f"{pid} is {state(pid)}, not {wanted}"
        time.sleep(0.005)


def test_a_stopped_job_is_patched_and_stays_stopped(plain: tuple[Target, Handmade]) -> None:
    target, hotpatch = plain
    for _ in range(3):
        os.kill(target.pid, signal.SIGSTOP)
        reaches(target.pid, "T")
        applied(target, hotpatch)
        reaches(target.pid, "T")
        for tid in os.listdir(f"/proc/{target.pid}/task"):
            reaches(int(tid), "T")
        os.kill(target.pid, signal.SIGCONT)
        assert target.ask() == "2 0"
        os.kill(target.pid, signal.SIGSTOP)
        reaches(target.pid, "T")
        reverted(target)
        reaches(target.pid, "T")
        os.kill(target.pid, signal.SIGCONT)
        assert target.ask() == "1 0"


def traced(pid: int) -> bool:
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("tool", ["gdb", "strace"])
def test_a_process_under_another_tracer_is_refused_by_its_name(
    plain: tuple[Target, Handmade], tool: str, tmp_path: Path
) -> None:
    target, hotpatch = plain
    commands = {
        "gdb": ["gdb", "-q", "-nx", "-p", str(target.pid), "-ex", "set confirm off", "-ex", "shell sleep 1000"],
        "strace": ["strace", "-f", "-q", "-o", str(tmp_path / "trace"), "-p", str(target.pid)],
    }
    tracer = subprocess.Popen(
        commands[tool], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not traced(target.pid):
            assert tracer.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        refused(target, hotpatch, tool, "traced")
        assert tracer.poll() is None and traced(target.pid)
    finally:
        os.killpg(tracer.pid, signal.SIGKILL)
        tracer.wait()
    deadline = time.monotonic() + 30
    while traced(target.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(target.pid, signal.SIGCONT)
    assert target.ask() == "1 0"
    assert ledgers(target) == []
    applied(target, hotpatch)
    assert target.ask() == "2 0"
    reverted(target)
    assert target.ask() == "1 0" and clean(target)


def test_locks_that_are_held_do_no_harm(tmp_path: Path) -> None:
    # The loader's, the allocator's and stdio's locks, each held by a thread that waits; and a constructor at work.
    path = compile_c(
        tmp_path,
        "target",
        HEAD
        + """
#include <dlfcn.h>
#include <link.h>
static _Atomic int held;
static int each(struct dl_phdr_info *i, size_t n, void *p) { held++; for (;;) nap(900); return 0; }
static void *loader(void *p) { dl_iterate_phdr(each, NULL); return p; }
static void *stream(void *p) { flockfile(stderr); held++; for (;;) nap(900); return p; }
static void *busy_heap(void *p) { for (;;) free(malloc(rand() % 100000)); return p; }
static void *busy_loader(void *p) { for (;;) dlsym(RTLD_DEFAULT, "not_there"); return p; }
__attribute__((constructor)) static void at_start(void) {
  begin();
  spawn(loader, 1, 0); spawn(stream, 1, 0); spawn(busy_heap, 3, 0); spawn(busy_loader, 1, 0);
  while (held < 2) nap(100);
  puts("ready");
  ask();
}
int main(void) { return 3; }
""",
    )
    hotpatch = make(path, {"answer": returns(2)})
    with Target.start(path) as target:
        for _ in range(5):
            applied(target, hotpatch)
            assert target.ask() == "2 0"
            reverted(target)
            assert target.ask() == "1 0"


def test_uninterruptible_sleep_is_named(tmp_path: Path) -> None:
    # vfork(2) leaves its caller in state D until the child execs or ends.
    path = compile_c(
        tmp_path,
        "target",
        HEAD
        + """
static _Atomic int stay = 1;
static void *forks(void *p) {
  if (!vfork()) { while (stay) nap(1000); _exit(0); }
  for (;;) { work(); nap(500); }
  return p;
}
int main(void) {
  char line[64];
  begin(); spawn(forks, 1, 0); nap(100000); puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'e') { stay = 0; nap(50000); }
    printf("%d %ld\\n", answer(1), (long)errors);
  }
}
""",
    )
    hotpatch = make(path, {"answer": returns(2)})
    with Target.start(path) as target:
        refused(target, hotpatch, "vfork", busy=1, stop=1)
        assert target.ask() == "1 0"
        assert target.ask("end") == "1 0"
        applied(target, hotpatch)
        assert target.ask() == "2 0"
