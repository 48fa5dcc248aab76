"""The folder of shims: programs named as each compiler driver, linker and make on the PATH, which run the wrapper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ForgeError
from midflight.forge import wrapper

_DRIVER = re.compile(r"^(?:[\w.]+-)*(?:cc|c\+\+|c89|c99|gcc|g\+\+|clang|clang\+\+|icx|icpx)(?:-\d+(?:\.\d+)*)?$")
_LINKER = re.compile(r"^(?:[\w.]+-)*ld(?:\.bfd|\.gold|\.lld|\.mold)?(?:-\d+)?$")
_MAKE = frozenset({"make", "gmake", "ninja", "samu", "ninja-build"})
_CACHES = frozenset({"ccache", "distcc", "icecc", "sccache", "colorgcc"})


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that gets a shim. ``kind``: gcc, clang, ld, make."""

    name: str
    path: str
    kind: str


def find_tools(path: str) -> tuple[Tool, ...]:
    """Every compiler driver, linker and make on a PATH; the first of a name counts, compiler caches are passed over."""
    kinds: dict[str, str] = {}
    tools: dict[str, Tool] = {}
    for folder in path.split(":"):
        if not os.path.isabs(folder):
            continue
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            kind = "make" if name in _MAKE else "ld" if _LINKER.match(name) else "cc" if _DRIVER.match(name) else ""
            full = os.path.join(folder, name)
            if not kind or name in tools or not os.access(full, os.X_OK) or os.path.isdir(full):
                continue
            real = os.path.realpath(full)
            if os.path.basename(real) in _CACHES:
                continue
            if kind == "cc":
                if real not in kinds:
                    kinds[real] = _compiler_kind(full)
                kind = kinds[real]
            tools[name] = Tool(name, full, kind)
    return tuple(tools.values())


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
    lines = []
    for tool in tools:
        state = Path(tool.path).stat()
        lines.append(f"{tool.name} {os.path.realpath(tool.path)} {state.st_size} {state.st_mtime_ns}")
    return "\n".join(lines)


def wrapper_files() -> tuple[Path, ...]:
    """The files of which the wrapper consists."""
    here = Path(wrapper.__file__)
    return here, *(here.with_name(name) for name in ("commandline.py", "linkrecord.py", "reuse.py"))


def make_shims(base: Path, tools: tuple[Tool, ...]) -> Path:
    """Fill ``base/shims``; returns that folder, which belongs at the head of the PATH.

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
    python = os.path.realpath(sys.executable)
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


def make_exec_hook(folder: Path, tools: tuple[Tool, ...]) -> Path | None:
    """Build the library that leads full paths of tools to their shims; None when no C compiler can build it."""
    paths = {tool.name: tool.path for tool in tools}
    compiler = next((paths[name] for name in ("gcc", "clang", "cc") if name in paths), None)
    if compiler is None:
        return None
    rows = []
    for tool in tools:
        fields = (tool.name, os.path.realpath(tool.path), str(folder / tool.name))
        rows.append("    {" + ", ".join(map(_c_string, fields)) + "},")
    code = Path(__file__).with_name("exechook.c").read_text()
    source = folder / "lib" / "exechook.c"
    source.write_text(code + "\nconst struct tool tools[] = {\n" + "\n".join(rows) + "\n    {0, 0, 0}};\n")
    library = folder / "lib" / "exechook.so"
    command = [compiler, "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return library if done.returncode == 0 else None


def _c_string(text: str) -> str:
    plain = [chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in os.fsencode(text)]
    return '"' + "".join(plain) + '"'


def redirect(text: str, tools: tuple[Tool, ...], folder: Path) -> str:
    """Replace absolute paths of known tools in a command (``CC=/usr/bin/gcc``) by those of their shims."""
    known: dict[str, str] = {}
    by_real = {os.path.realpath(tool.path): tool for tool in reversed(tools)}
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
            if tool is None or os.path.realpath(tool.path) != real:
                tool = by_real.get(real)
        known[path] = str(folder / tool.name) if tool else path
        return known[path]

    return re.sub(r"(?<![\w./-])/[\w./+-]+", replace, text)
