"""Debian as a package source: dpkg and apt behind the Protocol of ``model.py``."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from midflight.errors import InputError
from midflight.forge.matching.place import Place
from midflight.forge.packages import dependencies, fixes
from midflight.forge.packages.apt import ADMIN, Apt, Log, SourceError, codename, locked, need_tools, private_apt, run
from midflight.forge.packages.buildroot import make_root
from midflight.forge.packages.changelog import cut, cves_in, read_changelog
from midflight.forge.packages.model import FixedSource, Package, Recipe, Shipped
from midflight.forge.packages.names import Names, installed_packages
from midflight.forge.packages.patching import PatchError, fits, revert_patch, series
from midflight.forge.packages.reconstruct import Source, exact_source
from midflight.forge.packages.shipped import none_shipped, shipped_files
from midflight.forge.packages.sources import SourcePackage, fetch_exactly
from midflight.forge.packages.versions import compare, file_name, upstream, version_key


@dataclass(slots=True)
class Debian:
    """The configured Debian archives and the installed packages; implements ``PackageSource``.

    Everything fetched and unpacked is kept below ``cache``.
    """

    cache: Path
    log: Log
    etc: Path = Path("/etc/apt")
    admin: Path = ADMIN
    """dpkg's database."""
    build_root: Path | None = None
    """A private root, in which packages are built; None: they are built on this machine."""
    notes: list[str] = field(default_factory=list, init=False)
    _apt: Apt | None = field(default=None, init=False)

    @property
    def apt(self) -> Apt:
        """The private apt, set up at first use."""
        if self._apt is None:
            self._apt = private_apt(self.cache, self.etc, self.log, self.admin)
        return self._apt

    def _note(self, text: str) -> None:
        """Say something now, and again when all is done."""
        self.log(text)
        self.notes.append(text)

    def resolve(self, name: str, version: str | None) -> Package:
        """See ``PackageSource``."""
        architecture = run(["dpkg", "--print-architecture"]).stdout.strip()
        package = Names(self.apt, installed_packages(self.admin), architecture).resolve(name, version)
        if version is None and not package.installed:
            package = self._with_source(name, package)
        return package

    def _with_source(self, name: str, newest: Package) -> Package:
        """The newest version whose source the archive really has, when nothing is installed that would decide it."""
        listed = [stanza["Version"] for stanza in self.apt.sources(newest.name)]
        for version in [newest.version, *(v for v in listed if compare(v, newest.version) < 0)]:
            try:
                fetch_exactly(self.apt, self.cache, newest.name, version, self.log)
            except SourceError as error:
                self._note(f"{error}, although its binary packages are there; taking the next version")
                continue
            return newest if version == newest.version else self.resolve(name, version)
        return newest

    # --- source and fix ----------------------------------------------------------------------------------------------

    def fixed_source(self, package: Package, what: str) -> FixedSource:
        """See ``PackageSource``."""
        source = exact_source(self.apt, self.cache, package.name, package.version, self.log)
        self.notes += source.notes
        fixed = self._fixed(package, source, what)
        return replace(fixed, made_from=source.base.version) if source.reconstructed else fixed

    def _fixed(self, package: Package, source: Source, what: str) -> FixedSource:
        if what.startswith("="):
            return self._difference(package, source, what[1:])
        cve = re.fullmatch(r"(?i)CVE-\d{4}-\d{4,}", what)
        if cve is not None:
            return self._cve(package, source, what.upper())
        path = Path(what)
        if not path.exists():
            raise InputError(f"--fix {what} is no file, no folder, no CVE id and no =VERSION; give one of these")
        named = cves_in(path.name) if path.is_dir() else cves_in(path.read_text(errors="replace"))
        tree = self._tree(package, source, source.patches)
        if path.is_file() and not fits(tree, path) and fits(tree, path, reverse=True):
            return self._reverted(package, tree, path, tuple(sorted(named)))
        return FixedSource(tree, path, path.name, tuple(sorted(named)))

    def _reverted(self, package: Package, tree: Path, patch: Path, cves: tuple[str, ...]) -> FixedSource:
        """The source of the version carries what a patch file changes: what it was without that."""
        self.log(f"{package} has {patch.name} already; taking it out of the source")
        with self._made(tree.parent / f"without-{_digest(patch.read_text(errors='replace'))}") as (folder, needed):
            if needed:
                shutil.copytree(tree, folder / "tree", symlinks=True)
                revert_patch(folder / "tree", patch)
        return FixedSource(folder / "tree", tree, f"{patch.name} (in {package.version})", cves, present=True)

    def _cve(self, package: Package, source: Source, cve: str) -> FixedSource:
        own = tuple(name for name in fixes.patches_of(source.base, cve) if name in source.patches)
        if own:
            return self._taken_out(package, source, cve, own)
        for newer in self._newer_sources(source):
            wanted = fixes.patches_of(newer, cve)
            if not wanted and (entry := fixes.mentioned(newer, cve)) is not None:
                wanted = fixes.came_with(newer, entry)
                if wanted:
                    self._note(f"no patch names {cve}; taking all that came with {entry.version}: {', '.join(wanted)}")
            if wanted:
                return self._put_in(package, source, cve, newer, wanted)
        raise self._not_found(source, cve)

    def _taken_out(self, package: Package, source: Source, cve: str, own: Sequence[str]) -> FixedSource:
        """The source of the version carries the patches: what it was without them."""
        self.log(f"{package} has the fix of {cve} already ({', '.join(own)}); taking it out of the source")
        out = list(own)
        while True:
            try:
                tree = self._tree(package, source, [name for name in source.patches if name not in out])
                break
            except PatchError as error:
                later = str(error.patch.relative_to(source.base.patches))
                self._note(f"{later} stands on the fix of {cve}, and goes along with it")
                out.append(later)
        label = f"{cve} ({', '.join(own)} of {package.version})"
        return FixedSource(tree, self._tree(package, source, source.patches), label, (cve,), present=True)

    def _put_in(
        self, package: Package, source: Source, cve: str, newer: SourcePackage, wanted: Sequence[str]
    ) -> FixedSource:
        tree = self._tree(package, source, source.patches)
        with self._made(tree.parent / f"fixed-{_digest(newer.version, *wanted)}") as (folder, needed):
            if needed:
                applied = fixes.with_patches(tree, folder / "tree", newer, wanted, source.patches)
                (folder / "applied").write_text("\n".join(applied))
            applied = tuple((folder / "applied").read_text().splitlines())
        others = [name for name in applied if name not in wanted]
        if others:
            self._note(f"{cve} stands on {len(others)} other patches, which go along: {', '.join(others)}")
        more = {other for name in others for other in cves_in(name)}
        label = f"{cve} ({', '.join(applied)} of {newer.version})"
        return FixedSource(tree, folder / "tree", label, tuple(sorted({cve, *more})))

    def _newer_sources(self, source: Source) -> Iterator[SourcePackage]:
        """Sources of newer versions, nearest first, as far as they can be had."""
        if source.reconstructed:
            yield source.base
        listed = {stanza["Version"] for stanza in self.apt.sources(source.base.name)}
        for version in sorted(listed, key=version_key):
            if compare(version, source.version) > 0 and version != source.base.version:
                try:
                    yield fetch_exactly(self.apt, self.cache, source.base.name, version, self.log)
                except SourceError as error:
                    self.log(f"cannot look for the fix in it: {error}")

    def _not_found(self, source: Source, cve: str) -> InputError:
        name = source.base.name
        for newer in (source.base, *self._newer_sources(source)):
            entry = fixes.mentioned(newer, cve)
            if entry is not None and upstream(entry.version) != upstream(source.version):
                return InputError(
                    f"{cve} is fixed in {name} {entry.version} by a new upstream version, not by a patch; give a "
                    f"patch with --fix FILE, or --fix ={newer.version} for all of the difference"
                )
            if entry is not None:
                return InputError(
                    f"the changelog of {name} {entry.version} names {cve}, but none of its patches can be told to be "
                    "that fix; give one with --fix FILE"
                )
        return InputError(
            f"no patch and no changelog entry of {name} that can be had names {cve}; is it a fix of this package? "
            "Otherwise give the patch with --fix FILE"
        )

    def _difference(self, package: Package, source: Source, version: str) -> FixedSource:
        if compare(version, package.version) <= 0:
            raise InputError(f"--fix ={version} is not newer than {package}; give a newer version")
        try:
            newer = fetch_exactly(self.apt, self.cache, package.name, version, self.log)
        except SourceError as error:
            listed = {stanza["Version"] for stanza in self.apt.sources(package.name)} - {version}
            others = [f"={v}" for v in sorted(listed, key=version_key) if compare(v, package.version) > 0]
            offer = f"the index has {', '.join(others)}, too" if others else "there is no other newer one"
            raise SourceError(f"{error}; {offer}; or give a patch with --fix FILE") from None
        tree = self._tree(package, source, source.patches)
        with self._made(tree.parent / f"fixed-{_digest(version)}") as (folder, needed):
            if needed:
                newer.copy(folder / "tree")
                # The version number in the changelog is no fix, and rules and lists of files do not run.
                shutil.rmtree(folder / "tree" / "debian")
                shutil.copytree(tree / "debian", folder / "tree" / "debian", symlinks=True)
        entries = read_changelog(newer.tree / "debian" / "changelog")
        cves = {cve for entry in entries if compare(entry.version, package.version) > 0 for cve in entry.cves}
        return FixedSource(tree, folder / "tree", f"the difference to {version}", tuple(sorted(cves)))

    def _tree(self, package: Package, source: Source, patches: Sequence[str]) -> Path:
        """A tree of our own with just these patches, and with the changelog of the package's version."""
        name = f"{file_name(package.version)}-{_digest(source.base.version, str(package.rebuild), *patches)}"
        with self._made(self.cache.resolve() / "trees" / package.name / name) as (folder, needed):
            if needed:
                tree = folder / "tree"
                if list(patches) == series(source.base.patches):
                    source.base.copy(tree)
                else:
                    source.base.build_up(tree, patches)
                    shutil.rmtree(tree / ".pc", ignore_errors=True)
                if (tree / "debian" / "patches" / "series").exists():
                    # They are applied; dpkg-source must not try again.
                    (tree / "debian" / "patches" / "series").write_text("")
                cut(tree / "debian" / "changelog", package.version, package.rebuild)
        return folder / "tree"

    @contextmanager
    def _made(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        """A folder that is made once: yields whether it is to be filled; gone again when that fails."""
        with locked(self.cache.resolve() / "trees.lock"):
            needed = not (folder / "complete").exists()
            if needed:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            try:
                yield folder, needed
                (folder / "complete").touch()
            except BaseException:
                if needed:
                    shutil.rmtree(folder, ignore_errors=True)
                raise

    # --- build -------------------------------------------------------------------------------------------------------

    def missing_dependencies(self, tree: Path) -> tuple[str, ...]:
        """See ``PackageSource``."""
        need_tools(("dpkg-buildpackage", "dpkg-dev"))
        root = self.build_root
        if root is not None:
            make_root(root, self.apt, codename(), self.log)
        return dependencies.plan(self.apt, tree, root) if dependencies.unmet(tree, root) else ()

    def install_dependencies(self, tree: Path) -> None:
        """See ``PackageSource``."""
        dependencies.install(self.apt, tree, self._note, self.build_root)

    def recipe(self, tree: Path, jobs: int) -> Recipe:
        """See ``PackageSource``."""
        profiles = dependencies.PROFILES
        entries = read_changelog(tree / "debian" / "changelog")
        return Recipe(
            f"dpkg-buildpackage -us -uc -B -d -P{profiles} -j{jobs} --rules-target=build-arch",
            {
                "DEB_BUILD_OPTIONS": f"nocheck nodoc parallel={jobs}",
                "DEB_BUILD_PROFILES": profiles.replace(",", " "),
                "SOURCE_DATE_EPOCH": str(entries[0].time),
                "LC_ALL": "C.UTF-8",
                "HOME": "/nonexistent",
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            },
            dependencies.installed_closure(
                tree, (self.build_root / "var/lib/dpkg" if self.build_root else self.admin) / "status"
            ),
            Place(self.build_root),
        )

    def shipped(self, package: Package) -> tuple[Shipped, ...]:
        """See ``PackageSource``."""
        files = shipped_files(package, self.apt, self.cache, self.log, self.admin)
        if not files:
            raise none_shipped(package)
        return files


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
