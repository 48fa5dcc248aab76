"""The source of a version that the archive has no more, from a newer one: taking out the patches that came since.

What came since is told by the newer changelog entries (names of patches, CVE ids, numbers of closed bugs) and by the
times of the patch files
in the archive's tarball, or in their headers. It is evidence, not proof: the proof is the match of what is built
from it with what runs.
"""

from __future__ import annotations

import contextlib
import email.utils
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from midflight.forge.packages.apt import Apt, Log, SourceError
from midflight.forge.packages.changelog import Entry, cves_in, read_changelog, since
from midflight.forge.packages.patching import series
from midflight.forge.packages.sources import SourcePackage, fetch_exactly
from midflight.forge.packages.versions import compare, upstream, version_key

_SLACK = 12 * 3600
"""Seconds by which a patch file may be newer than the changelog entry with which it came."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of exactly one version: a fetched package, with a choice of its patches."""

    version: str
    base: SourcePackage
    """What it is made from; of the same version unless it is reconstructed."""
    patches: tuple[str, ...]
    """The patches of the base's series that this version has, in order."""
    notes: tuple[str, ...] = ()

    @property
    def reconstructed(self) -> bool:
        """Whether the archive did not have this very version."""
        return self.base.version != self.version


def exact_source(apt: Apt, cache: Path, name: str, version: str, log: Log) -> Source:
    """Fetch the source of a version, or reconstruct it from the nearest newer one.

    Raises:
        SourceError: neither is possible; the message says which versions are there.
    """
    listed = [stanza["Version"] for stanza in apt.sources(name)]
    reasons: dict[str, str] = {}
    for candidate in sorted({version, *listed}, key=version_key):
        if compare(candidate, version) < 0:
            continue
        try:
            base = fetch_exactly(apt, cache, name, candidate, log)
        except SourceError as error:
            reasons[candidate] = str(error)
            if candidate in listed:
                log(f"{name} {candidate}: in the index, but {error}")
            continue
        if candidate == version:
            return Source(version, base, tuple(series(base.patches)))
        if upstream(candidate) != upstream(version):
            break
        return _without_newer(base, version, log)
    there = [v for v in listed if v not in reasons and v != version]
    offer = f"sources that are there: {', '.join(there)}; give one as {name}={there[0]}" if there else "there is none"
    why = "is not on the mirror"
    if there and all(compare(v, version) < 0 or upstream(v) != upstream(version) for v in there):
        why += ", and none is near enough to make it from"
    raise SourceError(f"the source of {name} {version} {why}; {offer}")


def _without_newer(base: SourcePackage, version: str, log: Log) -> Source:
    entries = read_changelog(base.tree / "debian" / "changelog")
    newer, own = since(entries, version)
    if own is None:
        raise SourceError(
            f"the changelog of {base.name} {base.version} has no entry of {version}, so that source cannot be made "
            f"from it; give {base.name}={base.version}"
        )
    older = entries[len(newer) :]
    order = series(base.patches)
    gone = came_since(base.patches, order, newer, older)
    shown = ", ".join(name for name in order if name in gone) or "no patch"
    note = f"the source of {base.name} {version} is no more on the mirror: made from {base.version} without {shown}"
    log(note)
    return Source(version, base, tuple(name for name in order if name not in gone), (note,))


def came_since(folder: Path, order: Sequence[str], newer: Sequence[Entry], older: Sequence[Entry]) -> frozenset[str]:
    """Those patches of a series that came with the newer changelog entries.

    Args:
        folder: the folder of the patches, as dpkg-source unpacked it (with the times of the tarball).
        order: the series.
        newer: entries that are too new.
        older: the entry of the wanted version and all before it.
    """
    told = {name for name in order if _is_told(folder / name, newer)}
    dated = {name for name in order if _written(folder / name) > older[0].time + _SLACK}
    known = {name for name in order if _is_told(folder / name, older)}
    young = {name for name in order if (folder / name).stat().st_mtime > older[0].time + _SLACK}
    if len(young) == len(order) and not told >= young:
        young = set()  # the tarball was made from a checkout: all times are that of the checkout
    # Told by both sides: a patch that was there before and was only refreshed.
    return frozenset((told | young) - known | dated)


def _written(patch: Path) -> int:
    """The time that the header of a patch gives, in seconds since 1970; 0 when it gives none."""
    times = [0]
    for text in re.findall(r"(?im)^(?:date|last-update):[ \t]*(\S.*)$", header_of(patch)):
        with contextlib.suppress(ValueError, TypeError):
            text = re.sub(r"^(\d{4}-\d\d-\d\d).*", r"\1T00:00:00+00:00", text.strip())
            iso = text.endswith("T00:00:00+00:00")
            moment = datetime.fromisoformat(text) if iso else email.utils.parsedate_to_datetime(text)
            times.append(int(moment.timestamp()))
    return max(times)


def _is_told(patch: Path, entries: Sequence[Entry]) -> bool:
    """Whether changelog entries speak of a patch: by its name, a CVE id, or the bug that its header names."""
    text = "\n".join(entry.text for entry in entries)
    if patch.name in text or (len(patch.stem) > 8 and re.search(rf"(?<![\w-]){re.escape(patch.stem)}(?![\w-])", text)):
        return True
    cves = cves_in(patch.name) or cves_in(header_of(patch))
    if cves:
        return bool(cves & cves_in(text))
    bugs = set(re.findall(r"bugs\.debian\.org/(\d+)", header_of(patch)))
    return bool(bugs & {bug for entry in entries for bug in entry.bugs})


def header_of(patch: Path) -> str:
    """What stands before the first file of a patch: the DEP-3 header or a mail's text."""
    text = patch.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:--- \S|diff |Index: )", text, re.MULTILINE)
    return text[: found.start()] if found else text[:2000]
