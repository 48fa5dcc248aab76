"""Compilations of the build with the fix that read exactly what they read before: the object is taken, not made again.

The build with the fix is a whole one, from a fresh tree, so that everything generated comes out anew. Most of its
compilations are equal to those of the build without the fix: same compiler, arguments, folder and environment, and the
same content of every file of the tree that the compiler read then. A part of the wrapper, and as independent of the
package; it runs once for every compilation, so it imports next to nothing.
"""

from __future__ import annotations

import os
from _blake2 import blake2b  # what hashlib.blake2b is; hashlib itself takes longer to import than all the rest

_OBEYED = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "SOURCE_DATE_EPOCH", "GCC_EXEC_PREFIX", "COMPILER_PATH")
_MORE_OUTPUT = (
    "-save-temps",
    "--save-temps",
    "-fdump",
    "--coverage",
    "-coverage",
    "-ftest-coverage",
    "-fprofile",
    "-fstack-usage",
    "-fcallgraph-info",
    "-aux-info",
    "-MJ",
    "-Wa,-a",
    "-fplugin",
    "-fmodule",
    "-include-pch",
)


def key(tool: str, arguments: list[str], cwd: str) -> str:
    """What names a compilation; empty when it has effects besides its object, so that it must be run."""
    if any(argument.startswith(_MORE_OUTPUT) for argument in arguments):
        return ""
    state = blake2b(digest_size=16)
    words = [tool, cwd, *arguments, *(f"{name}={os.environ.get(name)}" for name in _OBEYED)]
    state.update("\0".join(words).encode(errors="surrogateescape"))
    return str(state.hexdigest())


def files_read(dependencies: str, cwd: str, tree: str) -> list[str] | None:
    """The files of the tree in a compiler's list of dependencies; None when it has names that are hard to read."""
    try:
        with open(dependencies, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read().replace("\\\n", " ")
    except OSError:
        return None
    if "\\" in text or "$" in text or "#" in text:
        return None
    found: dict[str, None] = {}
    for word in text.split():
        if word.endswith(":"):
            continue
        path = os.path.normpath(os.path.join(cwd, word))
        if path.startswith(tree):
            found.setdefault(path)
    return list(found)


def digest(files: list[str]) -> str:
    """One hash over the contents of files; empty when one cannot be read."""
    state = blake2b(digest_size=16)
    for path in files:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            return ""
        state.update(b"%d\0" % len(content))
        state.update(content)
    return str(state.hexdigest())


def remember(phase: str, name: str, files: list[str], saved: str, dependencies: str) -> None:
    """Note what a compilation read and made."""
    folder = os.path.join(phase, "index", name)
    os.makedirs(folder, exist_ok=True)
    stamp = os.path.basename(saved)
    temporary = os.path.join(phase, "files", stamp + ".index")
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\0".join((digest(files), saved, dependencies, *files)))
    os.rename(temporary, os.path.join(folder, stamp))


def recall(phase: str, name: str) -> tuple[str, str] | None:
    """The object (and the kept list of dependencies, or "") of an equal compilation in an earlier phase."""
    folder = os.path.join(phase, "index", name)
    try:
        notes = sorted(os.listdir(folder), reverse=True)
    except OSError:
        return None
    for note in notes:
        with open(os.path.join(folder, note), encoding="utf-8", errors="surrogateescape") as file:
            known, saved, dependencies, *files = file.read().split("\0")
        if known and digest(files) == known:
            return saved, dependencies
    return None
