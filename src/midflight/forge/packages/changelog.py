"""debian/changelog: its entries, and the CVE and bug numbers in them. Knowledge: deb-changelog(5)."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_HEAD = re.compile(
    r"^(?P<package>\w[\w.+-]*) \((?P<version>[^() \t]+)\)(?P<rest>(?:\s+[-+0-9a-z.]+)*;.*)$", re.IGNORECASE
)
_TRAILER = re.compile(r"^ -- .* <.*>  ?(?P<date>.+)$")
_CVE = re.compile(r"(?i)\bCVE[-_ ](\d{4})[-_](\d{4,})(?!\d)")
_CLOSES = re.compile(r"(?i)closes:\s*((?:bug)?#?\s?\d+(?:,\s*(?:bug)?#?\s?\d+)*)")


@dataclass(frozen=True, slots=True)
class Entry:
    """What came with one version."""

    package: str
    version: str
    text: str
    time: int
    """Seconds since 1970 of the trailer line; 0 when there is none that can be read."""
    start: int
    """Number of its first line in the file, from 0."""

    @property
    def changes(self) -> tuple[str, ...]:
        """The single changes: the text of each ``*`` item on one line, what is below it included."""
        items = re.split(r"\n\s*(?:\*\s|\[)", "\n" + self.text)
        return tuple(" ".join(item.split()) for item in items if item.strip())

    @property
    def cves(self) -> frozenset[str]:
        """CVE ids that are named."""
        return cves_in(self.text)

    @property
    def bugs(self) -> frozenset[str]:
        """Numbers of the bugs that are closed."""
        return frozenset(number for found in _CLOSES.finditer(self.text) for number in re.findall(r"\d+", found[1]))


def cves_in(text: str) -> frozenset[str]:
    """CVE ids in a text, as "CVE-2024-50602"; file names may have them with underscores."""
    return frozenset(f"CVE-{year}-{number}" for year, number in _CVE.findall(text))


def read_changelog(file: Path) -> tuple[Entry, ...]:
    """The entries of a changelog, newest first; text that is none is passed over."""
    entries: list[Entry] = []
    head: re.Match[str] | None = None
    start, body = 0, list[str]()
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        if found := _HEAD.match(line):
            head, start, body = found, number, []
        elif head is not None and (trailer := _TRAILER.match(line)):
            entries.append(Entry(head["package"], head["version"], "\n".join(body), _seconds(trailer["date"]), start))
            head = None
        else:
            body.append(line)
    return tuple(entries)


def _seconds(date: str) -> int:
    try:
        return int(email.utils.parsedate_to_datetime(date.strip()).timestamp())
    except (ValueError, TypeError):
        return 0


def since(entries: Iterable[Entry], version: str) -> tuple[tuple[Entry, ...], Entry | None]:
    """The entries above that of ``version``, and that one (None when there is none)."""
    newer: list[Entry] = []
    for entry in entries:
        if entry.version == version:
            return tuple(newer), entry
        newer.append(entry)
    return tuple(newer), None


def cut(file: Path, version: str, rebuild: str | None = None) -> None:
    """Let a changelog begin with the entry of ``version``; with ``rebuild``, put that of a binary-only rebuild before.

    The version number and the date of the first entry go into many programs.
    """
    entries = read_changelog(file)
    entry = next(entry for entry in entries if entry.version == version)
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    text = "".join(lines[entry.start :])
    if rebuild is not None:
        date = email.utils.formatdate(entry.time, localtime=False)
        text = (
            f"{entry.package} ({rebuild}) sid; urgency=low, binary-only=yes\n\n  * Binary-only rebuild.\n\n"
            f" -- Debian Build Daemon <buildd@localhost>  {date}\n\n{text}"
        )
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
