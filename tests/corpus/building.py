"""Gets a case ready: its vulnerable source, the fix as a patch file, and the plain build that runs as production.

All of it lies in ``.cache/corpus`` (git-ignored) and is used again while the definition of the case stays the same.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts import debsource
from tests.corpus.cases import HOSTS, Case, HostProgram, Patched

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "corpus"

CODE = (".c", ".h", ".cc", ".cpp", ".hpp")


class BuildError(Exception):
    """A package could not be built; the message has the end of the compiler's output."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case on disk."""

    source: Path
    """The vulnerable source, never built."""
    fix: Path
    """The code part of the fix, for -p1."""
    tree: Path
    """A copy of the source that was built plainly: the production system."""
    image: Path
    """The binary that runs, in ``tree``."""


def prepare(case: Case, cache: Path = CACHE) -> Prepared:
    """Fetch, unfix and build a case, or find it in the cache.

    Raises:
        BuildError: the build command failed.
        debsource.SourceError: the source, or one of its patches, is not to be had.
    """
    folder = cache / case.name
    ready = Prepared(
        folder / "source", folder / "fix.patch", folder / "production", folder / "production" / case.package.image
    )
    with _made_once(folder / "ready", repr((case.package, case.patches))) as needed:
        if needed:
            for path in (ready.source, ready.tree):
                shutil.rmtree(path, ignore_errors=True)
            package = debsource.fetch(case.package.name, version=case.package.version, log=_say)
            package.copy(ready.source, without=case.patches)
            _write_fix(case, package, ready)
            shutil.copytree(ready.source, ready.tree, symlinks=True)
            build(case, ready.tree)
    if isinstance(case.expected, Patched) and case.expected.host is not None:
        host = case.expected.host
        texts = [path.read_text() for path in (HOSTS / "host.h", HOSTS / host.source, folder / "ready")]
        with _made_once(folder / "host.ready", repr((host, texts))) as needed:
            if needed:
                _build_host(host, ready.tree, folder / "host")
    return ready


def build_fixed(case: Case, ready: Prepared) -> Path:
    """Build the source with the fix, as the next restart would have it; a host program stands beside the tree again."""
    folder = ready.tree.parent / "fixed"
    tree = folder / "production"
    with _made_once(folder / "ready", (ready.tree.parent / "ready").read_text()) as needed:
        if needed:
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(ready.source, tree, symlinks=True)
            debsource.apply_patch(tree, ready.fix)
            build(case, tree)
    host = ready.tree.parent / "host"
    if host.exists():
        shutil.copy2(host, folder / "host")
    return tree


@contextlib.contextmanager
def _made_once(stamp: Path, state: str) -> Iterator[bool]:
    """Tells whether something is to be made (anew). When that went well, it need not be while the state is the same."""
    digest = hashlib.sha256(state.encode()).hexdigest()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    needed = not stamp.exists() or stamp.read_text() != digest
    if needed:
        stamp.unlink(missing_ok=True)
    yield needed
    stamp.write_text(digest)


def build(case: Case, tree: Path) -> None:
    """Run the build command of a case in a tree.

    Raises:
        BuildError: it failed, or made no image.
    """
    _say(f"building {tree}")
    _run(["sh", "-ec", case.package.make], tree, f"{case.name}: {case.package.make}")
    if not (tree / case.package.image).is_file():
        raise BuildError(f"{case.name}: the build made no {case.package.image}")


def _write_fix(case: Case, package: debsource.SourcePackage, ready: Prepared) -> None:
    """Write the fix as one patch of code alone, without tests, documents and the changelog.

    One Debian patch is taken as it is. Several that stand on each other (and on others in between) become the
    difference between the source with all of them and without.
    """
    if len(case.patches) == 1:
        patch = package.patch(case.patches[0]).read_bytes()
        ready.fix.write_bytes(code_of(patch.decode("latin-1")).encode("latin-1"))
        if debsource.fits(ready.source, ready.fix):
            return
    ready.fix.write_bytes(b"".join(_differences(ready.source, package.tree)))


def code_of(patch: str) -> str:
    """Those files of a unified diff that hold code of the program itself, without what stands before each."""
    kept = []
    for old, new, body in _files_of(patch):
        path = (old if new == "/dev/null" else new).partition("/")[2]
        folders = Path(path).parts[:-1]
        if Path(path).suffix in CODE and not {"test", "tests", "fuzz", "t"} & set(folders):
            kept.append(f"--- {old}\n+++ {new}\n{body}")
    return "".join(kept)


def _files_of(patch: str) -> Iterator[tuple[str, str, str]]:
    """The files of a unified diff as (old name, new name, hunks).

    The lines of hunks are counted: one that is removed may look like the head of a file.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+$", patch)  # code may have other line ends, as a form feed
    at = 0
    while at + 1 < len(lines):
        if not (lines[at].startswith("--- ") and lines[at + 1].startswith("+++ ")):
            at += 1
            continue
        old, new = (line[4:].split("\t")[0].split("\n")[0].rstrip() for line in lines[at : at + 2])
        start = at = at + 2
        while at < len(lines) and (hunk := re.match(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@", lines[at])):
            before, after = (1 if count is None else int(count) for count in hunk.groups())
            at += 1
            while before > 0 or after > 0 or (at < len(lines) and lines[at].startswith("\\")):
                before -= lines[at][0] in " -\n"
                after -= lines[at][0] in " +\n"
                at += 1
        yield old, new, "".join(lines[start:at])


def _differences(left: Path, right: Path) -> Iterator[bytes]:
    """A unified diff of the code files of two trees, in a fixed order and without times."""
    for path in sorted(path for path in right.rglob("*") if path.suffix in CODE and path.is_file()):
        name = path.relative_to(right)
        other = left / name
        same = other.exists() and filecmp.cmp(path, other, shallow=False)
        if same or {"debian", "test", "tests", ".pc"} & set(name.parts[:-1]):
            continue
        labels = ["--label", f"a/{name}" if other.exists() else "/dev/null", "--label", f"b/{name}"]
        command = ["diff", "-u", *labels, str(other) if other.exists() else "/dev/null", str(path)]
        yield subprocess.run(command, check=False, capture_output=True).stdout


def _build_host(host: HostProgram, tree: Path, program: Path) -> None:
    compiler = "g++" if host.source.endswith(".cpp") else "gcc"
    libraries = [str(tree / name) for name in host.libraries]
    flags = ["-O1", "-g", f"-I{HOSTS}", f"-I{tree / host.include}", "-DTIXML_USE_STL"]
    _run([compiler, *flags, str(HOSTS / host.source), "-o", str(program), *libraries], tree, host.source)


def _run(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise BuildError(
            f"{what} failed in {folder} (its Debian packages stand in scripts/apt-packages.txt):\n{done.stdout[-3000:]}"
        )


def _say(line: str) -> None:
    print(f"corpus: {line}", file=sys.stderr, flush=True)
