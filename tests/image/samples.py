"""Builds the binaries that the tests of the image room read, with the real compilers, once per test session."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

LIBRARY = """
#include <stdlib.h>
#include <string.h>
static int counter;
static int *pointers[] = { &counter, &counter, &counter, &counter };
__thread int per_thread = 7;
int shared_value = 42;
int old_name(void) { return 1; }
int new_name(void) { return 2; }
__asm__(".symver old_name,thing@SAMPLE_1.0");
__asm__(".symver new_name,thing@@SAMPLE_2.0");
static int fast(void) { return 3; }
static int (*pick(void))(void) { return fast; }
int chosen(void) __attribute__((ifunc("pick")));
int count(void) { static int calls; return ++calls + *pointers[counter & 3] + per_thread; }
char *twice(const char *s) { char *r = malloc(2 * strlen(s) + 1); strcpy(r, s); return strcat(r, s); }
"""
VERSIONS = (
    "SAMPLE_1.0 { global: count; shared_value; chosen; local: pick; };\nSAMPLE_2.0 { global: twice; per_thread; };\n"
)
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
int thing(void); int count(void); char *twice(const char *); int chosen(void);
extern int shared_value; extern __thread int per_thread;
static __thread long mine = 5;
static char big[100000];
int zero[64];
static int helper(int x) { return x * 3 + (int)mine + big[x & 63]; }
int (*volatile indirect)(int) = helper;
void (*volatile releasing)(void *) = free;
int main(int argc, char **argv) {
  char *s = twice("ab");
  printf("%d %d %d %s %d %d\\n", thing(), count(), chosen(), s, indirect(argc), shared_value + per_thread);
  free(s); releasing(0); puts(""); fflush(stdout);
  return zero[argc];
}
"""
LONELY = """
#include <stdio.h>
#include <string.h>
static int one(void) { return 1; }
static int (*pick(void))(void) { return one; }
int chosen(void) __attribute__((ifunc("pick")));
__thread long mine = 5; __thread char block[100] __attribute__((aligned(32)));
int main(int argc, char **argv) { printf("%d %zu\\n", chosen() + (int)mine + block[argc], strlen(argv[0])); return 0; }
"""
CPLUSPLUS = """
#include <stdexcept>
#include <string>
inline int unique_counter() { static int n; return ++n; }
struct Base { virtual ~Base() {} virtual int f(int x); };
int Base::f(int x) { if (x > 3) throw std::runtime_error("x"); return x + unique_counter(); }
int use(Base &b, int x) { try { return b.f(x); } catch (const std::exception &e) {
  return (int)std::string(e.what()).size(); } }
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a tool; its complaint is the failure's text."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def without_sections(path: Path, to: Path) -> Path:
    """The same image with its section headers gone, as packers and paranoid strippers leave it."""
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<Q", data, 40)
    del data[at:]
    data[40:48] = bytes(8)
    data[58:64] = bytes(6)
    to.write_bytes(data)
    to.chmod(0o755)
    return to


def build_all(where: Path) -> dict[str, Path]:
    """Every sample by name."""
    for name, text in {
        "lib.c": LIBRARY,
        "lib.map": VERSIONS,
        "main.c": PROGRAM,
        "lonely.c": LONELY,
        "plus.cc": CPLUSPLUS,
        "many.s": "".join(f'.section .text.f{i},"ax",@progbits\n.globl f{i}\nf{i}: ret\n' for i in range(0xFF10)),
    }.items():
        (where / name).write_text(text)
    library = ("-O2", "-shared", "-fPIC", "-Wl,--version-script=lib.map", "-Wl,-soname,libsample.so.1", "lib.c")
    program = ("-O2", "-g", "main.c", "libsample.so", "-Wl,-rpath,$ORIGIN")
    for command in (
        ("gcc", *library, "-o", "libsample.so"),
        ("gcc", *library, "-Wl,-z,pack-relative-relocs", "-o", "libpacked.so"),
        ("clang", *library, "-fuse-ld=lld", "-Wl,--pack-dyn-relocs=relr", "-o", "liblld.so"),
        ("gcc", *library, "-s", "-Wl,-z,now", "-Wl,--hash-style=sysv", "-Wl,--build-id=none", "-o", "libstripped.so"),
        ("gcc", *program, "-o", "pie"),
        ("gcc", *program, "-no-pie", "-o", "nopie"),
        ("gcc", *program, "-fcf-protection=full", "-Wl,-z,ibtplt", "-o", "ibt"),
        ("gcc", *program, "-no-pie", "-Wl,-z,norelro", "-Wl,-z,noseparate-code", "-o", "old"),
        ("gcc", *program, "-fno-plt", "-Wl,-z,now", "-o", "noplt"),
        ("clang", *program, "-fuse-ld=lld", "-o", "lld"),
        ("gcc", "-O2", "-static", "-no-pie", "lonely.c", "-o", "static"),
        ("gcc", "-O2", "-static-pie", "lonely.c", "-o", "staticpie"),
        ("gcc", "-O2", "-no-pie", "lonely.c", "-o", "lonely"),
        ("g++", "-O2", "-shared", "-fPIC", "plus.cc", "-o", "libplus.so"),
        ("gcc", "-O2", "-g", "-c", "-ffunction-sections", "-fdata-sections", "lib.c", "-o", "gcc.o"),
        ("clang", "-O2", "-g", "-c", "-ffunction-sections", "main.c", "-o", "clang.o"),
        ("g++", "-O2", "-c", "-ffunction-sections", "plus.cc", "-o", "plus.o"),
        ("gcc", "-O2", "-flto", "-c", "lonely.c", "-o", "lto.o"),
        ("gcc", "-O2", "-flto", "-ffat-lto-objects", "-c", "lonely.c", "-o", "fat.o"),
        ("clang", "-O2", "-flto", "-c", "lonely.c", "-o", "bitcode.o"),
        ("as", "many.s", "-o", "many.o"),
    ):
        run(*command, cwd=where)
    names = "libsample.so libpacked.so liblld.so libstripped.so pie nopie ibt old noplt lld static staticpie lonely"
    names += " libplus.so gcc.o clang.o plus.o lto.o fat.o bitcode.o many.o"
    samples = {name: where / name for name in names.split()}
    for name in ("libsample.so", "libpacked.so", "liblld.so", "pie", "lld", "ibt", "staticpie"):
        samples[f"{name} bare"] = without_sections(where / name, where / f"{name}.bare")
    return samples


IMAGES = (
    *("libsample.so", "libpacked.so", "liblld.so", "libstripped.so", "libplus.so"),
    *("pie", "nopie", "ibt", "old", "noplt", "lld", "static", "staticpie", "lonely"),
)
"""Finished images that have section headers."""
BARE = ("libsample.so", "libpacked.so", "liblld.so", "pie", "lld", "ibt", "staticpie")
"""Those of which a copy without section headers is named "… bare"."""
OBJECTS = ("gcc.o", "clang.o", "plus.o", "fat.o", "many.o")
SYSTEM = tuple(
    f"/usr/lib/x86_64-linux-gnu/{name}"
    for name in ("libc.so.6", "libstdc++.so.6", "ld-linux-x86-64.so.2", "libgcc_s.so.1")
)
"""Distribution images, stripped of .symtab."""
