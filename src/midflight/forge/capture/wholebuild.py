"""Capture of a whole build: every image that it makes, and which of them are the files that run.

Both builds run whole and from a fresh tree: a package's own rules keep stamps of what is done, run generators and build
several flavours in one folder, and nothing is assumed about any of that. What makes the second build fast is that
equal compilations are not run again (reuse.py). All of it is in one folder, see buildtree.py.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midflight.errors import ForgeError, ImageError, Refused
from midflight.forge.capture.builds import (
    Captured,
    LinkRecord,
    NotCaptured,
    Records,
    keep_image,
    read_dependencies,
    read_records,
    resolve_link,
)
from midflight.forge.capture.buildtree import BuildTree, build_key, checked_source, locked, without_caches
from midflight.forge.capture.capture import changed_objects
from midflight.forge.capture.run import Progress, run_build
from midflight.forge.capture.shims import make_exec_hook, make_shims
from midflight.forge.capture.source import Fix, files_of, fingerprint
from midflight.forge.difference.lines import SOURCES
from midflight.forge.matching.place import Place
from midflight.forge.model import BuildPair
from midflight.image.elf import ElfFile

_HEADERS = frozenset({".h", ".hh", ".hpp", ".hxx", ".inc", ".tcc", ""})
_EXACT = 5
"""The score of a link that made exactly such a file."""


@dataclass(frozen=True, slots=True)
class Running:
    """A file that runs."""

    file: Path
    name: str
    """What people call it, "/usr/lib/x86_64-linux-gnu/libexpat.so.1.8.10"."""


@dataclass(frozen=True, slots=True)
class WholeBuild:
    """How a source is built, see ``packages.model.Recipe``."""

    source: Path
    command: str
    environment: Mapping[str, str]
    identity: str
    place: Place = field(default_factory=Place)


@dataclass(frozen=True, slots=True)
class ImagePair:
    """One file that runs, and the builds of it; several where one source builds it in several ways."""

    running: Running
    candidates: tuple[BuildPair, ...]
    """Likeliest first; never empty."""


@dataclass(frozen=True, slots=True)
class Images:
    """What a fix does to the files that run."""

    changed: tuple[ImagePair, ...]
    same: tuple[Running, ...]
    """Files that the build makes and the fix leaves as they are."""
    unknown: tuple[Running, ...]
    """Files that no link of the build makes."""
    others: tuple[str, ...]
    """Sources whose objects changed and are in no file that runs."""


def build_images(
    build: WholeBuild, fix: Fix, running: Sequence[Running], plain: bool, work: Path, progress: Progress
) -> Images:
    """Build without and with a fix, and tell what of the files that run changed.

    Args:
        running: the files that were shipped.
        plain: match against a plain build of the source instead, file by file.
        work: folder for work and cache.

    Raises:
        InputError: the source is no folder.
        ForgeError: a build failed, its compilers could not be captured, or it makes none of the files.
        Refused: an image is built with link-time optimisation (MF101), or the fix changes an object that no recorded
            compiler made (MF105).
    """
    source = checked_source(build.source, work)
    tools = build.place.tools(build.environment.get("PATH", os.defpath))
    content, newest = fingerprint(source)
    names = sorted(item.name for item in running)
    settings = [f"{name}={value}" for name, value in sorted(build.environment.items())]
    key = build_key(["whole", content, build.command, build.identity, *settings, *names], tools)
    environment = without_caches({"SOURCE_DATE_EPOCH": str(newest), **build.environment})
    work.mkdir(parents=True, exist_ok=True)
    with locked(work.resolve() / key, progress) as base:
        (base / "whole").touch()
        tree = BuildTree(base, build.command, tools, environment, progress, build.place.enter(base))
        return _Whole(tree, source, running, build.place).images(fix, plain)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What tells one linked file from another."""

    soname: str | None
    needed: tuple[str, ...]
    exports: frozenset[str]
    imports: frozenset[str]
    code: int
    """Bytes of code."""

    @classmethod
    def of(cls, path: Path) -> _Facts | None:
        """The facts of a file; None when it is no program or library."""
        try:
            with ElfFile.open(path) as elf:
                symbols = elf.dynamic_symbols()
                return cls(
                    elf.soname,
                    elf.needed,
                    frozenset(s.name for s in symbols if s.name and s.defined),
                    frozenset(s.name for s in symbols if s.name and not s.defined),
                    sum(segment.file_size for segment in elf.segments if segment.executable),
                )
        except ImageError:
            return None


def likeness(run: _Facts, made: _Facts, same_name: bool) -> tuple[int, float] | None:
    """How alike a file that runs and a linked one are, to be sorted by; None: it cannot be that one."""
    if run.soname != made.soname or (run.exports != made.exports and not same_name):
        return None
    score = 2 * (run.exports == made.exports) + (run.imports == made.imports) + (run.needed == made.needed) + same_name
    return score, -abs(made.code - run.code) / max(run.code, 1)


@dataclass(frozen=True, slots=True)
class _Whole:
    """The builds in one locked folder."""

    builds: BuildTree
    source: Path
    running: Sequence[Running]
    place: Place

    def images(self, fix: Fix, plain: bool) -> Images:
        base = self.builds.base
        self._before()
        running = self._plain_files() if plain else self.running
        earlier = read_records(base / "pre")
        name = "post-" + fix.digest()[:24]
        if (base / name / "complete").exists():
            self.builds.progress("post: taken from the cache")
        else:
            self._post_build(name, fix)
        return self._compare(earlier, read_records(base / name), name, running)

    # --- the builds --------------------------------------------------------------------------------------------------

    def _before(self) -> None:
        """Make sure that the pre build exists."""
        base = self.builds.base
        if self.builds.complete:
            self.builds.progress("pre: taken from the cache")
            return
        for left in base.iterdir():
            if left.name != "whole":
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        shims = make_shims(base, self.builds.tools, self.place.python(os.path.realpath(sys.executable)))
        try:
            self._pre_build(strangers=False)
        except NotCaptured as error:
            if make_exec_hook(shims, self.builds.tools, self.builds.enter) is None:
                raise
            self.builds.progress(
                f"pre: {str(error).partition(';')[0]}; building again with a watch on programs run by full path"
            )
            shutil.rmtree(base / "pre")
            self._pre_build(strangers=True)
        self._keep_sources("pre")
        self.builds.complete_with(self.builds.environment["SOURCE_DATE_EPOCH"])

    def _keep_sources(self, name: str) -> None:
        """Keep the files that the compilers read, as they were in this build: the tree goes on to the next one.

        They are needed when objects are compared, which may be at any later time. Links will do, since every build
        begins with a tree of new files.
        """
        base = self.builds.base
        kept: set[Path] = set()
        for record in read_records(base / name).objects:
            listed = record.dependencies
            read = read_dependencies(listed, record.made.directory) if listed is not None else ()
            kept |= {file for file in (record.made.source, *read) if file.is_relative_to(self.builds.path)}
        for file in kept:
            copy = base / name / SOURCES / file.relative_to("/")
            if file.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                os.link(file.resolve(), copy)

    def _pre_build(self, strangers: bool) -> None:
        self.builds.fresh(self.source)
        self.builds.build("pre")
        records = read_records(self.builds.base / "pre")
        links = self._links(records, self.running)
        for candidates in links.values():
            for link in candidates:
                resolve_link(records, link, self.builds.path, Path("unused"), strangers)
        if not links:
            if not records.objects:
                raise NotCaptured("no compiler was seen at work; see that the build really compiles")
            made = ", ".join(sorted({link.path.name for link in records.links if not link.relocatable})[:8])
            wanted = ", ".join(sorted({Path(item.name).name for item in self.running})[:8])
            raise ForgeError(
                f"the build made none of {wanted}; it linked {made or 'nothing'}; is it the same package and version?"
            )
        self._prune(records, (link for candidates in links.values() for link in candidates))

    def _post_build(self, name: str, fix: Fix) -> None:
        base = self.builds.base
        folder = base / name
        shutil.rmtree(folder, ignore_errors=True)
        reuse = base / "reuse"
        reuse.unlink(missing_ok=True)
        try:
            self.builds.fresh(self.source)
            present = {relative for relative, _ in files_of(self.source)}
            fix.apply(self.builds.path)
            changed_set = {r for r, change in fix.changes.items() if (r in present) == (change.content is None)}
            if not any(Path(relative).suffix in _HEADERS for relative in changed_set):
                # A header that comes or goes may be found in place of another.
                reuse.symlink_to("pre")
            self.builds.build(name)
            records = read_records(folder)
            anew = sum(record.made.saved.is_relative_to(folder) for record in records.objects)
            self.builds.progress(f"post: {anew} of {len(records.objects)} objects compiled anew")
            self._keep_sources(name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(self.builds.path, ignore_errors=True)
            raise
        finally:
            reuse.unlink(missing_ok=True)
        (folder / "complete").touch()

    def _plain_files(self) -> list[Running]:
        """The files as a build without any added flag makes them, each under the name of the shipped one."""
        base = self.builds.base
        folder = base / "plain"
        if (folder / "complete").exists():
            self.builds.progress("plain: taken from the cache")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            links = self._links(read_records(base / "pre"), self.running)
            self.builds.fresh(self.source)
            self.builds.progress(f"plain: {self.builds.make}")
            run_build(
                self.builds.make,
                self.builds.path,
                self.builds.environment,
                base / "plain.log",
                lambda s: self.builds.progress(f"plain: {s:.0f} s"),
                self.builds.enter,
            )
            for number, item in enumerate(self.running):
                if item in links and links[item][0].path.is_file():
                    (folder / str(number)).mkdir()
                    shutil.copy2(links[item][0].path, folder / str(number) / Path(item.name).name)
            (folder / "complete").touch()
        files = [(folder / str(number) / Path(item.name).name, item) for number, item in enumerate(self.running)]
        return [Running(file, item.name) for file, item in files if file.exists()]

    # --- images ------------------------------------------------------------------------------------------------------

    def _links(self, records: Records, running: Iterable[Running]) -> dict[Running, list[LinkRecord]]:
        """The links that may have made each file, likeliest first; files without any are left out."""
        made = []
        for link in records.links:
            if not link.relocatable and link.saved is not None and link.saved.exists():
                facts = _Facts.of(link.saved)
                if facts is not None:
                    made.append((link, facts))
        result: dict[Running, list[LinkRecord]] = {}
        for item in running:
            run = _Facts.of(item.file)
            if run is None:
                continue
            rated = []
            for link, facts in made:
                rate = likeness(run, facts, link.path.name.removeprefix("lt-") == Path(item.name).name)
                if rate is not None:
                    rated.append((rate, link))
            rated.sort(key=lambda pair: pair[0], reverse=True)
            best = [pair for pair in rated if pair[0][0] == rated[0][0][0]]
            # The same file linked again (by "make install", say) is no other candidate: the last one counts.
            unique = {pair[1].sha256: pair[1] for pair in best}
            if unique:
                result[item] = list(unique.values())
        return result

    def _prune(self, records: Records, keep: Iterable[LinkRecord]) -> None:
        """Delete our copies of all images but these: test programs are many and large."""
        kept = {link.saved for link in keep}
        for link in records.links:
            if link.saved is not None and link.saved not in kept:
                link.saved.unlink(missing_ok=True)

    def _compare(self, earlier: Records, later: Records, name: str, running: Sequence[Running]) -> Images:
        links = self._links(earlier, running)
        changed: list[ImagePair] = []
        same: list[Running] = []
        used: set[Path] = set()
        kept: list[LinkRecord] = []
        for item in running:
            pairs = []
            for number, link in enumerate(links.get(item, ())):
                turn = f"{running.index(item)}.{number}"
                pre = self._resolved("pre", earlier, link, turn)
                used |= set(pre.build.inputs)
                after = _same_link(link, earlier, later)
                if after is None:
                    continue
                post = self._resolved(name, later, after, turn)
                used |= set(post.build.inputs)
                _same_foreign(pre, post, item.name)
                objects = changed_objects(pre, post)
                if objects:
                    keep_image(link, pre.build.image)
                    keep_image(after, post.build.image)
                    kept.append(after)
                    pairs.append(BuildPair(self.builds.path, None, pre.build, post.build, objects))
            if pairs:
                changed.append(ImagePair(item, tuple(pairs)))
                self.builds.progress(f"{Path(item.name).name}: {len(pairs[0].changed)} objects changed")
            elif item in links:
                same.append(item)
        self._prune(later, kept)
        others = self._others(earlier, later, used)
        return Images(tuple(changed), tuple(same), tuple(r for r in running if r not in links), others)

    def _resolved(self, phase: str, records: Records, link: LinkRecord, number: str) -> Captured:
        copy = self.builds.base / phase / "image" / number / link.path.name
        return resolve_link(records, link, self.builds.path, copy)

    def _others(self, earlier: Records, later: Records, used: set[Path]) -> tuple[str, ...]:
        """Sources that came out differently, and are in no file that runs."""
        before = {record.made.path: record.made.sha256 for record in earlier.objects}
        found = dict.fromkeys(
            os.path.relpath(record.made.source, self.builds.path)
            for record in later.objects
            if record.made.path not in used and before.get(record.made.path) != record.made.sha256
        )
        return tuple(found)


def _same_link(link: LinkRecord, earlier: Records, later: Records) -> LinkRecord | None:
    """The link of the later build that is this one: the same output, and the same turn where there are several."""
    before = [other for other in earlier.links if other.path == link.path and not other.relocatable]
    after = [other for other in later.links if other.path == link.path and not other.relocatable]
    turn = before.index(link) - len(before)
    return after[turn] if -turn <= len(after) else None


def _same_foreign(pre: Captured, post: Captured, image: str) -> None:
    for name in sorted(pre.foreign.keys() | post.foreign.keys()):
        if pre.foreign.get(name) != post.foreign.get(name):
            raise Refused(
                f"MF105 {name}: the fix changes this object of {image}, which no recorded compiler made; "
                "let it be compiled by a compiler from the PATH, or plan a restart"
            )
