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
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from midflight.forge.packages.patching import fits
from midflight.forge.packages.sources import SourcePackage, fetch
from tests.corpus.model import Case, HostProgram, Patched, Subject

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "corpus"
SOURCES = ROOT / ".cache" / "sources"
HOSTS = Path(__file__).parent / "hosts"

CODE = (".c", ".h", ".cc", ".cpp", ".hpp")


class BuildError(Exception):
    """A package could not be built; the message has the end of the compiler's output."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case on disk."""

    words: tuple[str | Path, ...]
    """For midflight build: the source, the fix, the build command, and the image that runs."""
    subject: Subject
    """The production system: the plain build of the source, or what Debian shipped."""
    instead: str = ""
    """The version that was taken because the one asked for has left the mirror; otherwise empty."""


def prepare(case: Case, cache: Path = CACHE) -> Prepared:
    """Fetch, unfix and build a case, or find it in the cache. Cases of one package share its vulnerable build.

    Raises:
        BuildError: the build command failed.
        SourceError: the source, or one of its patches, is not to be had.
    """
    holes = case.package.holes if set(case.patches) <= set(case.package.holes) else case.patches
    own = cache / case.package.name / case.cve
    base = own.parent / "shared" if len(holes) > 1 and holes == case.package.holes else own
    source, tree = base / "source", base / "production"
    package = fetch(case.package.name, SOURCES, version=case.package.version, log=say)
    with made_once(base / "ready", repr((case.package, holes, package.version))) as needed:
        if needed:
            for path in (source, tree):
                shutil.rmtree(path, ignore_errors=True)
            package.copy(source, without=holes)
            shutil.copytree(source, tree, symlinks=True)
            build(case, tree)
    state = (base / "ready").read_text()
    with made_once(own / "fix.ready", state + repr(case.patches)) as needed:
        if needed:
            _write_fix(case, package, source, holes, own / "fix.patch")
    program = None
    if isinstance(case.expected, Patched) and case.expected.host is not None:
        host, program = case.expected.host, own / "host"
        texts = [path.read_text() for path in (HOSTS / "host.h", HOSTS / host.source)]
        with made_once(own / "host.ready", repr((host, texts, state))) as needed:
            if needed:
                build_host(host, tree, program)
    instead = package.version if package.requested is not None else ""
    image = tree / case.package.image
    words = ("--source", source, "--fix", own / "fix.patch", "--make", case.package.make)
    return Prepared((*words, "--image", case.package.image, "--running", image), Subject(image, program), instead)


@contextlib.contextmanager
def made_once(stamp: Path, state: str) -> Iterator[bool]:
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
    say(f"building {tree}")
    _run(["sh", "-ec", case.package.make], tree, "the build of the vulnerable source")
    if not (tree / case.package.image).is_file():
        raise BuildError(f"{case.name}: the build made no {case.package.image}")
    if case.package.stripped:
        _run(["strip", "--strip-unneeded", case.package.image], tree, "strip")


def _write_fix(case: Case, package: SourcePackage, source: Path, holes: Sequence[str], patch: Path) -> None:
    """Write the fix as one patch of code alone, without tests, documents and the changelog.

    One Debian patch is taken as it is. Several that stand on each other (and on others in between) become the
    difference between the source with all of them and without.
    """
    if len(case.patches) == 1:
        whole = package.patch(case.patches[0]).read_bytes()
        patch.write_bytes(code_of(whole.decode("latin-1")).encode("latin-1"))
        if fits(source, patch):
            return
    with tempfile.TemporaryDirectory(dir=patch.parent) as folder:
        fixed = package.copy(Path(folder) / "fixed", without=[name for name in holes if name not in case.patches])
        patch.write_bytes(b"".join(differences(source, fixed)))


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


def differences(left: Path, right: Path) -> Iterator[bytes]:
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


def build_host(host: HostProgram, tree: Path, program: Path) -> None:
    """Compile a host program.

    Raises:
        BuildError: it cannot be compiled.
    """
    compiler = "g++" if host.source.endswith(".cpp") else "gcc"
    libraries = [str(tree / name) for name in host.libraries]
    flags = ["-O1", "-g", f"-I{HOSTS}", *(f"-I{tree / name}" for name in host.include), "-DTIXML_USE_STL"]
    flags += ["-shared", "-fPIC"] * host.shared
    command = [compiler, *flags, str(HOSTS / host.source), "-o", str(program), *libraries, *host.options]
    _run(command, tree, host.source)


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
            f"{what} failed; its Debian packages stand in scripts/apt-packages.txt\n"
            f"{' '.join(command)}\nin {folder}:\n{done.stdout[-3000:]}"
        )


def say(line: str) -> None:
    print(f"corpus: {line}", file=sys.stderr, flush=True)
