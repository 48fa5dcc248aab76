"""Builds the Windows binaries that the tests read, with the real compilers (MinGW gcc; clang for the MSVC ABI)."""

from __future__ import annotations

from pathlib import Path

from tests.image.samples import run

GCC = "x86_64-w64-mingw32-gcc"
CXX = "x86_64-w64-mingw32-g++"
CLANG = ("clang", "--target=x86_64-pc-windows-msvc")

PROGRAM = """
#include <windows.h>
#include <stdio.h>
#include <string.h>
static volatile int counter; int shared = 42; int zero[64];
static const char *const words[] = {"one", "two", "three"};
static int helper(int x) { return x * 3 + counter; }
int (*volatile indirect)(int) = helper;
__declspec(dllexport) int api(int x) {
  static int calls; calls++; printf("%s %d\\n", words[x % 3], calls); return indirect(x) + zero[x]; }
double scale(double d) { return d * 2.5 + 0.125; }
int __attribute__((noinline)) choose(int x) { switch (x) { case 0: return api(1); case 1: return 7;
  case 2: return shared; case 3: return 19; case 4: return counter; case 5: return 5; default: return -1; } }
__declspec(dllexport) DWORD tick(void) { return GetTickCount() + (DWORD)strlen("abc"); }
int main(int argc, char **argv) { printf("%d %f\\n", choose(argc), scale(argc)); return tick() == 0; }
"""
BARE = """
__declspec(dllimport) int outside(int);
__declspec(thread) int tl = 3;
int _tls_index; int _fltused;
static const char text[] = "hello";
const char *volatile place = text;
__declspec(dllexport) int api(int x) { return outside(x) + tl + place[x]; }
__declspec(dllexport) int leaf(int x) { return x * 5; }
int _DllMainCRTStartup(void *a, unsigned b, void *c) { return 1; }
"""
OUTSIDE = "LIBRARY outside.dll\nEXPORTS\n  outside\n  numbered @7 NONAME\n"
FORWARDS = ("sleep=kernel32.Sleep", "byordinal=outside.#7", "other=api,@20")
CPLUSPLUS = """
#include <stdexcept>
#include <string>
#include <cstdio>
struct Base { virtual ~Base() {} virtual int f(int x); };
int Base::f(int x) { if (x > 3) throw std::runtime_error("x"); return x; }
int use(Base &b, int x) { std::string s("abc"); try { return b.f(x); } catch (const std::exception &e) {
  return (int)(s + e.what()).size(); } }
int main(int argc, char **) { Base b; std::printf("%d\\n", use(b, argc + 3)); }
"""
METADATA = """
  .section .rdata,"dr"
  .p2align 4
  .globl _load_config_used
_load_config_used:
  .long 0x140
  .zero 0xf0-4
  .rva info
  .zero 0x140-0xf4
  .p2align 2
info: .long 3, end-info, 7, list-info, 2, 0, 0x1000
list: .long first-info, second-info
first: .long 7, 0x12, 0x662A7C63, 0x0001F00D, hashes-info, 52, 0x20, 0
second: .long 7, 0x111, 0x5EC0FFEE, 0x000BEEF0, 0, 0, 0, 0
hashes: .fill 32, 1, 0xab
  .fill 20, 1, 0xcd
end:
  .text
  .globl DllMainCRTStartup
DllMainCRTStartup: movl $1,%eax
  ret
  .globl __PatchMainCallout__
__PatchMainCallout__: xorl %eax,%eax
  ret
  .section .drectve
  .ascii " -export:__PatchMainCallout__"
"""
"""A DLL with the metadata of Microsoft's hotpatches; the structures are those of winnt.h (SDK 10.0.26100)."""


def build_all(where: Path) -> dict[str, Path]:
    """Every sample by name."""
    for name, text in {
        "main.c": PROGRAM,
        "bare.c": BARE,
        "outside.def": OUTSIDE,
        "plus.cc": CPLUSPLUS,
        "metadata.s": METADATA,
    }.items():
        (where / name).write_text(text)
    split = ("-O2", "-g", "-ffunction-sections", "-fdata-sections")
    link = ("lld-link", "/dll", "/entry:_DllMainCRTStartup", "/nodefaultlib", "clang.obj", "outside.lib")
    for command in (
        (GCC, *split, "-Wa,--keep-locals", "-c", "main.c", "-o", "gcc.o"),
        (GCC, "gcc.o", "-o", "program.exe"),
        (GCC, "-s", "gcc.o", "-o", "stripped.exe"),
        (GCC, "-shared", "gcc.o", "-o", "library.dll"),
        (CXX, "-O2", "-c", "plus.cc", "-o", "plus.o"),
        (CXX, "plus.o", "-o", "plus.exe"),
        ("x86_64-w64-mingw32-dlltool", "-d", "outside.def", "-l", "outside.lib"),
        (*CLANG, *split, "-c", "bare.c", "-o", "clang.obj"),
        (*link, "/out:bare.dll"),
        (*link, "/debug", "/out:debug.dll"),
        (*link, "/out:forwards.dll", *(f"/export:{item}" for item in FORWARDS)),
        (GCC, "-c", "metadata.s", "-o", "metadata.o"),
        (GCC, "-nostdlib", "-shared", "-e", "DllMainCRTStartup", "metadata.o", "-o", "metadata.dll"),
    ):
        run(*command, cwd=where)
    data = bytearray((where / "metadata.dll").read_bytes())
    at = int.from_bytes(data[60:64], "little") + 24
    first = at + int.from_bytes(data[at - 4 : at - 2], "little")
    rdata = data.index(b".rdata\0\0", first)
    # GNU ld leaves the load configuration directory alone; it is the tenth one.
    data[at + 112 + 80 : at + 112 + 88] = data[rdata + 12 : rdata + 16] + (0x140).to_bytes(4, "little")
    (where / "metadata.dll").write_bytes(data)
    return {path.name: path for path in where.iterdir()}
