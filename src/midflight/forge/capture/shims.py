"""The folder of shims: programs named as the compiler drivers, linkers, objcopy and make on the PATH: the wrapper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ForgeError
from midflight.forge.capture import wrapper

_DRIVER = re.compile(
    r"^(?:[\w.]+-)*(?:cc|c\+\+|c89|c99|gcc|g\+\+|clang|clang\+\+|icx|icpx)(?:-\d+(?:\.\d+)*)?(?:-win32|-posix)?$"
)
_LINKER = re.compile(r"^(?:[\w.]+-)*ld(?:\.bfd|\.gold|\.lld|\.mold)?(?:-\d+)?$")
_MSVC_LINKER = re.compile(r"^lld-link(?:-\d+)?$")
_COPIER = re.compile(r"^(?:[\w.]+-)*objcopy(?:-\d+)?$")
_MAKE = frozenset({"make", "gmake", "ninja", "samu", "ninja-build"})
_CACHES = frozenset({"ccache", "distcc", "icecc", "sccache", "colorgcc"})


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that gets a shim. ``kind``: gcc, clang, ld, lld-link, objcopy, make."""

    name: str
    path: str
    kind: str
    real: str
    """The path with all links followed."""
    state: str
    """Changes when the program is exchanged for another."""


def find_tools(path: str, root: Path | None = None) -> tuple[Tool, ...]:
    """Every compiler driver, linker, objcopy and make on a PATH: the first of a name, but no compiler cache.

    With ``root``, they are looked for below that folder, and paths are as seen from within.
    """
    kinds: dict[str, str] = {}
    tools: dict[str, Tool] = {}
    for folder in path.split(":"):
        if not os.path.isabs(folder):
            continue
        try:
            names = sorted(os.listdir(_outside(folder, root)))
        except OSError:
            continue
        for name in names:
            kind = _kind(name)
            full = os.path.join(folder, name)
            if not kind or name in tools:
                continue
            real = _realpath(full, root)
            program = _outside(real, root)
            if not os.access(program, os.X_OK) or os.path.isdir(program) or os.path.basename(real) in _CACHES:
                continue
            if kind == "cc":
                if real not in kinds:
                    in_name = "clang" if "clang" in os.path.basename(real) else "gcc"
                    kinds[real] = _compiler_kind(full) if root is None else in_name
                kind = kinds[real]
            state = os.stat(program)
            tools[name] = Tool(name, full, kind, real, f"{state.st_size} {state.st_mtime_ns}")
    return tuple(tools.values())


def _outside(path: str, root: Path | None) -> str:
    """A path within a root as seen from without."""
    return path if root is None else str(root) + path


def _realpath(path: str, root: Path | None) -> str:
    """``os.path.realpath`` within a root, where absolute links begin at that root."""
    if root is None:
        return os.path.realpath(path)
    pending = path.split("/")[::-1]
    done: list[str] = []
    for _ in range(1000):
        if not pending:
            break
        part = pending.pop()
        if part == "..":
            done = done[:-1]
        elif part not in ("", "."):
            inside = "/".join(["", *done, part])
            if os.path.islink(_outside(inside, root)):
                target = os.readlink(_outside(inside, root))
                done = [] if target.startswith("/") else done
                pending += target.split("/")[::-1]
            else:
                done.append(part)
    return "/" + "/".join(done)


def _kind(name: str) -> str:
    if name in _MAKE:
        return "make"
    kinds = (("ld", _LINKER), ("lld-link", _MSVC_LINKER), ("objcopy", _COPIER), ("cc", _DRIVER))
    return next((kind for kind, pattern in kinds if pattern.match(name)), "")


def _compiler_kind(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "gcc"
    return "clang" if "clang" in done.stdout else "gcc"


def compilers_identity(tools: tuple[Tool, ...]) -> str:
    """A text that changes when a compiler or linker is exchanged for another."""
    return "\n".join(f"{tool.name} {tool.real} {tool.state}" for tool in tools)


def wrapper_files() -> tuple[Path, ...]:
    """The files of which the wrapper consists."""
    here = Path(wrapper.__file__)
    return here, *(here.with_name(name) for name in ("commandline.py", "linkrecord.py", "reuse.py"))


def make_shims(base: Path, tools: tuple[Tool, ...], python: str | None = None) -> Path:
    """Fill ``base/shims``; returns that folder, which belongs at the head of the PATH.

    ``python`` is the interpreter that runs them, by default this one.

    Raises:
        ForgeError: there is no compiler at all.
    """
    if not any(tool.kind in ("gcc", "clang") for tool in tools):
        raise ForgeError("no C compiler was found on the PATH; install gcc or clang, or set PATH so that it is found")
    folder = base / "shims"
    library = folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    for module in wrapper_files():
        shutil.copyfile(module, library / module.name)
    python = python or os.path.realpath(sys.executable)
    for tool in tools:
        body = (
            f"import sys\nsys.path.insert(0, {str(library)!r})\n"
            f"import wrapper\nwrapper.main({str(base)!r}, {tool.kind!r}, {tool.path!r}, {tool.name!r})\n"
        )
        shim = folder / tool.name
        shim.write_text(_head(python, tool, folder) + body)
        shim.chmod(0o755)
    return folder


def _head(python: str, tool: Tool, folder: Path) -> str:
    """How a shim begins: a script of sh that lets trials of a configuration pass, and is Python otherwise.

    The tests of autoconf are the most frequent runs of a compiler by far; starting Python for each would cost minutes
    in all. What sh runs is hidden from Python in a string. The second slash lets the real tool pass exechook.c.
    """
    trial = ""
    if tool.kind != "make" and re.fullmatch(r"[\w/.@%+=, -]+", str(folder)):
        real = _quoted("/" + tool.path)
        trial = f'case " $*" in *" conftest."*) LD_PRELOAD= PATH="${{PATH#{folder}:}}" exec {real} "$@";; esac\n'
    return f"#!/bin/sh\n''':'\n{trial}exec {_quoted(python)} -ISE \"$0\" \"$@\"\n'''\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def make_exec_hook(folder: Path, tools: tuple[Tool, ...], enter: tuple[str, ...] = ()) -> Path | None:
    """Build the library that leads full paths of tools to their shims; None when no C compiler can build it.

    ``enter`` are words that let a command run where the compilers are.
    """
    paths = {tool.name: tool.path for tool in tools}
    compiler = next((paths[name] for name in ("gcc", "clang", "cc") if name in paths), None)
    if compiler is None:
        return None
    rows = []
    for tool in tools:
        fields = (tool.name, tool.real, str(folder / tool.name))
        rows.append("    {" + ", ".join(map(_c_string, fields)) + "},")
    code = Path(__file__).with_name("exechook.c").read_text()
    source = folder / "lib" / "exechook.c"
    source.write_text(code + "\nconst struct tool tools[] = {\n" + "\n".join(rows) + "\n    {0, 0, 0}};\n")
    library = folder / "lib" / "exechook.so"
    command = [*enter, compiler, "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return library if done.returncode == 0 else None


def _c_string(text: str) -> str:
    plain = [chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in os.fsencode(text)]
    return '"' + "".join(plain) + '"'


def redirect(text: str, tools: tuple[Tool, ...], folder: Path) -> str:
    """Replace absolute paths of known tools in a command (``CC=/usr/bin/gcc``) by those of their shims."""
    known: dict[str, str] = {}
    by_real = {tool.real: tool for tool in reversed(tools)}
    names = {tool.name: tool for tool in tools}

    def replace(found: re.Match[str]) -> str:
        path = found[0]
        if path in known:
            return known[path]
        name = os.path.basename(path)
        tool = None
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            real = os.path.realpath(path)
            tool = names.get(name)
            if tool is None or tool.real != real:
                tool = by_real.get(real)
        known[path] = str(folder / tool.name) if tool else path
        return known[path]

    return re.sub(r"(?<![\w./-])/[\w./+-]+", replace, text)
