"""Source trees for Windows that the forge is to patch, with real compilers: MinGW gcc, and clang for the MSVC ABI."""

from __future__ import annotations

import os
from pathlib import Path

from midflight.forge.forge import ForgeRequest

Changes = dict[str, tuple[str, str]]

C = {
    "Makefile": (
        "CC = x86_64-w64-mingw32-gcc\nCFLAGS = -O2\n"
        "prog.exe: main.o parse.o\n\t$(CC) -o $@ $^\nmain.o parse.o: parse.h\n"
    ),
    "parse.h": (
        "struct record { char name[128]; int kind; double scale; };\n"
        "int parse_record(const char *text, struct record *out);\nint parse_errors(void);\ndouble rate(int n);\n"
    ),
    "parse.c": r"""
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include "parse.h"
static int errors;
static const char *const kinds[] = {"none", "word", "number"};
int limit = 16;
static const unsigned char weights[] = {1, 2, 0, 0, 5, 0, 0};
static __attribute__((noinline)) int classify(const char *s) {
  if (!*s) return 0;
  return *s >= '0' && *s <= '9' ? 2 : 1;
}
int parse_record(const char *text, struct record *out) {
  int kind = classify(text);
  size_t n = strlen(text);
  if (n > 64) { errors++; fprintf(stdout, "too long: %s\n", kinds[kind]); return -1; }
  memcpy(out->name, text, n + 1);
  out->kind = kind;
  out->scale = n * 1.5 + weights[n % 7];
  return kind == 2 ? atoi(text) : (int)n;
}
int parse_errors(void) { return errors + limit; }
double rate(int n) {
  switch (n) {
  case 0: return 0.25; case 1: return 1.75; case 2: puts("two"); return 2.5; case 3: return errors;
  case 4: return limit * 3.25; case 5: puts("five"); return 5.5; default: return -1;
  }
}
""",
    "main.c": r"""
#include <stdio.h>
#include <string.h>
#include <windows.h>
#include "parse.h"
int main(void) {
  struct record r;
  char line[256];
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\r\n")] = 0;
    printf("%d %d %g\n", parse_record(line, &r), parse_errors(), rate(line[0] % 7));
    fflush(stdout);
    Sleep(1);
  }
  return 0;
}
""",
}
LENGTH: Changes = {"parse.c": ("if (n > 64)", "if (n > 31)")}

CLANG_GNU = {
    **C,
    "Makefile": (
        "CC = clang --target=x86_64-w64-mingw32\nCFLAGS = -O2\n"
        "LIBGCC = $(dir $(shell x86_64-w64-mingw32-gcc -print-libgcc-file-name))\n"
        "prog.exe: main.o parse.o\n\t$(CC) -L$(LIBGCC) LINKER -o $@ $^\nmain.o parse.o: parse.h\n"
    ),
}
"""The same with clang; LINKER are its options for the linker."""

CXX = {
    "Makefile": (
        "CXX = x86_64-w64-mingw32-g++\nCXXFLAGS = -O2\n"
        "prog.exe: main.o parser.o\n\t$(CXX) -o $@ $^\nmain.o parser.o: parser.h\n"
    ),
    "parser.h": "int parse(const char *text);\nint guarded(const char *text);\n",
    "parser.cpp": r"""
#include "parser.h"
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
struct Guard { const char *n; Guard(const char *n) : n(n) {} ~Guard() { std::printf("~%s\n", n); } };
struct ParseError : std::runtime_error {
  int code;
  ParseError(const std::string &w, int c) : std::runtime_error(w), code(c) {}
};
struct Base { virtual ~Base() {} virtual int value(int x); };
int Base::value(int x) { return x + 1; }
static std::map<std::string, int> table;
int parse(const char *text) {
  Guard g("parse");
  std::string s(text);
  if (s.size() > 40) throw ParseError("too long: " + s, 7);
  table[s]++;
  Base b;
  return b.value((int)s.size()) + table[s];
}
int guarded(const char *text) {
  try { return parse(text); }
  catch (const ParseError &e) { std::printf("caught %s %d\n", e.what(), e.code); return -e.code; }
  catch (const std::exception &e) { std::printf("other %s\n", e.what()); throw; }
}
""",
    "main.cpp": r"""
#include <cstdio>
#include <cstring>
#include <exception>
#include "parser.h"
int main() {
  char line[256];
  std::puts("ready");
  std::fflush(stdout);
  while (std::fgets(line, sizeof line, stdin)) {
    line[std::strcspn(line, "\r\n")] = 0;
    try { std::printf("%d\n", guarded(line)); } catch (const std::exception &e) { std::printf("main: %s\n", e.what()); }
    std::fflush(stdout);
  }
}
""",
}


MSVC = {
    "Makefile": (
        "CC = clang --target=x86_64-pc-windows-msvc\nCFLAGS = -O2\n"
        "prog.exe: main.obj core.obj caught.obj kernel32.lib\n"
        "\tlld-link /entry:mainCRTStartup /subsystem:console /nodefaultlib /out:$@ $^\n"
        "%.obj: %.c core.h\n\t$(CC) $(CFLAGS) -c $< -o $@\n"
        "%.obj: %.cpp core.h\n\t$(CC) $(CFLAGS) -c $< -o $@\n"
        "kernel32.lib: stubs.obj\n"
        "\tlld-link /dll /noentry /nodefaultlib /export:GetStdHandle /export:WriteFile /export:__C_specific_handler"
        " /export:__CxxFrameHandler3 /out:kernel32.dll /implib:$@ $<\n"
    ),
    "stubs.c": (
        "void *GetStdHandle(unsigned n) { return 0; }\n"
        "int WriteFile(void *h, const void *p, unsigned n, unsigned *d, void *o) { return 0; }\n"
        "int __C_specific_handler(void) { return 0; }\nint __CxxFrameHandler3(void) { return 0; }\n"
    ),
    "core.h": (
        '#ifdef __cplusplus\nextern "C" {\n#endif\n'
        "void say(const char *s); double rate(int n); int step(int x); int depths(void);\n"
        "int guarded(int *p); int caught(int *p);\n"
        "#ifdef __cplusplus\n}\n#endif\n"
    ),
    "core.cpp": r"""
#include "core.h"
extern "C" __declspec(dllimport) void *GetStdHandle(unsigned n);
extern "C" __declspec(dllimport) int WriteFile(void *h, const void *p, unsigned n, unsigned *d, void *o);
__declspec(thread) int depth = 3;
__declspec(thread) int other = 4;
static int count;
static const char *const names[] = {"zero", "one", "two"};
static __attribute__((noinline)) unsigned length(const char *s) { unsigned n = 0; while (s[n]) n++; return n; }
void say(const char *s) { unsigned d; WriteFile(GetStdHandle((unsigned)-11), s, length(s), &d, 0); }
__attribute__((noinline)) double rate(int n) {
  switch (n) {
  case 0: return 0.25; case 1: say("one"); return 1.75; case 2: return count; case 3: say("three"); return 3.5;
  case 4: return 9.125; default: return -1;
  }
}
__attribute__((noinline)) int step(int x) {
  count++; depth += x; other++; say(names[x % 3]); return (int)(rate(x) * 4) + depth;
}
__attribute__((noinline)) int depths(void) { return depth + other; }
int guarded(int *p) { __try { return *p + step(1); } __except (1) { say("fault"); return -1; } }
""",
    "caught.cpp": (
        '#include "core.h"\n'
        'int caught(int *p) { try { return *p + step(2); } catch (...) { say("caught"); return -1; } }\n'
    ),
    "main.c": (
        '#include "core.h"\nint _fltused, _tls_index;\n'
        "int mainCRTStartup(void) { int v = 3; return guarded(&v) + caught(&v) + depths(); }\n"
    ),
}


MSVC_CXX = {
    "Makefile": (
        "CC = clang --target=x86_64-pc-windows-msvc\n"
        "prog.exe: core.obj main.obj kernel32.lib vcruntime140.lib\n"
        "\tlld-link /entry:mainCRTStartup /subsystem:console /nodefaultlib /debug:symtab /out:$@ $^\n"
        "%.obj: %.cpp core.h\n\t$(CC) -O2 -fms-extensions -fexceptions -fcxx-exceptions -c $< -o $@\n"
        "%.lib: %.def\n\tllvm-dlltool -m i386:x86-64 -d $< -l $@\n"
    ),
    "kernel32.def": "LIBRARY KERNEL32.dll\nEXPORTS\nGetStdHandle\nWriteFile\nReadFile\nExitProcess\n",
    "vcruntime140.def": (
        "LIBRARY vcruntime140.dll\nEXPORTS\n__CxxFrameHandler3\n_CxxThrowException\n__C_specific_handler\n"
        "__std_terminate\n__RTDynamicCast\n"
    ),
    "core.h": r"""
void say(const char *s);
struct Shape { virtual int area() const; int kind = 1; };
struct Square : Shape { int area() const override; };
int squares(const Shape *shape);
int outer(const char *s);
int faults(int *p);
int finally(int *p);
""",
    "core.cpp": r"""
#include "core.h"
struct Guard {
  const char *n;
  Guard(const char *n) : n(n) {}
  __attribute__((noinline)) ~Guard() { say("~"); say(n); say(" "); }
};
struct Error { int code; Error(int c) : code(c) {} };
struct Bad : Error { Bad(int c) : Error(c) {} };
static unsigned length(const char *s) { unsigned n = 0; while (s[n]) n++; return n; }
__attribute__((noinline)) int parse(const char *s) {
  Guard g("parse");
  unsigned n = length(s);
  if (n > 40) throw Bad(7);
  if (s[0] == '!') throw 5;
  if (s[0] == '?') throw Error(9);
  return n;
}
__attribute__((noinline)) int guarded(const char *s) {
  try { Guard g("guarded"); return parse(s); }
  catch (const Error &e) { say("caught "); if (e.code == 9) throw; return -e.code; }
}
__attribute__((noinline)) int outer(const char *s) {
  try { return guarded(s); }
  catch (int i) { say("int "); return -100 - i; }
  catch (...) { say("other "); return -200; }
}
__attribute__((noinline)) static int peek(int *p) { __asm__ volatile("" : "+r"(p)); return *p; }
static int wanted(unsigned long code, int *hits) { *hits += 1; return code == 0xC0000005; }
extern "C" unsigned long _exception_code(void);
__attribute__((noinline)) int faults(int *p) {
  int hits = 40;
  __try { return peek(p); } __except (wanted(_exception_code(), &hits)) { say("fault "); return hits; }
}
__attribute__((noinline)) int finally(int *p) {
  int n = 1;
  __try { __try { n = peek(p); } __finally { say("finally "); n += 5; } } __except (1) { return n; }
  return n;
}
int Shape::area() const { return kind; }
int Square::area() const { return 4 * kind; }
__attribute__((noinline)) int squares(const Shape *shape) {
  const Square *square = dynamic_cast<const Square *>(shape);
  return square ? square->area() : -1;
}
""",
    "main.cpp": r"""
#include "core.h"
extern "C" __declspec(dllimport) void *GetStdHandle(unsigned n);
extern "C" __declspec(dllimport) int WriteFile(void *h, const void *p, unsigned n, unsigned *d, void *o);
extern "C" __declspec(dllimport) int ReadFile(void *h, void *p, unsigned n, unsigned *d, void *o);
extern "C" __declspec(dllimport) void ExitProcess(unsigned code);
void *vtable_of_type_info[4] __asm__("??_7type_info@@6B@");
extern "C" int _fltused;
int _fltused;
static void *input, *output;
__attribute__((noinline)) void say(const char *s) {
  unsigned n = 0, d;
  while (s[n]) n++;
  WriteFile(output, s, n, &d, 0);
}
static void number(int v) {
  char text[16];
  int i = 15;
  unsigned u = v < 0 ? -v : v;
  text[i] = 0;
  do text[--i] = '0' + u % 10; while (u /= 10);
  if (v < 0) text[--i] = '-';
  say(text + i);
}
extern "C" void mainCRTStartup(void) {
  input = GetStdHandle((unsigned)-10);
  output = GetStdHandle((unsigned)-11);
  say("ready\n");
  for (;;) {
    char line[256], c;
    unsigned n = 0, done = 0;
    while (ReadFile(input, &c, 1, &done, 0) && done && c != '\n')
      if (c != '\r' && n < 255) line[n++] = c;
    if (!done) ExitProcess(0);
    line[n] = 0;
    int v = 3;
    int *p = line[0] == '*' ? (int *)8 : &v;
    Shape shape;
    Square square;
    number(outer(line)); say(" ");
    number(faults(p)); say(" ");
    number(finally(p)); say(" ");
    number(squares(line[0] == '#' ? &square : &shape)); say("\n");
  }
}
""",
}
CAUGHT: Changes = {
    "core.cpp": ("if (e.code == 9) throw; return -e.code; }", "if (e.code == 9) throw; return -1000 - e.code; }")
}
THROWN: Changes = {"core.cpp": ("if (n > 40) throw Bad(7);", "if (n > 20) throw Bad(8);")}
FAULTS: Changes = {"core.cpp": ("int hits = 40;", "volatile int more[3] = {7, 8, 9}; int hits = 50 + more[1];")}
FINALLY: Changes = {"core.cpp": ("n += 5; }", "n += 60; }")}
SHAPES: Changes = {
    "core.cpp": (
        "  const Square *square = dynamic_cast<const Square *>(shape);\n",
        "  struct Big : Square { int area() const override { return 77; } };\n"
        "  static Big big;\n"
        '  __asm__ volatile("" ::: "memory");\n'
        "  const Shape *volatile any = shape->area() == 1 ? (const Shape *)&big : shape;\n"
        "  const Square *square = dynamic_cast<const Square *>(any);\n"
        '  if (dynamic_cast<const Big *>((const Shape *)any)) say("big ");\n',
    )
}


THROW: Changes = {
    "parser.cpp": (
        'if (s.size() > 40) throw ParseError("too long: " + s, 7);',
        'if (s.size() > 20) throw ParseError("much too long: " + s, 8);\n'
        '  if (s[0] == 33) throw std::out_of_range("bang");',
    )
}
CATCH: Changes = {"parser.cpp": ("return -e.code;", "return -100 - e.code;")}


def joined(source: dict[str, str], *several: Changes) -> Changes:
    """Several changes, to files of one source, as one."""
    found: Changes = {}
    for changes in several:
        for name, (old, new) in changes.items():
            before, after = found.get(name, (source[name], source[name]))
            assert old in after
            found[name] = before, after.replace(old, new)
    return found


def tree(folder: Path, source: dict[str, str], changes: Changes) -> Path:
    folder.mkdir(parents=True)
    assert changes.keys() <= source.keys()
    for name, text in source.items():
        if name in changes:
            old, new = changes[name]
            assert old in text
            text = text.replace(old, new)
        (folder / name).write_text(text)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    return folder


def request(
    where: Path, source: dict[str, str], changes: Changes, image: str = "prog.exe", **more: object
) -> ForgeRequest:
    """A request for the fix that ``changes`` make, beneath a folder that all requests for this source share."""
    if not (where / "source").exists():
        tree(where / "source", source, {})
    fix = tree(where / f"fix{len(list(where.glob('fix*')))}", source, changes)
    return ForgeRequest(where / "source", fix, "make", image, where / "work", **more)  # type: ignore[arg-type]
