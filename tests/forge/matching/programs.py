"""Random programs of several files, made to lead run-pre matching astray: a seed gives the same text everywhere.

They are full of twins: functions of one shape that differ in one constant, one callee, one variable, one string, or in
nothing at all, in one file and across files; statics of one name in several files; strings that end other strings.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.forge.matching.bodies import BODIES, C_HEAD, CC_BODIES, CC_HEAD, body

_CONSTANTS = (1, 2, 3, 5, 7, 8, 10, 16, 31, 63, 100, 127, 128, 255, 256, 1000, 4095, 65535, 0x12345678, 0x7FFFFFFFFF)
_WORDS = ("alpha", "lpha", "pha", "a", "", "beta %lu", "a %lu", "beta gamma", "gamma", "%lu", "a long string of words")
_REALS = (0.5, 1.5, 2.25, 3.0, 100.125, 1e10, 0.1)
_NAMES = ("step", "measure", "check", "parse", "next", "read_one", "emit", "visit", "find", "push")
_FAR = 6
"""Global functions that every file knows."""

STATEMENTS = """
static u count = 1, state, total = 77, limit; static u array[16] = {1, 2, 3}, buffer[16];
static const unsigned short table[8] = {5, 4, 3, 2, 1, 9, 8, TABLE}, other_table[8] = {1, 2};
static const char *const names[4] = {NAMES}; static const char *const words[4] = {WORDS};
static struct node list[4] = {{1, &list[1], 1, 2}, {2, &list[2], 3, 4}, {3, &list[3], 5, 6}, {4, 0, 7, LIST}};
static struct node chain[4] = {{5, &chain[3], 1, 2}, {6, 0, 3, 4}, {7, &list[1], 5, 6}, {8, &chain[2], 7, 8}};
static __thread u tls_a = 4, tls_b, tls_c;
"""
_VARIABLES = ("count", "state", "total", "limit")


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a body is filled with."""

    n: str = "1ul"
    m: str = "8ul"
    s: str = "3"
    cases: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    """Values for case labels and indexes: the same code in another order of labels differs in its jump table alone."""
    var: str = "count"
    var2: str = "state"
    callee: str = ""
    other: str = ""
    far: str = "far0"
    far2: str = "far1"
    table: str = "table"
    array: str = "array"
    list: str = "list"
    names: str = "names"
    tls: str = "tls_a"
    tls2: str = "tls_b"
    words: tuple[str, str, str] = ('"alpha"', '"lpha"', '"beta"')
    reals: tuple[str, str] = ("0.5", "1.5")
    pointers: str = "pointers"

    def fill(self, shape: str, name: str) -> str:
        """The body of the function ``name``."""
        plain = {k: getattr(self, k) for k in ("n", "m", "s", "var", "var2", "callee", "other", "far", "far2", "table")}
        plain |= {k: getattr(self, k) for k in ("array", "list", "names", "tls", "tls2", "pointers")}
        plain |= {f"c{i}": str(c) for i, c in enumerate(self.cases)}
        plain |= {"word": self.words[0], "word2": self.words[1], "word3": self.words[2]}
        plain |= {"real": self.reals[0], "real2": self.reals[1]}
        return body(shape, self=name, unlikely="unlikely", gather="gather", **plain)


@dataclass(frozen=True, slots=True)
class Made:
    """One function of the text."""

    name: str
    shape: str
    parameters: Parameters
    linkage: str
    """Words before the type."""


@dataclass(slots=True)
class Writer:
    """Writes one file of a program."""

    draw: random.Random
    index: int
    cplusplus: bool
    shared: list[tuple[str, Parameters]]
    """Shapes and parameters that several files have alike."""
    made: list[Made] = field(default_factory=list)
    used_names: set[str] = field(default_factory=set)

    def number(self) -> str:
        return f"{self.draw.choice(_CONSTANTS)}ul"

    def word(self) -> str:
        return f'"{self.draw.choice(_WORDS)}"'

    def parameters(self) -> Parameters:
        draw = self.draw
        variables = draw.sample(_VARIABLES, 2)
        reals = draw.choices(_REALS, k=2)
        return Parameters(
            n=self.number(),
            m=self.number(),
            s=str(draw.randint(1, 12)),
            cases=tuple(draw.sample(range(7), 7)),
            var=variables[0],
            var2=variables[1],
            far=f"far{draw.randrange(_FAR)}",
            far2=f"far{draw.randrange(_FAR)}",
            table=draw.choice(("table", "other_table")),
            array=draw.choice(("array", "buffer")),
            list=draw.choice(("list", "chain")),
            names=draw.choice(("names", "words")),
            tls=draw.choice(("tls_a", "tls_b")),
            tls2="tls_c",
            words=(self.word(), self.word(), self.word()),
            reals=(str(reals[0]), str(reals[1])),
        )

    def callee(self) -> str:
        near = [item.name for item in self.made]
        return self.draw.choice(near[-30:]) if near and self.draw.random() < 0.9 else f"far{self.draw.randrange(_FAR)}"

    def called(self, parameters: Parameters) -> Parameters:
        return replace(parameters, callee=self.callee(), other=self.callee())

    def twin(self, old: Parameters) -> Parameters:
        """The same but for one thing, or for nothing."""
        fresh = self.called(self.parameters())
        cases = list(old.cases)
        one, two = self.draw.sample(range(5), 2)
        cases[one], cases[two] = cases[two], cases[one]
        changes: tuple[dict[str, object], ...] = (
            {},
            {"n": fresh.n},
            {"s": fresh.s},
            {"cases": tuple(cases)},
            {"var": fresh.var},
            {"callee": fresh.callee},
            {"other": fresh.other},
            {"far": fresh.far},
            {"table": fresh.table, "names": fresh.names},
            {"list": fresh.list, "array": fresh.array},
            {"tls": fresh.tls},
            {"words": (fresh.words[0], *old.words[1:])},
            {"words": (old.words[0], fresh.words[1], old.words[2])},
            {"reals": (fresh.reals[0], old.reals[1])},
        )
        return replace(old, **self.draw.choice(changes))  # type: ignore[arg-type]

    def family(self) -> None:
        """One shape, one to five times."""
        draw = self.draw
        if self.shared and draw.random() < 0.3:
            shape, parameters = draw.choice(self.shared)
        else:
            shape = draw.choice(list(CC_BODIES) if self.cplusplus and draw.random() < 0.3 else list(BODIES))
            parameters = self.parameters()
        parameters = self.called(parameters)
        size = draw.choice((1, 1, 2, 2, 3, 5))
        for _ in range(size):
            if shape == "variadic" or shape not in CC_BODIES or self.cplusplus:
                self.add(shape, parameters)
            parameters = self.twin(parameters)

    def add(self, shape: str, parameters: Parameters) -> None:
        draw = self.draw
        kind = draw.choices(("static", "global", "hidden", "protected", "weak"), (12, 3, 1, 1, 1))[0]
        if kind == "static":
            name = self.fresh(draw.choice(_NAMES))
            linkage = "static "
        else:
            name = f"g{self.index}_{len(self.made)}"
            visibility = {"hidden": 'visibility("hidden")', "protected": 'visibility("protected")', "weak": "weak"}
            linkage = f"__attribute__(({visibility[kind]})) " if kind in visibility else ""
        attributes = [word for word, rate in (("noinline", 0.6), ("used", 0.2), ("cold", 0.04)) if draw.random() < rate]
        if shape == "label_table" and "noinline" not in attributes:
            attributes.append("noinline")
        if attributes:
            linkage += f"__attribute__(({', '.join(attributes)})) "
        self.made.append(Made(name, shape, parameters, linkage))

    def fresh(self, stem: str) -> str:
        name, number = stem, 2
        while name in self.used_names:
            name, number = f"{stem}{number}", number + 1
        self.used_names.add(name)
        return name

    def write(self) -> str:
        """The text of the file."""
        draw = self.draw
        statics = STATEMENTS.replace("TABLE", str(draw.randint(1, 3))).replace("LIST", str(draw.randint(1, 3)))
        statics = statics.replace("NAMES", ", ".join(self.word() for _ in range(4)))
        statics = statics.replace("WORDS", ", ".join(self.word() for _ in range(4)))
        lines = [CC_HEAD if self.cplusplus else C_HEAD]
        if self.cplusplus:
            lines.append('extern "C" {')
        lines.append("extern u g_shared, g_zero, *g_pointer; extern __thread u g_tls, h_tls; u choose(u, u);")
        lines += [f"u far{i}(u, u);" for i in range(_FAR)]
        if self.cplusplus:
            lines.append("}")
        lines += [statics, "typedef u (*function)(u, u);", self.helpers()]
        lines += [f"{item.linkage}u {item.name}(u a, u b);" for item in self.made]
        listed = ", ".join(item.name for item in draw.choices(self.made, k=4))
        lines.append(f"static function pointers[4] = {{{listed}}};")
        for item in self.made:
            lines.append(f"{item.linkage}u {item.name}(u a, u b) {{ {item.parameters.fill(item.shape, item.name)} }}")
        lines += [self.ending()]
        return "\n".join(lines) + "\n"

    def helpers(self) -> str:
        return (
            'static __attribute__((cold, noinline)) u unlikely(u a, u b) { puts("unlikely"); return a / (b | 1); }\n'
            "static __attribute__((noinline)) u gather(u n, ...) { va l; u r = 0; __builtin_va_start(l, n);"
            " while (n--) r += __builtin_va_arg(l, u); __builtin_va_end(l); return r; }"
        )

    def ending(self) -> str:
        """A table of functions, what uses it, and what start-up code calls."""
        draw, index = self.draw, self.index
        reached = [item.name for item in self.made if draw.random() < 0.7]
        listed = ", ".join(reached)
        start, stop = draw.choice(reached), draw.choice(reached)
        external = 'extern "C" ' if self.cplusplus else ""
        return (
            f"static const function entries[] = {{{listed}}};\n"
            f"static __attribute__((constructor)) void starts(void) {{ count += {start}(1, 2); }}\n"
            f"static __attribute__((destructor)) void stops(void) {{ total ^= {stop}(2, {index}); }}\n"
            f"{external}u run{index}(u a) {{ return entries[a % (sizeof entries / sizeof *entries)](a, limit)"
            f" + gather(1, a) + unlikely(a, 1); }}\n"
        )


def generate(seed: int, files: int, functions: int, cplusplus: bool = False) -> Mapping[str, str]:
    """A program: its texts by file name; ``main.c`` and ``far.c`` besides ``files`` others of ``functions`` functions.

    In every program of C++ half of the files are C.
    """
    draw = random.Random(seed)
    plain = [shape for shape in BODIES if shape not in ("recursion",)]
    chooser = Writer(draw, -1, False, [])
    shared = [(draw.choice(plain), chooser.parameters()) for _ in range(12)]
    texts = {}
    for index in range(files):
        is_cc = cplusplus and index % 2 == 0
        writer = Writer(draw, index, is_cc, shared)
        while len(writer.made) < functions:
            writer.family()
        texts[f"file{index}.{'cc' if is_cc else 'c'}"] = writer.write()
    texts["far.c"] = _far(draw)
    calls = " + ".join(f"run{i}((u)c)" for i in range(files))
    declared = "".join(f"u run{i}(u); " for i in range(files))
    texts["main.c"] = f"typedef unsigned long u; {declared}\nint main(int c, char **v) {{ return (int)({calls}); }}\n"
    return texts


def _far(draw: random.Random) -> str:
    """What all files share: some of them twins of each other, one chosen by a resolver, one weak."""
    lines = [C_HEAD, "u g_shared = 3, g_zero, *g_pointer; __thread u g_tls = 9; __thread u h_tls; static u count;"]
    lines.append("__attribute__((weak)) u far0(u a, u b) { return a ^ b; }")
    for i in range(1, _FAR):
        constant = draw.choice(_CONSTANTS[:3])
        lines.append(f"u far{i}(u a, u b) {{ count++; return a * {constant} + b; }}")
    lines += [
        "static u slow(u a, u b) { return a + b; } static u fast(u a, u b) { return a - b; }",
        "static u (*pick(void))(u, u) { return count ? slow : fast; }",
        'u choose(u, u) __attribute__((ifunc("pick")));',
        'u another(u, u) __attribute__((alias("far1")));',
    ]
    return "\n".join(lines) + "\n"
