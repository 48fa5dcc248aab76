"""From the name of a package and of a fix to the contents of a hotpatch, through any package source."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from midflight.errors import InputError, Refused
from midflight.forge.capture.run import may_build
from midflight.forge.capture.source import read_fix
from midflight.forge.capture.wholebuild import Images, Running, WholeBuild, build_images
from midflight.forge.forge import ForgeRequest, ForgeResult, Progress, RefusedWithFindings
from midflight.forge.packages.model import FixedSource, Package, PackageSource, Shipped
from midflight.forge.refusals import finding
from midflight.forge.review.assessment import preview
from midflight.forge.review.touched import touched
from midflight.forge.several import forge_images, nothing_to_patch
from midflight.image.elf import ElfFile

PLAIN = "plain"
"""In place of a running binary: a build of the package without any added flag."""

Mapped = Callable[[Sequence[Shipped]], Sequence[Running]]
"""Finds older builds of shipped files that processes still have mapped."""


@dataclass(frozen=True, slots=True)
class PackageRequest:
    """What the author asks for."""

    name: str
    version: str | None
    what: str
    """The fix: a patch file, a tree, a CVE id, or "=VERSION"."""
    running: str | None = None
    """A binary that runs, :data:`PLAIN`, or None for the shipped files."""
    images: tuple[str, ...] = ()
    """File names or sonames of the images to patch; empty: all that the fix changes."""
    mapped: Mapped = lambda files: ()
    first: Callable[[Mapping[str, Any]], None] = lambda answer: None
    """Is told what the text of the fix alone tells, before anything is built."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A package ready to be forged."""

    package: Package
    source: FixedSource
    images: Images
    request: ForgeRequest
    """The author's request, with what the package tells filled in."""
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What belongs into a report about the package itself."""
        return {
            "package": self.package.name,
            "version": self.package.version,
            "binaries": [str(binary) for binary in self.package.binaries],
            "fix": self.source.label,
            "unchanged": [item.name for item in self.images.same],
            "not_built": [item.name for item in self.images.unknown],
            "notes": list(self.notes),
        }


def forge_package(
    source: PackageSource, wanted: PackageRequest, request: ForgeRequest, progress: Progress
) -> ForgeResult:
    """Make the contents of a hotpatch for a package.

    Args:
        source: the package format.
        wanted: the package and the fix.
        request: the author's decisions; ``source``, ``fix``, ``make`` and ``image`` of it are not looked at.

    Raises:
        InputError, ForgeError: see :class:`PackageSource` and :func:`build_images`.
        Refused: the fix cannot be hotpatched safely, changes no code (MF160), or runs already (MF163).
    """
    ready = prepare(source, wanted, request, progress)
    try:
        result = forge_images(ready.request, ready.images, progress)
    except RefusedWithFindings as refused:
        report = {**refused.report, **ready.facts}
        raise RefusedWithFindings(refused.findings, report, refused.evidence) from None
    report = {**result.report, **ready.facts}
    if ready.source.made_from and (strange := _strange(result.report)):
        names = ", ".join(strange[:6]) + (" …" if strange[6:] else "")
        item = finding("MF139", "", str(ready.package), base=ready.source.made_from, count=len(strange), names=names)
        raise RefusedWithFindings([item], report, result.evidence)
    return replace(result, report=report)


def _strange(report: Mapping[str, Any]) -> list[str]:
    """Functions of the objects concerned that do not match: one is too many for a source that was made."""
    images = report.get("images", [report])
    objects = [item for image in images for item in image["match"]["objects"].values()]
    return list(dict.fromkeys(name for item in objects for name in item["unmatched"]))


def prepare(source: PackageSource, wanted: PackageRequest, request: ForgeRequest, progress: Progress) -> Prepared:
    """Everything before the comparison: fetch, find the fix, build twice; raises as :func:`forge_package`."""
    progress(f"package: looking for {wanted.name}")
    package = source.resolve(wanted.name, wanted.version)
    fixed = source.fixed_source(package, wanted.what)
    shipped = source.shipped(package)
    running = _running(package, fixed, shipped, wanted)
    fix = read_fix(fixed.tree, fixed.fix)
    for note in fix.notes:
        progress(note)
    wanted.first(preview(touched(fixed.tree, fix.changes)))
    if source.missing_dependencies(fixed.tree):
        may_build("the build dependencies are not installed")
        source.install_dependencies(fixed.tree)
    recipe = source.recipe(fixed.tree, request.jobs or min(os.cpu_count() or 1, 16))
    build = WholeBuild(fixed.tree, recipe.command, recipe.environment, recipe.identity, recipe.place)
    progress(f"package: {package}, {fixed.label}")
    images = build_images(build, fix, running, wanted.running == PLAIN, request.work, progress)
    images = _narrowed(images, wanted.images)
    if not images.changed:
        raise nothing_to_patch(images)
    complete = replace(
        request,
        source=fixed.tree,
        fix=fixed.fix,
        make=recipe.command,
        image=package.name,
        name=request.name or package.name,
        description=request.description or _description(package, fixed),
        cves=request.cves or fixed.cves,
    )
    return Prepared(package, fixed, images, complete, tuple(source.notes))


def _description(package: Package, fixed: FixedSource) -> str:
    return f"{', '.join(fixed.cves) or fixed.label} in {package}"


def _running(
    package: Package, fixed: FixedSource, shipped: Sequence[Shipped], wanted: PackageRequest
) -> Sequence[Running]:
    """The files that the hotpatch is for."""
    if wanted.running not in (None, PLAIN):
        return [_given(Path(str(wanted.running)), shipped)]
    if fixed.present and wanted.running is None:
        older = wanted.mapped(shipped)
        if not older:
            where = "installed" if package.installed else "in the archive"
            raise Refused(
                f"refused: MF163 {package}, which is {where}, is already fixed: it carries {fixed.label}, and no "
                "process has an older build of it mapped. Nothing needs to be applied; a binary that runs nevertheless "
                "can be given with --running"
            )
        return older
    return [Running(item.file, item.name) for item in shipped]


def _given(file: Path, shipped: Sequence[Shipped]) -> Running:
    """A binary that the author names; it goes by the name of the shipped file that it stands for."""
    if not file.is_file():
        raise InputError(f"the running binary {file} does not exist")
    with ElfFile.open(file) as elf:
        soname = elf.soname
    for item in shipped:
        with ElfFile.open(item.file) as elf:
            if soname is not None and elf.soname == soname:
                return Running(file, item.name)
    by_name = [item for item in shipped if Path(item.name).name == file.name]
    if by_name:
        return Running(file, by_name[0].name)
    names = ", ".join(Path(item.name).name for item in shipped)
    raise InputError(f"{file} is none of the package's programs and libraries ({names}); give one of these")


def _narrowed(images: Images, names: Sequence[str]) -> Images:
    """Only the images that the author names."""
    if not names:
        return images
    known = [*(pair.running for pair in images.changed), *images.same, *images.unknown]
    for name in names:
        if not any(_is_called(item, name) for item in known):
            there = ", ".join(dict.fromkeys(Path(item.name).name for item in known))
            raise InputError(f"--image {name}: the package has no such program or library; there are {there}")
    return replace(
        images,
        changed=tuple(p for p in images.changed if any(_is_called(p.running, name) for name in names)),
        same=tuple(item for item in images.same if any(_is_called(item, name) for name in names)),
    )


def _is_called(item: Running, name: str) -> bool:
    if name in (item.name, Path(item.name).name):
        return True
    with ElfFile.open(item.file) as elf:
        return elf.soname == name
