"""Finds the patches of a CVE in Debian's sources, and what else they need in order to apply. Knowledge: DEP-3."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from midflight.forge.packages.apt import SourceError
from midflight.forge.packages.changelog import Entry, cves_in, read_changelog
from midflight.forge.packages.patching import apply_patch, fits, series
from midflight.forge.packages.reconstruct import came_since, header_of
from midflight.forge.packages.sources import SourcePackage

_STRONG = re.compile(r"(?im)^(?:subject|description|bug[\w-]*|origin|cve|applied-upstream|from):.*(?:\n[ \t].*)*")


def patches_of(package: SourcePackage, cve: str) -> tuple[str, ...]:
    """The patches of a source that fix a CVE, in the order of the series; empty when there is none.

    By file name, by a changelog item that names CVE and patch, by the leading fields of its header; only when there is
    none of these, by any mention in a header.
    """
    order = series(package.patches)
    entries = read_changelog(package.tree / "debian" / "changelog")
    named = {name for name in order if cve in cves_in(name)}
    named |= {name for name in order if _by_changelog(name, cve, entries)}
    headers = {name: header_of(package.patches / name) for name in order if (package.patches / name).is_file()}
    if not named:
        fields = {name: "\n".join(_STRONG.findall(text)) for name, text in headers.items()}
        named = {name for name, text in fields.items() if cve in cves_in(text)}
    if not named:
        named = {name for name, text in headers.items() if cve in cves_in(text)}
    return tuple(name for name in order if name in named)


def _by_changelog(patch: str, cve: str, entries: Sequence[Entry]) -> bool:
    for entry in entries:
        if cve not in entry.cves:
            continue
        for change in entry.changes:
            if cve in cves_in(change) and re.search(rf"(?<![\w.-]){re.escape(Path(patch).name)}(?![\w-])", change):
                return cves_in(patch) <= {cve}
    return False


def mentioned(package: SourcePackage, cve: str) -> Entry | None:
    """The changelog entry that names a CVE, newest first."""
    entries = read_changelog(package.tree / "debian" / "changelog")
    return next((entry for entry in entries if cve in entry.cves), None)


def came_with(package: SourcePackage, entry: Entry) -> tuple[str, ...]:
    """The patches that came with one changelog entry, as far as can be told."""
    entries = read_changelog(package.tree / "debian" / "changelog")
    order = series(package.patches)
    place = next(number for number, other in enumerate(entries) if other.version == entry.version)
    if place + 1 >= len(entries):
        return ()
    later = came_since(package.patches, order, entries[:place], entries[place:]) if place else frozenset()
    these = came_since(package.patches, order, entries[: place + 1], entries[place + 1 :])
    return tuple(name for name in order if name in these - later)


def touched_files(patch: Path) -> frozenset[str]:
    """The files that a patch changes, without their first folder."""
    text = patch.read_text(encoding="utf-8", errors="replace")
    names = re.findall(r"^(?:---|\+\+\+) ([^\t\r\n]+)", text, re.MULTILINE)
    return frozenset(name.strip().partition("/")[2] for name in names if not name.startswith("/dev/null"))


def with_patches(
    tree: Path, destination: Path, package: SourcePackage, wanted: Sequence[str], had: Sequence[str]
) -> tuple[str, ...]:
    """Copy ``tree`` and apply patches of a newer source to it, with those before them that they stand on.

    Args:
        tree: the source of the package's version; only read.
        destination: replaced by the patched copy.
        package: the newer source.
        wanted: its patches to apply, in the order of its series.
        had: the patches that ``tree`` has already.

    Returns:
        All patches that were applied, in order.

    Raises:
        SourceError: they do not apply, whatever is put before them.
    """
    order = series(package.patches)
    spare = [name for name in order if name not in had]
    chosen = [name for name in order if name in wanted]
    while True:
        if destination.exists():
            shutil.rmtree(destination)
        shutil.copytree(tree, destination, symlinks=True)
        failed = None
        for name in chosen:
            if not fits(destination, package.patch(name)) and not _fits_fuzzily(destination, package.patch(name)):
                failed = name
                break
            apply_patch(destination, package.patch(name), fuzz=2)
        if failed is None:
            return tuple(chosen)
        files = touched_files(package.patch(failed))
        before = spare[: spare.index(failed)] if failed in spare else []
        helpful = [n for n in before if n not in chosen and touched_files(package.patch(n)) & files]
        if not helpful:
            shutil.rmtree(destination)
            raise SourceError(
                f"{failed} of {package.name} {package.version} does not apply to the version that runs; "
                "give a patch made for it with --fix FILE"
            )
        chosen = [name for name in order if name in chosen or name == helpful[-1]]


def _fits_fuzzily(tree: Path, patch: Path) -> bool:
    return fits(tree, patch, fuzz=2) and not fits(tree, patch, reverse=True)
