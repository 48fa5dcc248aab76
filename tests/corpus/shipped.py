"""Gets a case ready whose image is the very file that Debian ships: that file, and the fix as the forge is given it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from midflight.forge.packages.debian import Debian
from midflight.forge.packages.patching import apply_patch
from midflight.forge.packages.sources import SourcePackage, fetch
from tests.corpus.building import CACHE, HOSTS, Prepared, build_host, code_of, differences, made_once, say
from tests.corpus.model import Edit, Files, Patched, Patches, Shipped, ShippedCase, Subject

PACKAGES = CACHE / "forge" / "packages"
"""Where midflight build --debian keeps its downloads, too."""


class MissingError(Exception):
    """The archive has not what a case needs; the message says what."""


def prepare_shipped(case: ShippedCase, cache: Path = CACHE) -> Prepared:
    """Fetch what runs, make the patch file of the fix, and the host program.

    Raises:
        MissingError: the binary package has no such image, or an edit does not fit.
        BuildError: the host program cannot be compiled.
        ForgeError: the archive has no such package or version.
    """
    package, own = case.package, cache / case.package.name / f"shipped-{case.cve}"
    own.mkdir(parents=True, exist_ok=True)
    image = shipped_image(package)
    fix = case.fix if isinstance(case.fix, str) else _patch_file(case, own / "fix.patch")
    program = None
    if isinstance(case.expected, Patched) and case.expected.host is not None:
        host, program = case.expected.host, own / "host"
        texts = [path.read_text() for path in (HOSTS / "host.h", HOSTS / host.source)]
        with made_once(own / "host.ready", repr((host, texts))) as needed:
            if needed:
                build_host(host, HOSTS, program)
    words: tuple[str | Path, ...] = ("--debian", f"{package.binary}={package.version}", "--fix", fix)
    if package.private:
        words = (*words, "--build-root", cache / "root")
    if package.make:
        words = ("--source", _source(package.name, package.version).tree, "--fix", fix, "--make", package.make)
        words = (*words, "--image", package.built, "--running", image)
    return Prepared(words, Subject(image, program))


def shipped_image(package: Shipped) -> Path:
    """The image as it was shipped, from the installed package of that version or from the archive.

    Raises:
        MissingError: the package has no such file.
    """
    debian = Debian(PACKAGES, say)
    found = debian.shipped(debian.resolve(package.binary, package.version))
    for item in found:
        if item.package == package.binary and package.image in (item.file.name, Path(item.name).name):
            return item.file
    names = ", ".join(Path(item.name).name for item in found if item.package == package.binary)
    raise MissingError(f"{package.binary} {package.version} has no {package.image}; it has {names}")


def _source(name: str, version: str) -> SourcePackage:
    found = fetch(name, PACKAGES, version, say)
    if found.version != version:
        raise MissingError(f"the source of {name} {version} is not in the archive; there is {found.version}")
    return found


def _patch_file(case: ShippedCase, patch: Path) -> Path:
    """The fix as one patch (-p1) of code alone for the source of the package."""
    package = case.package
    tree = _source(package.name, package.version).tree
    match case.fix:
        case Patches(names, version):
            newer = _source(package.name, version)
            if version == package.version:  # it is in there already
                texts = [newer.patch(name).read_bytes().decode("latin-1") for name in names]
                patch.write_bytes("".join(map(code_of, texts)).encode("latin-1"))
                return patch
            with tempfile.TemporaryDirectory(dir=patch.parent) as folder:
                fixed = Path(folder) / "fixed"
                shutil.copytree(tree, fixed, symlinks=True)
                for number, name in enumerate(names):
                    part = Path(folder) / f"{number}.patch"
                    whole = newer.patch(name).read_bytes().decode("latin-1")
                    part.write_bytes(code_of(whole).encode("latin-1"))
                    apply_patch(fixed, part, fuzz=2)
                patch.write_bytes(b"".join(differences(tree, fixed)))
        case Files(paths, version):
            newer = _source(package.name, version)
            patch.write_bytes(b"".join(_difference(tree / path, newer.tree / path, path) for path in paths))
        case tuple() as edits:
            patch.write_bytes(b"".join(edited(tree, path, edits) for path in sorted({edit.path for edit in edits})))
    return patch


def edited(tree: Path, path: str, edits: tuple[Edit, ...]) -> bytes:
    """The edits of one file as a patch (-p1).

    Raises:
        MissingError: the file has not exactly once what an edit replaces.
    """
    text = (tree / path).read_text()
    for edit in edits:
        if edit.path == path:
            if text.count(edit.old) != 1:
                raise MissingError(f"{path} has {text.count(edit.old)} times what the edit replaces: {edit.old!r}")
            text = text.replace(edit.old, edit.new)
    with tempfile.NamedTemporaryFile("w", suffix=Path(path).suffix) as file:
        file.write(text)
        file.flush()
        return _difference(tree / path, Path(file.name), path)


def _difference(old: Path, new: Path, name: str) -> bytes:
    command = ["diff", "-u", "--label", f"a/{name}", "--label", f"b/{name}", str(old), str(new)]
    return subprocess.run(command, check=False, capture_output=True).stdout
