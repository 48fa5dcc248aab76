"""The source tree and the fix: a fingerprint of the one, and what the other changes, file by file.

Both forms of a fix (a patch, a second tree) are read into the same :class:`Fix` before anything is built, so that a fix
that does not apply is found at once. The user's own tree is only ever read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ForgeError, InputError

_UNSEEN = frozenset({".git", ".svn", ".hg", ".bzr", "CVS", ".pc"})
_HEADER = re.compile(rb"^(?:---|\+\+\+) ([^\t\r\n]+)", re.MULTILINE)
_GIT = re.compile(rb"^(?:rename|copy) from (.+)$", re.MULTILINE)
_FILE = re.compile(r"^(?:patching|checking) (?:file|symbolic link) (.+?)(?: \((?:renamed|copied|read) from .*\))?$")
_FAILED = re.compile(r"^Hunk #(\d+) FAILED at (\d+)")
_INEXACT = re.compile(r"^Hunk #(\d+) succeeded at (\d+) (.*)$")


@dataclass(frozen=True, slots=True)
class Change:
    """The new state of one file: its content (None: removed; of a symbolic link, its target) and its mode."""

    content: bytes | None
    mode: int


@dataclass(frozen=True, slots=True)
class Fix:
    """What the fix does to the tree, by path relative to it, and what should be told about it."""

    name: str
    changes: dict[str, Change]
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Content address of the fix."""
        sha = hashlib.sha256()
        for path in sorted(self.changes):
            change = self.changes[path]
            sha.update(f"{path}\0{change.mode:o}\0{-1 if change.content is None else len(change.content)}\0".encode())
            sha.update(change.content or b"")
        return sha.hexdigest()

    def apply(self, tree: Path) -> None:
        """Write the changes into a tree, all with one and the same time, so that none seems older than another."""
        now = time.time_ns()
        for relative, change in self.changes.items():
            path = tree / relative
            if path.is_symlink() or path.exists():
                path.unlink()
            if change.content is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(change.mode):
                path.symlink_to(os.fsdecode(change.content))
            else:
                path.write_bytes(change.content)
                path.chmod(stat.S_IMODE(change.mode))
            os.utime(path, ns=(now, now), follow_symlinks=False)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree with times, modes and links as they are, sharing blocks where the file system can.

    Raises:
        ForgeError: the copy failed (no room, unreadable files).
    """
    done = subprocess.run(
        ["cp", "-a", "--reflink=auto", f"{source}/.", str(target)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["cp failed"])[-1]
        raise ForgeError(f"cannot copy {source} to {target}: {last}; make room, or choose another work folder")


def files_of(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and state of each file and symbolic link of a tree, in order; without version control's own."""
    for folder, folders, names in os.walk(tree):
        for name in list(folders):
            if name in _UNSEEN:
                folders.remove(name)
            elif os.path.islink(os.path.join(folder, name)):
                names.append(name)
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            state = os.lstat(path)
            if stat.S_ISREG(state.st_mode) or stat.S_ISLNK(state.st_mode):
                yield os.path.relpath(path, tree), state


def _content(path: Path, mode: int) -> bytes:
    return os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else path.read_bytes()


def fingerprint(tree: Path) -> tuple[str, int]:
    """SHA-256 over names, modes and contents of a tree, and the newest time in it (seconds, for SOURCE_DATE_EPOCH)."""
    sha = hashlib.sha256()
    newest = 0
    for relative, state in files_of(tree):
        content = _content(tree / relative, state.st_mode)
        head = f"{relative}\0{state.st_mode & ~0o022:o}\0{len(content)}\0"
        sha.update(head.encode(errors="surrogateescape"))
        sha.update(content)
        newest = max(newest, int(state.st_mtime))
    return sha.hexdigest(), newest


def read_fix(source: Path, fix: Path) -> Fix:
    """Read a fix for ``source``: a patch file, or a second tree.

    Raises:
        InputError: the fix does not exist, does not apply (file and hunk are named), or changes nothing.
    """
    if fix.is_dir():
        found = _tree_as_fix(source, fix)
    elif fix.is_file():
        found = _patch_as_fix(source, fix)
    else:
        raise InputError(f"the fix {fix} does not exist; give a patch file or a second source tree")
    if not found.changes:
        raise InputError(f"the fix {fix} changes no file of {source}; is it the right one, or already applied there?")
    return found


def _tree_as_fix(source: Path, fix: Path) -> Fix:
    before = dict(files_of(source))
    after = dict(files_of(fix))
    changes: dict[str, Change] = {}
    for relative, state in after.items():
        old = before.get(relative)
        content = _content(fix / relative, state.st_mode)
        same_kind = old is not None and stat.S_IFMT(old.st_mode) == stat.S_IFMT(state.st_mode)
        executable = old is not None and (old.st_mode ^ state.st_mode) & 0o111
        if old is None or not same_kind or executable or content != _content(source / relative, old.st_mode):
            changes[relative] = Change(content, state.st_mode)
    for relative in before.keys() - after.keys():
        changes[relative] = Change(None, 0)
    return Fix(fix.name, dict(sorted(changes.items())))


def _patch_as_fix(source: Path, fix: Path) -> Fix:
    data = fix.read_bytes()
    names = _patched_names(fix, data)
    if b"GIT binary patch" in data:
        raise InputError(
            f"{fix} holds a binary git patch, which patch(1) cannot apply; give a second source tree as the fix"
        )
    strip = _strip_level(source, names)
    with tempfile.TemporaryDirectory(prefix="midflight-fix-") as scratch_name:
        scratch = Path(scratch_name)
        before: dict[str, Change] = {}
        for name in names:
            relative = _stripped(name, strip)
            if relative is None:
                continue
            if relative.startswith("/") or ".." in relative.split("/"):
                raise InputError(f"{fix} names {name}, outside of the tree; a patch must stay inside of it")
            original = source / relative
            if not (original.is_symlink() or original.is_file()):
                continue
            state = original.lstat()
            before[relative] = Change(_content(original, state.st_mode), state.st_mode)
            copy = scratch / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(original, copy, follow_symlinks=False)
        notes = _run_patch(fix, scratch, strip)
        after = {r: Change(_content(scratch / r, s.st_mode), s.st_mode) for r, s in files_of(scratch)}
    changes = {r: change for r, change in after.items() if before.get(r) != change}
    changes.update({r: Change(None, 0) for r in before.keys() - after.keys()})
    return Fix(fix.name, dict(sorted(changes.items())), notes)


def _patched_names(fix: Path, data: bytes) -> list[str]:
    found = [os.fsdecode(m.group(1)).strip() for m in _HEADER.finditer(data)]
    found += ["a/" + os.fsdecode(m.group(1)).strip() for m in _GIT.finditer(data)]
    names = list(dict.fromkeys(n for n in found if n and n != "/dev/null"))
    if not names:
        raise InputError(f"{fix} is no patch: it has no '---'/'+++' lines; give a unified diff or a second source tree")
    return names


def _stripped(name: str, strip: int) -> str | None:
    parts = name.split("/")
    return "/".join(parts[strip:]) if len(parts) > strip else None


def _strip_level(source: Path, names: list[str]) -> int:
    """1 as with git and quilt, unless only another level names files that exist."""

    def existing(strip: int) -> int:
        return sum((r := _stripped(name, strip)) is not None and (source / r).is_file() for name in names)

    return max((1, 0, 2, 3), key=existing)


def _run_patch(fix: Path, scratch: Path, strip: int) -> tuple[str, ...]:
    tool = shutil.which("patch")
    if tool is None:
        raise ForgeError("the program 'patch' is not installed; install it (Debian: apt install patch)")
    command = [
        tool,
        f"-p{strip}",
        "--batch",
        "--forward",
        "--no-backup-if-mismatch",
        "-r",
        "-",
        "-i",
        str(fix.resolve()),
    ]
    environment = {**os.environ, "LC_ALL": "C"}
    environment.pop("POSIXLY_CORRECT", None)
    done = subprocess.run(
        command,
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    lines = (done.stdout + done.stderr).splitlines()
    name = "?"
    notes: list[str] = []
    failures: list[str] = []
    for line in lines:
        if found := _FILE.match(line):
            name = found[1].strip("'")
        elif found := _FAILED.match(line):
            failures.append(f"hunk {found[1]} of {name} (at line {found[2]})")
        elif found := _INEXACT.match(line):
            notes.append(f"{fix.name}: hunk {found[1]} of {name} applied at line {found[2]} {found[3].rstrip('.')}")
        elif "previously applied" in line:
            failures.append(f"the changes of {name} seem to be there already")
        elif line.startswith("can't find file to patch"):
            failures.append("it names a file that the tree does not have: " + _missing_name(lines))
    if done.returncode:
        reason = "; ".join(failures) or (lines[-1] if lines else f"patch ended with status {done.returncode}")
        raise InputError(f"{fix} does not apply: {reason}; nothing was built, give the fix for exactly this source")
    return tuple(notes)


def _missing_name(lines: list[str]) -> str:
    for line in lines:
        if line.startswith(("|--- ", "|+++ ")):
            return line[5:].split("\t")[0]
    return "?"
