"""The locked folder in which all builds of one source run, and one captured build in it.

Every build runs in the same folder ``tree``, so that __FILE__ and DW_AT_comp_dir are equal in all of them. The folder
is kept as a cache once its pre build is complete; without the file ``complete`` it is rubbish of a killed run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import InputError
from midflight.forge.capture.run import Progress, run_build
from midflight.forge.capture.shims import Tool, compilers_identity, redirect, wrapper_files
from midflight.forge.capture.source import copy_tree

_KEPT = 30 * 24 * 3600.0
"""Seconds for which a build is kept that nobody uses."""
_NAME = re.compile(r"[0-9a-f]{24}")


def checked_source(source: Path, work: Path) -> Path:
    """The source tree, resolved.

    Raises:
        InputError: it is no folder, or the work folder lies in it.
    """
    if not source.is_dir():
        raise InputError(f"the source tree {source} is no folder; give the folder in which the build command runs")
    source = source.resolve()
    if work.resolve().is_relative_to(source):
        raise InputError(f"the work folder {work} lies in the source tree {source}; choose one outside of it")
    return source


def build_key(words: Iterable[str], tools: tuple[Tool, ...]) -> str:
    """Content address of a build: what goes into it, as texts, and the tools that make it."""
    sha = hashlib.sha256()
    for text in (*words, compilers_identity(tools), os.path.realpath(sys.executable)):
        sha.update(text.encode(errors="surrogateescape") + b"\0")
    for module in wrapper_files():
        sha.update(module.read_bytes())
    return sha.hexdigest()[:24]


def without_caches(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which compilers really run: a compiler cache would answer without them."""
    return {**environment, "CCACHE_DISABLE": "1", "DISTCC_HOSTS": "localhost"}


def _forget_unused(folder: Path) -> None:
    """Remove builds that nobody has used for long; those in use are locked, and anything else there is not ours."""
    for entry in folder.iterdir():
        old = _NAME.fullmatch(entry.name) and entry.stat().st_mtime < time.time() - _KEPT
        if not old or not (entry / "complete").is_file():
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Without this note, what is left of it is rubbish if we are killed.
                (entry / "complete").unlink()
                shutil.rmtree(entry)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def locked(base: Path, progress: Progress) -> Iterator[Path]:
    """Create and lock the folder of one build against other runs; removed when its pre build was not completed.

    Builds beside it that were not used for 30 days are removed."""
    while True:
        base.mkdir(exist_ok=True)
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the same source")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(descriptor), base.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(descriptor)  # removed by the one we waited for
    try:
        os.utime(base)
        _forget_unused(base.parent)
        yield base
    finally:
        if not (base / "complete").exists():
            shutil.rmtree(base, ignore_errors=True)
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class BuildTree:
    """The tree in one locked folder ``base``, and the builds that run in it."""

    base: Path
    make: str
    tools: tuple[Tool, ...]
    environment: Mapping[str, str]
    progress: Progress
    enter: tuple[str, ...] = ()
    """Words that let a command run where it is built, see place.py."""

    @property
    def path(self) -> Path:
        """Where every build runs."""
        return self.base / "tree"

    @property
    def complete(self) -> bool:
        """Whether the pre build is there, whole."""
        return (self.base / "complete").exists()

    def complete_with(self, text: str) -> None:
        """Note that the pre build is whole."""
        (self.base / "complete").write_text(text)

    def clear(self) -> None:
        """Remove everything that a killed run left in the folder."""
        for left in self.base.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def build(self, name: str) -> None:
        """Run the build command in the tree, with everything recorded below ``base/name``.

        Raises:
            ForgeError: the command failed.
        """
        folder = self.base / name
        (folder / "records").mkdir(parents=True, exist_ok=True)
        (folder / "files").mkdir(exist_ok=True)
        phase = self.base / "phase"
        phase.unlink(missing_ok=True)
        phase.symlink_to(folder.name)
        shims = self.base / "shims"
        environment = {
            k: redirect(v, self.tools, shims) if k in ("CC", "CXX", "LD") else v for k, v in self.environment.items()
        }
        environment["PATH"] = f"{shims}:{environment.get('PATH', os.defpath)}"
        hook = shims / "lib" / "exechook.so"
        if hook.exists():
            environment["LD_PRELOAD"] = " ".join(filter(None, (str(hook), environment.get("LD_PRELOAD"))))
        label = name.partition("-")[0]

        def tell(seconds: float) -> None:
            count = sum(1 for _ in os.scandir(folder / "records"))
            self.progress(f"{label}: {count} objects and links made, {seconds:.0f} s")

        self.progress(f"{label}: {self.make}")
        try:
            command = redirect(self.make, self.tools, shims)
            run_build(command, self.path, environment, folder / "build.log", tell, self.enter)
        finally:
            phase.unlink(missing_ok=True)

    def fresh(self, origin: Path) -> None:
        """Make the tree anew, as a copy.

        Raises:
            ForgeError: there is no room.
        """
        self.set_state("")
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir()
        copy_tree(origin, self.path)

    def set_state(self, name: str) -> None:
        """Note which build the tree is in the state of; empty: of none."""
        (self.base / "state").write_text(name)

    def state(self) -> str:
        """Which build the tree is in the state of; empty: of none."""
        note = self.base / "state"
        return note.read_text() if note.exists() and self.path.is_dir() else ""
