"""Command lines of compiler drivers, understood as far as capture needs: what is compiled, into what, and how.

A part of the wrapper: it runs at every compilation, so it imports nothing. What an option means is taken from the
manual of GCC ("Overall Options", "Preprocessor Options", "Link Options") and from that of clang.
"""

from __future__ import annotations

_SEPARATE = """
-o -x -I -D -U -L -l -F -B -T -u -z -e -A -b -V -G -h -include -imacros -isystem -iquote -idirafter -iprefix
-iwithprefix -iwithprefixbefore -isysroot --sysroot -imultilib -imultiarch -MF -MT -MQ -MJ -Xlinker -Xassembler
-Xpreprocessor -Xclang -Xanalyzer -mllvm -target --target -arch --param -aux-info -wrapper -dumpbase -dumpbase-ext
-dumpdir -Ttext -Tdata -Tbss -rpath -soname -install_name -gcc-toolchain -serialize-diagnostics -framework -specs
-include-pch -dependency-file
"""
_NO_OBJECT = """
-E -M -MM -fsyntax-only -### -cc1 -cc1as --version --help -dumpmachine -dumpversion -dumpfullversion -dumpspecs
-emit-ast
"""

SEPARATE = frozenset(_SEPARATE.split())
"""Options whose value is the next argument (when nothing is joined to them)."""
NO_OBJECT = frozenset(_NO_OBJECT.split())
"""With one of these no object is made, whatever else is said."""
C_SUFFIXES = frozenset(("c", "i", "cc", "cp", "cxx", "cpp", "CPP", "c++", "C", "ii", "m", "mi", "mm", "M", "mii"))
ASSEMBLER_SUFFIXES = frozenset(("s", "S", "sx"))
HEADER_SUFFIXES = frozenset(("h", "hh", "H", "hp", "hxx", "hpp", "HPP", "h++", "tcc"))

# The trial compilations of autoconf, nginx, CMake and Meson: nothing of them gets into an image.
_TRIAL_FOLDERS = ("/CMakeFiles/CMakeTmp", "/CMakeFiles/CMakeScratch", "/CompilerId", "/meson-private")
_TRIAL_SOURCES = (
    "conftest",
    "autotest.",
    "CMakeCCompiler",
    "CMakeCXXCompiler",
    "testCCompiler",
    "testCXXCompiler",
    "sanitycheckc",
)


class Command:
    """One command line of a compiler driver, understood as far as capture needs."""

    __slots__ = (
        "arguments",
        "depends",
        "depfile",
        "language",
        "lto",
        "map",
        "mode",
        "output",
        "relocatable",
        "sources",
    )

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.mode = "link"
        """link, compile (-c), assembly (-S), or none: no object comes of it."""
        self.output: str | None = None
        self.sources: list[tuple[int, str, str]] = []
        """(index in arguments, path, kind), kind being c, assembler or header."""
        self.lto = False
        self.map: str | None = None
        self.relocatable = False
        self.depends = False
        """Whether the user's own options write a file of dependencies (``depfile``, or a name made of the output)."""
        self.depfile: str | None = None
        language = ""
        others = 0
        i = 0
        while i < len(arguments):
            argument = arguments[i]
            if argument == "-" or not argument.startswith("-"):
                kind = _kind(argument, language)
                if kind:
                    self.sources.append((i, argument, kind))
                else:
                    others += 1
            elif argument in SEPARATE:
                value = arguments[i + 1] if i + 1 < len(arguments) else ""
                if argument == "-o":
                    self.output = value
                elif argument == "-x":
                    language = "" if value == "none" else value
                elif argument == "-l":
                    others += 1
                elif argument == "-MF":
                    self.depfile = value
                elif argument == "-Xlinker" and value.startswith(("-Map=", "--Map=")):
                    self.map = value.partition("=")[2]
                i += 1
            else:
                language = self._option(argument, language)
                others += argument.startswith("-l")
            i += 1
        if self.mode == "link" and not others and all(kind == "header" for _, _, kind in self.sources):
            self.mode = "compile"  # a precompiled header
        if any(path == "-" for _, path, _ in self.sources) or not (self.sources or others):
            self.mode = "none"
        if self.output is not None and (self.output == "-" or self.output.startswith("/dev/")):
            self.mode = "none"

    def _option(self, argument: str, language: str) -> str:
        """Take one option without a separate value; returns the language in force after it."""
        if argument in NO_OBJECT or argument.startswith("-print-"):
            self.mode = "none"
        elif argument == "-S" and self.mode != "none":
            self.mode = "assembly"
        elif argument == "-c" and self.mode == "link":
            self.mode = "compile"
        elif argument.startswith("-o"):
            self.output = argument[2:]
        elif argument.startswith("-x"):
            return "" if argument == "-xnone" else argument[2:]
        elif argument == "-flto" or argument.startswith("-flto="):
            self.lto = True
        elif argument == "-fno-lto":
            self.lto = False
        elif argument == "-r":
            self.relocatable = True
        elif argument in ("-MD", "-MMD"):
            self.depends = True
        elif argument.startswith("-MF"):
            self.depfile = argument[3:]
        elif argument.startswith(("-Wp,-MD,", "-Wp,-MMD,")):
            self.depends = True
            self.depfile = argument.split(",")[2]
        elif argument.startswith("-Wl,"):
            parts = argument.split(",")[1:]
            for j, part in enumerate(parts):
                if part.startswith(("-Map=", "--Map=")):
                    self.map = part.partition("=")[2]
                elif part in ("-Map", "--Map") and j + 1 < len(parts):
                    self.map = parts[j + 1]
                elif part in ("-r", "-i", "--relocatable"):
                    self.relocatable = True
        return language


def _kind(path: str, language: str) -> str:
    """Which kind of source an input is: c, assembler, header; empty for what goes to the linker."""
    if language:
        if language.startswith("assembler"):
            return "assembler"
        return "header" if language.endswith("-header") else "c"
    suffix = path.rpartition("/")[2].rpartition(".")[2] if "." in path else ""
    if path == "-" or suffix in C_SUFFIXES:
        return "c"
    if suffix in ASSEMBLER_SUFFIXES:
        return "assembler"
    return "header" if suffix in HEADER_SUFFIXES else ""


def expand(arguments: list[str], depth: int = 0) -> list[str]:
    """Replace ``@file`` by the arguments in it, as GCC does: white space separates, quotes and backslashes keep."""
    if depth > 20 or not any(a.startswith("@") for a in arguments):
        return arguments
    result: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            result.append(argument)
            continue
        try:
            with open(argument[1:], encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        except OSError:
            result.append(argument)
            continue
        result += expand(_split(text), depth + 1)
    return result


def _split(text: str) -> list[str]:
    words: list[str] = []
    word: str | None = None
    quote = ""
    i = 0
    while i < len(text):
        character = text[i]
        if character == "\\" and i + 1 < len(text):
            i += 1
            word = (word or "") + text[i]
        elif quote:
            if character == quote:
                quote = ""
            else:
                word = (word or "") + character
        elif character in "'\"":
            quote = character
            word = word or ""
        elif character in " \t\r\n\f\v":
            if word is not None:
                words.append(word)
                word = None
        else:
            word = (word or "") + character
        i += 1
    if word is not None:
        words.append(word)
    return words


def is_preprocessed_first(path: str, kind: str) -> bool:
    """Whether the compiler can list the files that such a source includes."""
    suffix = path.rpartition(".")[2]
    return suffix in ("S", "sx") if kind == "assembler" else kind == "c" and suffix not in ("i", "ii", "mi", "mii")


def is_trial(cwd: str, command: Command) -> bool:
    """Whether this is a trial of a configuration step, of which nothing is to be recorded."""
    if any(folder in cwd for folder in _TRIAL_FOLDERS):
        return True
    paths = [path for _, path, _ in command.sources] or [a for a in command.arguments if a.endswith(".o")]
    return any(
        path.rpartition("/")[2].startswith(_TRIAL_SOURCES) or any(folder in path for folder in _TRIAL_FOLDERS)
        for path in paths
    )
