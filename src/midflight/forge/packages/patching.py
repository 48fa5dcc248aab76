"""Patches in source trees: whether one fits, putting it in, taking it out, and the order of Debian's series.

A patch goes in or out as a whole, or the tree stays as it was.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path

from midflight.forge.packages.apt import SourceError, last_line, run


class PatchError(SourceError):
    """A patch does not fit; ``patch`` is its path."""

    def __init__(self, message: str, patch: Path) -> None:
        super().__init__(message)
        self.patch = patch


def fits(tree: Path, patch: Path, reverse: bool = False, fuzz: int = 0) -> bool:
    """Whether a patch can be applied (or taken back) in ``tree``; changes nothing."""
    return _patch(tree, patch, reverse, dry_run=True, fuzz=fuzz).returncode == 0


def apply_patch(tree: Path, patch: Path, fuzz: int = 0) -> None:
    """Apply a patch (-p1) to ``tree``; ``fuzz`` is how many lines of context may differ (dpkg-source: 0, quilt: 2).

    Raises:
        PatchError: it does not fit; the tree is as it was.
    """
    _change(tree, patch, reverse=False, fuzz=fuzz)


def apply_what_is_there(tree: Path, patch: Path, fuzz: int = 0) -> None:
    """As :func:`apply_patch`, but for the parts that change files which ``tree`` has not (a patch that was left out
    makes them).

    Raises:
        PatchError: the rest does not fit; the tree is as it was.
    """
    with contextlib.suppress(PatchError):
        apply_patch(tree, patch, fuzz)
        return
    text = patch.read_bytes()
    kept = [part for part in re.split(rb"(?m)^(?=--- \S)", text) if _has_its_file(tree, part)]
    with tempfile.TemporaryDirectory() as folder:
        rest = Path(folder) / patch.name
        rest.write_bytes(b"".join(kept))
        try:
            apply_patch(tree, rest, fuzz)
        except PatchError as error:
            raise PatchError(str(error), patch) from None


def _has_its_file(tree: Path, part: bytes) -> bool:
    """Whether a part of a unified diff makes a file, or changes one that is there."""
    found = re.match(rb"--- ([^\t\r\n]+)", part)
    name = found[1].decode("utf-8", "replace").strip() if found else "/dev/null"
    return name == "/dev/null" or (tree / name.partition("/")[2]).is_file()


def revert_patch(tree: Path, patch: Path) -> None:
    """Take a patch (-p1) back out of ``tree``.

    Raises:
        PatchError: it is not (or not as such) in the tree; the tree is as it was.
    """
    _change(tree, patch, reverse=True)


def _change(tree: Path, patch: Path, reverse: bool, fuzz: int = 0) -> None:
    tried = _patch(tree, patch, reverse, dry_run=True, fuzz=fuzz)
    if tried.returncode == 0:
        tried = _patch(tree, patch, reverse, dry_run=False, fuzz=fuzz)
    if tried.returncode != 0:
        verb = "reverted in" if reverse else "applied to"
        why = last_line(tried.stdout) or "patch failed"
        raise PatchError(f"{patch.name} cannot be {verb} {tree}: {why}", patch)


def _patch(tree: Path, patch: Path, reverse: bool, dry_run: bool, fuzz: int = 0) -> subprocess.CompletedProcess[str]:
    # With fuzz, patch(1) would find a place for what is applied already.
    command = ["patch", "-p1", "--force", f"--fuzz={fuzz}", "--no-backup-if-mismatch", "--reject-file=-", "-s"]
    command += ["-R"] * reverse + ["--dry-run"] * dry_run + ["-i", str(patch.resolve())]
    return run(command, cwd=tree)


def series(patches: Path) -> list[str]:
    """The names in debian/patches/series, in the order in which they are applied."""
    lines = (patches / "series").read_text().splitlines() if (patches / "series").exists() else []
    return [line.split("#")[0].split()[0] for line in lines if line.split("#")[0].strip()]
