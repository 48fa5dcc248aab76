"""Programs with difficult stacks, and gdb's own view of them, to compare ours with."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midflight.errors import ImageError
from midflight.image.elf import ElfFile
from midflight.image.unwind import Module, Stack, walk

THREADS = r"""
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define NOINLINE __attribute__((noinline, noipa))
static atomic_int ready;
static int never;
NOINLINE static void block(void) { ready++; for (;;) pause(); }
NOINLINE static int recurse(int n, char *above) {
  char *mine = alloca(16 + n * 24);
  memset(mine, n, 16 + n * 24);
  if (n == 0) block();
  return recurse(n - 1, mine) + mine[n] + above[0];
}
NOINLINE static double aligned_frame(int n, double x) {
  double v[8] __attribute__((aligned(64)));
  char *extra = alloca(n);
  for (int i = 0; i < 8; i++) v[i] = x + i;
  extra[0] = v[n & 7];
  if (n > 3) recurse(n, extra);
  return aligned_frame(n + 1, v[n & 7]) + v[(n + 1) & 7] + extra[0];
}
NOINLINE static int many(int a, int b, int c, int d, int e, int f, int g, int h, int i) {
  volatile int local[100]; local[i] = a + b * c - d + e * f + g - h;
  if (i == 9) block();
  return many(b, c, d, e, f, g, h, i, i + 1) + many(i, h, g, f, e, d, c, b, i + 1) + local[i];
}
static int compare(const void *a, const void *b) {
  if (never == 0) many(1, 2, 3, 4, 5, 6, 7, 8, 7);
  return *(int *)a - *(int *)b;
}
static void on_signal(int s, siginfo_t *i, void *u) { recurse(3, (char *)u); }
static void *deep(void *p) { char c = 1; recurse(60, &c); return p; }
static void *aligning(void *p) { aligned_frame(0, 1.5); return p; }
static void *sorting(void *p) { int v[5] = {3, 2, 5, 1, 4}; qsort(v, 5, 4, compare); return (void *)(long)v[0]; }
static void *searching(void *p) { int v[5] = {1}; return bsearch(&never, v, 5, 4, compare); }
static void *handling(void *p) {
  stack_t alternate = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
  sigaltstack(&alternate, 0);
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigaction(SIGUSR1, &action, 0);
  pthread_kill(pthread_self(), SIGUSR1);
  return p;
}
/* Faults at its very first instruction, where the function before it ends with a call that does not return. */
__asm__(".text\nbefore:\n.cfi_startproc\nsub $24,%rsp\n.cfi_adjust_cfa_offset 24\ncall abort\n.cfi_endproc\n"
        ".globl faulting\nfaulting:\n.cfi_startproc\nmov 0,%eax\nret\n.cfi_endproc\n");
int faulting(void);
static void on_fault(int s) { many(1, 2, 3, 4, 5, 6, 7, 8, 8); }
static void *crashing(void *p) { signal(SIGSEGV, on_fault); return (void *)(long)faulting(); }
static void *jumping(void *p) {
  jmp_buf b; volatile int turns = 0;
  if (setjmp(b) < 3) { if (turns++ < 3) longjmp(b, turns); }
  char c = 0; recurse(turns, &c); return p;
}
#ifdef LAZY
extern void (*blocker)(void);
int chosen(void);
NOINLINE static int call_lazily(int x) { volatile char room[48]; room[x & 7] = 1; return chosen() + room[1]; }
static void *resolving(void *p) { blocker = block; return (void *)(long)call_lazily(3); }
#else
#define resolving deep
#endif
int main(void) {
  void *(*all[])(void *) = {deep, aligning, sorting, searching, handling, crashing, jumping, resolving};
  alarm(100);
  int n = sizeof all / sizeof *all;
  for (int i = 0; i < n; i++) {
    pthread_t t;
    pthread_create(&t, 0, all[i], 0);
    while (ready <= i) usleep(1000);
  }
  usleep(20000);
  puts("ready"); fflush(stdout);
  for (;;) pause();
}
"""
RESOLVER = """
/* Blocks in the resolver of an IFUNC, which the loader calls when the function is called for the first time. */
void (*blocker)(void);
static int (*choose(void))(void) { blocker(); return 0; }
int chosen(void) __attribute__((ifunc("choose")));
"""
EXCEPTIONS = r"""
#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>
#define NOINLINE __attribute__((noinline))
static volatile int ready;
static void block() { ready = ready + 1; for (;;) pause(); }
struct Guard { std::string name; ~Guard() { if (name == "unwinding") block(); } };
struct Shape { virtual ~Shape() {} virtual int area(int n) = 0; };
struct Square : Shape {
  int area(int n) override {
    if (n > 6) throw std::runtime_error("too large " + std::to_string(n));
    return area(n + 1);
  }
};
NOINLINE static int thrown(Shape &s, const char *name) { Guard guard{name}; return s.area(0); }
static void in_destructor() { Square s; try { thrown(s, "unwinding"); } catch (std::exception &) {} }
static void in_handler() {
  Square s;
  try { thrown(s, "x"); } catch (std::exception &e) { std::vector<std::string> v(3, e.what()); block(); }
}
static void in_function() {
  std::map<int, std::function<int(int)>> table;
  table[1] = [](int x) { block(); return x; };
  table[2] = [&](int x) { std::string text(x, 'x'); return table[1](x) + (int)text.size(); };
  table[2](5);
}
int main() {
  std::vector<std::thread> threads;
  alarm(100);
  void (*all[])() = {in_destructor, in_handler, in_function};
  for (int i = 0; i < 3; i++) { threads.emplace_back(all[i]); while (ready <= i) usleep(1000); }
  usleep(20000);
  puts("ready"); fflush(stdout);
  for (auto &t : threads) t.join();
}
"""
STEPPED = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define NOINLINE __attribute__((noinline, noipa))
NOINLINE static int leaf(int x) { return x * 7 + 1; }
NOINLINE static int switched(int x) {
  switch (x) {
    case 0: return leaf(1);
    case 1: return leaf(5) + 1;
    case 2: return 9;
    case 3: return leaf(x) * 2;
    case 4: return -1;
  }
  return 0;
}
NOINLINE static int early(int *p, int n) {
  if (!p) return -1;
  int s = 0;
  for (int i = 0; i < n; i++) s += switched(p[i]);
  return s;
}
NOINLINE int begin(int n) {
  int *p = __builtin_alloca(n * 4);
  for (int i = 0; i < n; i++) p[i] = i % 5;
  char text[64]; snprintf(text, sizeof text, "%d", early(p, n));
  return early(0, 0) + (int)strlen(text) + atoi(text);
}
int main(int argc, char **argv) { printf("%d\n", begin(argc + 3)); return 0; }
"""

# What gdb is told to print: for each thread, registers, memory of the stack, and the frames that gdb's unwinder sees.
WATCH = r"""
import gdb, json, struct
NAMES = "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
def snapshot():
    frame = gdb.newest_frame()
    registers = [int(frame.read_register(name)) & (1 << 64) - 1 for name in NAMES]
    pcs, last = [], None
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):  # not on the stack; from debug information
            pcs.append(frame.pc())
            last = frame
        frame = frame.older()
    inferior = gdb.selected_inferior()
    sps = set()
    frame = gdb.newest_frame()
    while frame is not None:
        sps.add(int(frame.read_register("rsp")) & (1 << 64) - 1)
        frame = frame.older()
    pieces = []
    for start, end, protection, name in maps():
        low = min((sp for sp in sps if start <= sp < end), default=None)
        if low is not None:
            low = max(start, low - 256)
            pieces.append([low, bytes(inferior.read_memory(low, min(end - low, 1 << 20))).hex()])
    return {"registers": registers, "stacks": pieces, "frames": pcs}
def maps():
    rows = []
    with open("/proc/%d/maps" % gdb.selected_inferior().pid) as file:
        for line in file:
            parts = line.split(maxsplit=5)
            start, end = (int(x, 16) for x in parts[0].split("-"))
            rows.append([start, end, parts[1], [int(parts[2], 16), parts[5].strip() if len(parts) > 5 else ""]])
    return rows
for setting in ("pagination off", "confirm off", "backtrace past-main on", "backtrace past-entry on"):
    gdb.execute("set " + setting)
"""
ATTACHED = r"""
result = {"snapshots": []}
for thread in sorted(gdb.selected_inferior().threads(), key=lambda t: t.num):
    thread.switch()
    result["snapshots"].append(snapshot())
result["maps"] = maps()
print("RESULT" + json.dumps(result))
gdb.execute("detach")
"""
STEPPING = r"""
gdb.execute("set environment LD_BIND_NOW=")
gdb.execute("unset environment LD_BIND_NOW")
gdb.execute("break begin")
gdb.execute("run > /dev/null")
result = {"snapshots": []}
for turn in range(STEPS):
    result["snapshots"].append(snapshot())
    gdb.execute("stepi %d" % (1 if turn < STEPS // 2 else 7), to_string=True)
result["maps"] = maps()
print("RESULT" + json.dumps(result))
gdb.execute("kill")
"""


@dataclass(frozen=True)
class Snapshot:
    """One thread as gdb saw it."""

    registers: list[int]
    stacks: list[tuple[int, bytes]]
    frames: list[int]


@dataclass(frozen=True)
class Observation:
    """What gdb printed of one process."""

    snapshots: list[Snapshot]
    maps: list[tuple[int, int, str, int, str]]


def gdb(script: str, where: Path, *arguments: str) -> Observation:
    """Run gdb with a script that prints one RESULT."""
    file = where / "watch.py"
    file.write_text(WATCH + script)
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *arguments, "-x", str(file)], capture_output=True, text=True, timeout=120, cwd=where
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    raw: dict[str, Any] = json.loads(lines[0][6:])
    snapshots = [
        Snapshot(s["registers"], [(start, bytes.fromhex(data)) for start, data in s["stacks"]], s["frames"])
        for s in raw["snapshots"]
    ]
    return Observation(snapshots, [(start, end, prot, rest[0], rest[1]) for start, end, prot, rest in raw["maps"]])


class Unwinder:
    """Our unwinder over what gdb observed."""

    def __init__(self, observation: Observation) -> None:
        self._maps = observation.maps
        self._modules: dict[str, Module | None] = {}

    def _find(self, pc: int) -> Module | None:
        for start, end, protection, offset, path in self._maps:
            if start <= pc < end and path.startswith("/") and "x" in protection:
                if path not in self._modules:
                    self._modules[path] = self._load(path, start, offset)
                return self._modules[path]
        return None

    @staticmethod
    def _load(path: str, start: int, offset: int) -> Module | None:
        try:
            with ElfFile.open(path) as image:
                table = image.frame_table
                return None if table is None else Module(image.load_bias(start, offset, True), table, image.entry)
        except ImageError:
            return None

    def walk(self, snapshot: Snapshot) -> Stack:
        """Unwind one thread."""

        def read_word(address: int) -> int:
            for start, data in snapshot.stacks:
                if start <= address <= start + len(data) - 8:
                    return int.from_bytes(data[address - start : address - start + 8], "little")
            raise LookupError(f"nothing is known of memory at {address:#x}")

        return walk(snapshot.registers, self._find, read_word)
