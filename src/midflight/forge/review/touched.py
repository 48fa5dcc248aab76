"""Which lines of which source files a fix touches, and what stands there.

Code is attributed to lines by its debug information, so that a call on a line that the fix adds, alters or takes out
can be told from all the others, wherever the compiler put it.
"""

from __future__ import annotations

import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from midflight.errors import ForgeError
from midflight.forge.capture.source import Change

SOURCES = frozenset(
    (".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".inc", ".def", ".tcc", ".ipp", ".y", ".l")
)

_HUNK = re.compile(r"^(\d+)(?:,(\d+))?([acd])(\d+)(?:,(\d+))?$")
_MACRO = re.compile(r"^\s*#\s*(?:define|undef|if|ifdef|ifndef|else|elif|endif)\b")
_STATEMENT_LINES = 12
"""How far the rest of a statement is looked for."""


@dataclass(frozen=True, slots=True)
class TouchedFile:
    """One source file: its lines before and after, and the numbers (from 1) of those that only one side has."""

    path: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    removed: frozenset[int]
    added: frozenset[int]

    @property
    def preprocessor(self) -> bool:
        """Whether a line of the preprocessor is touched: then lines that stay may mean something else."""
        lines = [self.old[n - 1] for n in self.removed] + [self.new[n - 1] for n in self.added]
        return any(map(_MACRO.match, lines)) or any(line.endswith("\\") for line in lines)

    def has(self, lines: Sequence[str]) -> bool:
        """Whether these are the lines of this file, before or after."""
        return bool(lines) and tuple(lines) in (self.old, self.new)

    def line(self, side: int, number: int) -> str:
        """The text of a line; side 0 is before, 1 after."""
        lines = (self.old, self.new)[side]
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def touches(self, side: int, number: int) -> bool:
        """Whether the fix touches the statement that begins on this line."""
        marked = (self.removed, self.added)[side]
        return any(at in marked for at in self._statement(side, number))

    def statement(self, side: int, number: int) -> str:
        """The text of the statement that begins on this line, without its line breaks and indentation."""
        return " ".join(" ".join(self.line(side, at) for at in self._statement(side, number)).split())

    def _statement(self, side: int, number: int) -> range:
        """The lines of it."""
        for at in range(number, number + _STATEMENT_LINES):
            if re.search(r"[;{}]", self.line(side, at)) or not self.line(side, at):
                return range(number, at + 1)
        return range(number, number + _STATEMENT_LINES)


@dataclass(frozen=True)
class Touched:
    """All source files that a fix touches, by path in the tree."""

    files: Mapping[str, TouchedFile] = field(default_factory=dict)
    built: Path | None = None
    """The tree in which the builds ran: some copy their sources before they compile them."""
    _known: dict[str, TouchedFile | None] = field(default_factory=dict, compare=False)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(Path(path).name, []).append(path)
        return found

    def find(self, name: str) -> TouchedFile | None:
        """The touched file that debug information calls ``name`` (absolute, or relative to some folder)."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> TouchedFile | None:
        candidates = self._by_name.get(name.rpartition("/")[2], ())
        parts = [part for part in name.split("/") if part not in ("", ".")]
        best, length = None, 0
        for path in candidates:
            own = path.split("/")
            common = _common_end(parts, own)
            if (common == min(len(parts), len(own)) or ".." in parts) and common > length:
                best, length = self.files[path], common
        if best is None and candidates and self.built is not None:
            text = read_lines(locate(self.built, name))
            return next((self.files[path] for path in candidates if self.files[path].has(text)), None)
        return best


def locate(tree: Path, name: str) -> Path | None:
    """Where a name in debug information leads in a tree: the longest end of it that exists there."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        path = tree.joinpath(*parts[start:])
        if path.is_file():
            return path
    return None


def read_lines(path: Path | None) -> tuple[str, ...]:
    """The lines of a source file; none when there is no file."""
    if path is None:
        return ()
    state = path.stat()
    return _read_lines(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read_lines(path: Path, _changed: int, _size: int) -> tuple[str, ...]:
    return _lines(path.read_bytes())


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def touched(source: Path, changes: Mapping[str, Change], built: Path | None = None) -> Touched:
    """Compare the source files that a fix changes with those of the unfixed tree; ``built`` is where the builds ran.

    Raises:
        ForgeError: there is no program ``diff``.
    """
    files = {}
    for path, change in changes.items():
        if Path(path).suffix.lower() not in SOURCES:
            continue
        original = source / path
        if original.is_symlink() or (change.content is not None and stat.S_ISLNK(change.mode)):
            continue
        old = original.read_bytes() if original.is_file() else b""
        files[path] = compare(path, old, change.content or b"")
    return Touched(files, built)


def compare(path: str, old: bytes, new: bytes) -> TouchedFile:
    """The difference of one file."""
    removed: set[int] = set()
    added: set[int] = set()
    for line in _diff(old, new):
        hunk = _HUNK.match(line)
        if hunk is None:
            continue
        first, last, what, start, end = hunk.groups()
        if what in "cd":
            removed.update(range(int(first), int(last or first) + 1))
        if what in "ca":
            added.update(range(int(start), int(end or start) + 1))
    return TouchedFile(path, _lines(old), _lines(new), frozenset(removed), frozenset(added))


def _lines(text: bytes) -> tuple[str, ...]:
    return tuple(line.rstrip("\r") for line in text.decode(errors="replace").split("\n"))


def _diff(old: bytes, new: bytes) -> Iterable[str]:
    if old == new:
        return ()
    with tempfile.TemporaryDirectory(prefix="midflight-diff-") as folder:
        paths = Path(folder) / "old", Path(folder) / "new"
        for path, content in zip(paths, (old, new), strict=True):
            path.write_bytes(content)
        try:
            done = subprocess.run(["diff", "-a", *paths], capture_output=True, check=False)
        except FileNotFoundError:
            raise ForgeError(
                "the program 'diff' is not installed; install it (Debian: apt install diffutils)"
            ) from None
    return done.stdout.decode(errors="replace").splitlines()
