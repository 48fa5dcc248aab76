"""Capture: the user's own build, run without and with the fix under the compiler wrapper.

Everything happens in one folder per (source, build command, image, compilers), which is kept as a cache:

    tree/        the copy in which every build runs, so that __FILE__ and DW_AT_comp_dir are equal in all of them
    built/       the tree as it was after the pre build, from which each fix starts
    shims/       the wrapper under the names of all compilers; phase: symbolic link to the build in progress
    plain/       the image of the plain build
    pre/, post-…/  records, copies of objects, the image
    complete     written when the pre build is, with the SOURCE_DATE_EPOCH of it; without this file, the folder is
                 rubbish of a killed run and is removed
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ForgeError, InputError, Refused
from midflight.forge.capture.builds import (
    Captured,
    NotCaptured,
    Records,
    image_file,
    keep_image,
    read_dependencies,
    read_records,
    resolve,
)
from midflight.forge.capture.buildtree import BuildTree, build_key, checked_source, locked, without_caches
from midflight.forge.capture.run import Progress, run_build
from midflight.forge.capture.shims import Tool, find_tools, make_exec_hook, make_shims
from midflight.forge.capture.source import Fix, copy_tree, fingerprint, read_fix
from midflight.forge.model import BuildPair

#: Variables that builds commonly obey, besides all that begin with DEB_: another value is another build.
_OBEYED = """
AR AS CC CFLAGS CMAKE_GENERATOR CMAKE_PREFIX_PATH CPATH CPLUS_INCLUDE_PATH CPP CPPFLAGS CXX CXXFLAGS C_INCLUDE_PATH LD
LDFLAGS LIBRARY_PATH LIBS MAKEFLAGS PATH PKG_CONFIG_PATH SOURCE_DATE_EPOCH
"""


def build_pair(
    source: Path,
    fix: Path,
    make: str,
    image: str,
    work: Path,
    running: Path | None = None,
    progress: Progress = lambda line: None,
    jobs: int | None = None,
) -> BuildPair:
    """Build ``source`` without and with ``fix`` by the command ``make``, and tell what of ``image`` changed.

    Args:
        source: the unfixed source tree; only read.
        fix: a patch file, or a second source tree.
        make: the user's build command, run by ``sh -c`` in a copy of the tree.
        image: path of the image in the tree after the build.
        work: folder for work and cache; what is in it may be deleted at any time when nothing is running.
        running: the binary that really runs, if the user has it; otherwise a plain build is made too.
        progress: is told lines about what is being done.
        jobs: parallel jobs for make and cmake (MAKEFLAGS, CMAKE_BUILD_PARALLEL_LEVEL), where ``make`` says nothing.

    Raises:
        InputError: the source or the fix cannot be used, the fix does not apply.
        ForgeError: a build failed, its compilers could not be captured, or the fix changes nothing of the image.
        Refused: the image is built with link-time optimisation (MF101), or the fix changes an object that no recorded
            compiler made (MF105).
    """
    source = checked_source(source, work)
    image = _checked_image(image, source)
    change = read_fix(source, fix)
    for note in change.notes:
        progress(note)
    tools = find_tools(os.environ.get("PATH", os.defpath))
    content, newest = fingerprint(source)
    key = _key(content, make, image, tools, jobs)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work.resolve() / key, progress) as base:
        # The same date in pre and post, whatever the times of the files are.
        epoch = (base / "complete").read_text() if (base / "complete").exists() else str(newest)
        tree = BuildTree(base, make, tools, _environment(epoch, jobs), progress)
        capture = Capture(tree, source, image)
        plain = capture.before(running is None)
        return capture.after(change, plain)


def _checked_image(image: str, source: Path) -> str:
    path = Path(image)
    if path.is_absolute() and path.is_relative_to(source):
        path = path.relative_to(source)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"--image {image} is no path in the source tree; give it relative to {source}")
    return str(path)


def _key(content: str, make: str, image: str, tools: tuple[Tool, ...], jobs: int | None) -> str:
    obeyed = [f"{n}={os.environ[n]}" for n in sorted(os.environ) if n in _OBEYED.split() or n.startswith("DEB_")]
    words = [content, make, image, str(jobs), *obeyed]
    with contextlib.suppress(OSError):
        # Installed headers and libraries go into the objects as well.
        state = Path("/var/lib/dpkg/status").stat()
        words.append(f"{state.st_size} {state.st_mtime_ns}")
    return build_key(words, tools)


def _environment(epoch: str, jobs: int | None) -> dict[str, str]:
    """The user's environment, with only that added which capture and reproducible objects need."""
    environment = dict(os.environ)
    if "MAKELEVEL" in environment:
        # Run from a Makefile ourselves: its job server is not the build's.
        for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"):
            environment.pop(name, None)
    environment.setdefault("SOURCE_DATE_EPOCH", epoch)
    if jobs is not None:
        environment.setdefault("MAKEFLAGS", f"-j{jobs}")
        environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(jobs))
    return without_caches(environment)


@dataclass(frozen=True, slots=True)
class Capture:
    """The builds of one image."""

    builds: BuildTree
    source: Path
    image: str

    @property
    def base(self) -> Path:
        """The folder of all of it."""
        return self.builds.base

    @property
    def tree(self) -> Path:
        """Where every build runs."""
        return self.builds.path

    def before(self, plain_wanted: bool) -> Path | None:
        """Make sure that the pre build (and, if wanted, the plain one) exists; returns the image of the plain build."""
        if not self.builds.complete:
            self.builds.clear()
        plain = self._plain() if plain_wanted else None
        if self.builds.complete:
            self.builds.progress("pre: taken from the cache")
            return plain
        shims = make_shims(self.base, self.builds.tools)
        try:
            self._pre_build(strangers=False)
        except NotCaptured as error:
            if make_exec_hook(shims, self.builds.tools) is None:
                raise
            self.builds.progress(
                f"pre: {str(error).partition(';')[0]}; building again with a watch on programs run by full path"
            )
            shutil.rmtree(self.base / "pre")
            self._pre_build(strangers=True)
        copy_tree(self.tree, self.base / "built")
        self.builds.complete_with(self.builds.environment["SOURCE_DATE_EPOCH"])
        self.builds.set_state("pre")
        return plain

    def after(self, fix: Fix, plain: Path | None) -> BuildPair:
        """Make sure that the post build exists, and compare."""
        earlier = read_records(self.base / "pre")
        pre = self._resolve("pre", earlier)
        name = "post-" + fix.digest()[:24]
        folder = self.base / name
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                self._post_build(name, fix, earlier, pre)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(self.tree, ignore_errors=True)
                raise
            (folder / "complete").touch()
        else:
            self.builds.progress("post: taken from the cache")
            if not (self.tree / ".").exists() or self.builds.state() != name:
                self._back_to_pre()
                fix.apply(self.tree)
                self.builds.set_state(name)
        later = read_records(folder)
        post = self._resolve(name, later.after(earlier))
        self._same_foreign(pre, post)
        changed = changed_objects(pre, post)
        if not changed:
            raise self._nothing_changed(fix, later, pre)
        self.builds.progress(f"post: {len(changed)} of {len(post.build.inputs)} objects of {self.image} changed")
        return BuildPair(self.tree, plain, pre.build, post.build, changed)

    # --- the three builds --------------------------------------------------------------------------------------------

    def _plain(self) -> Path:
        folder = self.base / "plain"
        copy = folder / Path(self.image).name
        if copy.exists():
            self.builds.progress("plain: taken from the cache")
            return copy
        self.builds.fresh(self.source)
        folder.mkdir(exist_ok=True)
        log = self.base / "plain.log"
        self.builds.progress(f"plain: {self.builds.make}")
        run_build(
            self.builds.make,
            self.tree,
            self.builds.environment,
            log,
            lambda s: self.builds.progress(f"plain: {s:.0f} s"),
        )
        made = image_file(self.tree, self.image, Records((), ()), self.builds.make)
        temporary = folder / ".new"
        shutil.copy2(made, temporary)
        temporary.rename(copy)
        return copy

    def _pre_build(self, strangers: bool) -> None:
        self.builds.fresh(self.source)
        self.builds.build("pre")
        self._resolve("pre", read_records(self.base / "pre"), strangers)

    def _post_build(self, name: str, fix: Fix, earlier: Records, pre: Captured) -> None:
        if self.builds.state() != "pre":
            self._back_to_pre()
        self.builds.set_state("")
        fix.apply(self.tree)
        concerned = {self.tree / relative for relative in fix.changes}
        folder = self.base / name
        folder.mkdir()
        self._touch(folder, pre, [p for p, files in self._read_files(pre).items() if concerned & set(files)])
        self.builds.build(name)
        missed = self._missed(folder, earlier)
        if missed:
            # The build's own dependencies are incomplete (a generated header, say): name the sources to it.
            self._touch(folder, pre, missed)
            self.builds.build(name)
            missed = self._missed(folder, earlier)
        if missed:
            first = os.path.relpath(missed[0], self.tree)
            more = f" (and {len(missed) - 1} more)" if missed[1:] else ""
            raise ForgeError(
                f"the build did not compile {first} again{more}, although a file that it includes was changed "
                "by the fix; use a build command that builds all of it, for example 'make clean; make'"
            )
        self.builds.set_state(name)

    def _resolve(self, name: str, records: Records, strangers: bool = True) -> Captured:
        folder = self.base / name
        copy = folder / "image" / Path(self.image).name
        note = folder / "image.path"
        if note.exists():
            image = Path(os.fsdecode(note.read_bytes()))
            image = image if image.exists() and not copy.exists() else copy
        else:
            image = image_file(self.tree, self.image, records, self.builds.make)
            note.write_bytes(os.fsencode(image))
        captured = resolve(records, image, self.tree, copy, strangers)
        keep_image(captured.link, copy)
        for link in records.links:
            if link.saved is not None and link.saved.is_relative_to(folder) and link.sha256 != captured.link.sha256:
                link.saved.unlink(missing_ok=True)
        return captured

    # --- the tree ----------------------------------------------------------------------------------------------------

    def _back_to_pre(self) -> None:
        self.builds.fresh(self.base / "built")
        self.builds.set_state("pre")

    # --- what the fix concerns ---------------------------------------------------------------------------------------

    def _read_files(self, captured: Captured) -> dict[Path, tuple[Path, ...]]:
        """For each object of the image, the files of the tree that its compiler read."""
        result: dict[Path, tuple[Path, ...]] = {}
        for path in captured.build.inputs:
            made = captured.build.objects[path]
            listed = captured.dependencies.get(path)
            read = read_dependencies(listed, made.directory) if listed is not None else ()
            result[path] = tuple(f for f in dict.fromkeys((made.source, *read)) if f.is_relative_to(self.tree))
        return result

    def _touch(self, folder: Path, captured: Captured, objects: list[Path]) -> None:
        """Make the sources of some objects new, so that any build compiles them again; noted for the shim of make."""
        sources = [captured.build.objects[path].source for path in objects]
        for path in sources:
            with contextlib.suppress(OSError):
                os.utime(path)
        with (folder / "touched").open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{path}\0" for path in sources)

    def _missed(self, folder: Path, earlier: Records) -> list[Path]:
        """Objects of the image that were not compiled again although a file that went into them is another now."""
        later = read_records(folder)
        image = image_file(self.tree, self.image, later.after(earlier), self.builds.make)
        captured = resolve(later.after(earlier), image, self.tree, folder / "image" / Path(self.image).name)
        again = {record.made.saved for record in later.objects}
        different: dict[Path, bool] = {}
        missed = []
        for path, files in self._read_files(captured).items():
            if captured.build.objects[path].saved in again:
                continue
            for file in files:
                if file not in different:
                    different[file] = _differs(file, self.base / "built" / file.relative_to(self.tree))
                if different[file]:
                    missed.append(path)
                    break
        return missed

    def _same_foreign(self, pre: Captured, post: Captured) -> None:
        for name in sorted(pre.foreign.keys() | post.foreign.keys()):
            if pre.foreign.get(name) != post.foreign.get(name):
                raise Refused(
                    f"MF105 {name}: the fix changes this object of {self.image}, which no recorded compiler made; "
                    "let it be compiled by a compiler from the PATH, or plan a restart"
                )

    def _nothing_changed(self, fix: Fix, later: Records, pre: Captured) -> ForgeError:
        files = ", ".join(list(fix.changes)[:5]) + (" ..." if len(fix.changes) > 5 else "")
        others = [r.made for r in later.objects if r.made.path not in pre.build.inputs]
        if others:
            names = ", ".join(os.path.relpath(made.path, self.tree) for made in others[:5])
            return ForgeError(
                f"the fix {fix.name} changes no object of {self.image}, only others ({names}); "
                "name the image into which these are linked as --image"
            )
        return ForgeError(
            f"the fix {fix.name} changes no compiled file of {self.image} (it touches {files}); "
            "is it the right fix, and the right image?"
        )


def _differs(one: Path, other: Path) -> bool:
    try:
        a, b = one.stat(), other.stat()
    except OSError:
        return True
    if a.st_size != b.st_size:
        return True
    return a.st_mtime_ns != b.st_mtime_ns and one.read_bytes() != other.read_bytes()


def changed_objects(pre: Captured, post: Captured) -> tuple[Path, ...]:
    """Objects of the image whose content differs, or that only one side has; in the order of the link."""
    before = {path: pre.build.objects[path].sha256 for path in pre.build.inputs}
    after = {path: post.build.objects[path].sha256 for path in post.build.inputs}
    return tuple(path for path in dict.fromkeys((*after, *before)) if before.get(path) != after.get(path))
