"""Random small C programs in two versions, from a seed: the same seed gives the same text, everywhere.

Nothing in them is undefined: arithmetic is unsigned, indexes are masked, loops are bounded. The fix changes
code only (constants, operators, conditions, new calls, new statics), never the meaning of data.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_HEAD = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef unsigned long u;
struct node { u value; struct node *next; unsigned char flag : 3; unsigned rest : 13; };
"""
_CONSTANTS = (1, 2, 3, 5, 7, 8, 10, 16, 31, 63, 100, 255, 256, 1000, 4095, 65535, 0x12345678)
_WORDS = (
    "alpha",
    "beta",
    "gamma",
    "lpha",
    "a",
    "%lu",
    "delta force",
    "a rather long string, longer than thirty-two bytes",
)


@dataclass(frozen=True)
class Versions:
    """The same program without and with the fix, by file name."""

    before: dict[str, str]
    after: dict[str, str]


def generate(seed: int, functions: int = 14) -> Versions:
    """Two versions of one program of two files, ``one.c`` and ``two.c``; ``before`` and ``work`` are its entries."""
    texts = []
    for fixed in (False, True):
        writer = _Writer(random.Random(seed), functions, fixed)
        texts.append(writer.write())
    return Versions(*texts)


class _Writer:
    """Writes one version. Both versions draw the same numbers; only ``variant`` looks at which one it is."""

    def __init__(self, draw: random.Random, functions: int, fixed: bool) -> None:
        self.draw, self.count, self.fixed = draw, functions, fixed
        self.changed = set(draw.sample(range(functions), k=draw.randint(1, 3)))
        self.kinds = [draw.choice(("static", "static", "global", "inline")) for _ in range(functions)]
        self.noinline = [draw.random() < 0.5 for _ in range(functions)]
        self.current = 0

    def variant(self, before: str, after: str) -> str:
        return after if self.fixed and self.current in self.changed else before

    def number(self) -> str:
        return f"{self.draw.choice(_CONSTANTS)}ul"

    def word(self) -> str:
        return f'"{self.draw.choice(_WORDS)}"'.replace("%", "%%")

    def write(self) -> dict[str, str]:
        bodies = [self.function(index) for index in range(self.count)]
        files = {"one.c": _HEAD, "two.c": _HEAD}
        for name in files:
            for index in range(self.count):
                if self.kinds[index] == "global":
                    files[name] += f"u f{index}(u, u);\n"
        files["one.c"] += (
            "u shared_a = 3, shared_z; __thread u tls_g = 9; static __thread u tls_s;\n"
            "static u counter = 1; static u array[16] = {1, 2, 3};\n"
            "static const unsigned short table[] = {5, 4, 3, 2, 1, 9, 8, 7};\n"
            f"static const char *const names[] = {{{self.word()}, {self.word()}, {self.word()}, {self.word()}}};\n"
            "static struct node list[4] = {{1, &list[1], 1, 2}, {2, &list[2], 3, 4}, "
            "{3, &list[3], 5, 6}, {4, 0, 7, 8}};\n"
        )
        two = [index for index in range(self.count) if self.kinds[index] == "global" and index % 2]
        files["two.c"] += (
            "extern u shared_a, shared_z; extern __thread u tls_g; static __thread u tls_s = 4; static u counter = 7;\n"
            "static u array[16] = {9, 8}; static const unsigned short table[] = {1, 2, 4, 8, 16, 32, 64, 128};\n"
            f"static const char *const names[] = {{{self.word()}, {self.word()}, {self.word()}, {self.word()}}};\n"
            "static struct node list[4] = {{5, &list[3], 1, 2}, {6, 0, 3, 4}, "
            "{7, &list[1], 5, 6}, {8, &list[2], 7, 8}};\n"
        )
        # Callees come first, so that recursion is what a function does to itself.
        for index in range(self.count):
            files["two.c" if index in two else "one.c"] += bodies[index]
        known = [index for index in range(self.count) if index not in two]
        pointers = ", ".join(f"f{index}" for index in known)
        files["one.c"] += f"static u (*const table_of[])(u, u) = {{{pointers}}};\nstatic u (*kept[8])(u, u);\n"
        files["one.c"] += (
            "int before(void) {\n  for (int i = 0; i < 8; i++)\n"
            "    kept[i] = table_of[i % (sizeof table_of / sizeof *table_of)];\n"
            "  return 0;\n}\n"
            "int work(void) {\n"
            "  for (u i = 0; i < 12; i++) {\n"
            "    for (u j = 0; j < sizeof table_of / sizeof *table_of; j++)\n"
            '      printf("%lu:%lu ", j, table_of[j](i * 37, j + i) & 0xffffff);\n'
            '    printf("%lu %d\\n", kept[i & 7](i, 3) & 0xffff,\n'
            "      kept[i & 7] == table_of[(i & 7) % (sizeof table_of / sizeof *table_of)]);\n"
            "  }\n"
            '  printf("%lu %lu %lu %lu %lu\\n", shared_a, shared_z, tls_g, counter, array[3]);\n  return 0;\n}\n'
        )
        return files

    def function(self, index: int) -> str:
        self.current = index
        kind = {"static": "static ", "global": "", "inline": "static inline "}[self.kinds[index]]
        attribute = "__attribute__((noinline)) " if self.noinline[index] and kind != "static inline " else ""
        callees = [i for i in range(index) if self.visible(index, i)]
        lines = [f"{kind}{attribute}u f{index}(u a, u b) {{", "  u r = a ^ b;"]
        static = f"  static u s = {self.number()};"
        statements = [self.statement(callees) for _ in range(self.draw.randint(2, 6))]
        lines.append(static + " r += s; s = s * 3 + 1;" if self.draw.random() < 0.3 else "")
        place = self.draw.randrange(len(statements) + 1)
        statements.insert(place, self.variant("", self.added(callees)))
        lines += statements
        return "\n".join([*lines, f"  return r{self.variant('', f' + {index + 1}ul')};", "}", ""])

    def visible(self, user: int, callee: int) -> bool:
        def file(i: int) -> bool:
            return self.kinds[i] == "global" and bool(i % 2)

        return self.kinds[callee] == "global" or file(user) == file(callee)

    def added(self, callees: list[int]) -> str:
        """What the fix adds."""
        call = f"f{self.draw.choice(callees)}(r & 7, 1)" if callees else "3"
        return self.draw.choice(
            (
                f"  if (b > {self.number()}) return r ^ {self.number()};",
                f"  r += {call};",
                "  { static u fresh; r += fresh++; }",
                f"  r += strlen({self.word()}) + (u)abs((int)(b & 15) - 8);",
                "  tls_g += 2; tls_s ^= r; r += tls_s;",
                f"  r += (u)((double)(a & 255) * {self.draw.randint(1, 99)}.25);",
                "  shared_z += counter++; array[r & 15] = b;",
                f'  if (r & 1) {{ char t[64]; snprintf(t, sizeof t, "%lu " {self.word()}, r & 255); r += (u)t[1]; }}',
            )
        )

    def statement(self, callees: list[int]) -> str:
        n = self.number
        cases = "".join(
            f" case {i}: r {self.draw.choice(('+=', '^=', '-=', '*='))} {n()}; {self.draw.choice(('break;', ''))}"
            for i in range(self.draw.randint(4, 9))
        )
        call = f"f{self.draw.choice(callees)}(r & 15, b & 7)" if callees else "a"
        operator = self.draw.choice(("+", "^", "|", "-"))
        change = self.draw.random() < 0.5
        constant = n()
        if change:
            constant = self.variant(constant, f"({constant} + 1)")
        return self.draw.choice(
            (
                f"  r = r * {constant} {operator} (b >> {self.draw.randint(1, 9)});",
                f"  switch (b % 11) {{{cases} default: r += {constant}; }}",
                f"  for (u i = 0; i < (b & 7); i++) {{ r += i * {constant}; if (r > 1000000) r %= 9973; }}",
                f"  r += {call};",
                f"  counter += {constant}; r ^= counter;",
                f"  array[a & 15] += {constant}; r += array[b & 15];",
                "  r += table[b & 7] * 3; r += (u)names[a & 3][0];",
                f"  for (struct node *p = &list[b & 3]; p; p = p->next) r += p->value * p->flag + {constant};",
                "  list[b & 3].rest += 3; r ^= list[a & 3].rest;",
                f"  if (__builtin_expect(r == {constant} * 77777, 0)) {{ printf({self.word()}); abort(); }}",
                f"  r += strlen({self.word()}) + (strcmp(names[b & 3], {self.word()}) > 0);",
                f"  r += (u)((double)(b & 1023) / {self.draw.randint(2, 9)}.5);",
                f"  tls_g += {constant}; r += tls_g; tls_s += r & 3; r ^= tls_s;",
                f"  shared_a ^= {constant}; r += shared_a + shared_z;",
                "  { char t[48]; memset(t, (int)(b & 127), sizeof t); t[a & 31] = 5; "
                f"r += (u)t[b & 31] + {constant}; }}",
            )
        )
