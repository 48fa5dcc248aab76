"""The audit log as a hash chain; pure.

Every entry carries the hash of the one before it, and its own hash covers all its fields and that link. Changing,
removing or inserting an entry breaks the chain at that place. Cutting off the end, or writing the whole log anew, does
not: that is what a signed head kept elsewhere proves (see :class:`Head`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from midflight.errors import MidflightError

GENESIS = "0" * 64
"""What the first entry has as the hash of the one before it."""


class AuditBroken(MidflightError):
    """The audit log is not the one that was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that somebody did, or was refused.

    ``detail`` is JSON text; it is hashed as it stands, so a database that reorders keys cannot break the chain.
    """

    sequence: int
    at: datetime
    actor_kind: str
    actor: str
    source: str
    action: str
    target: str
    outcome: str
    detail: str
    previous: str

    def hash(self) -> str:
        """SHA-256 in hex over the canonical JSON of all fields (RFC 8785 for these types: strings and one integer)."""
        return hashlib.sha256(canonical({**asdict(self), "at": stamp(self.at)})).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log stood: this many entries, and the hash of the last one."""

    sequence: int
    hash: str


def stamp(at: datetime) -> str:
    """A time as the chain writes it: UTC, microseconds, always the same length. A time without zone is UTC."""
    aware = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return aware.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def canonical(document: dict[str, object]) -> bytes:
    """JSON with sorted keys, no spaces and ASCII only: one text for one content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def verify(entries: Iterable[tuple[Entry, str]], known: Iterable[Head] = ()) -> Head:
    """Walk the log (entries with the hash kept beside each) and return its head.

    Args:
        entries: in order of sequence, from the first.
        known: heads that were exported before; the log must contain each.

    Raises:
        AuditBroken: names the first entry that does not fit, or the head that the log does not contain.
    """
    wanted = {head.sequence: head.hash for head in known if head.sequence}
    last = Head(0, GENESIS)
    for entry, kept in entries:
        if entry.sequence != last.sequence + 1:
            gone = f"{last.sequence + 1} to {entry.sequence - 1}" if entry.sequence > last.sequence + 1 else "order"
            raise AuditBroken(f"audit log: entries missing before {entry.sequence} ({gone}); compare with a backup")
        if entry.previous != last.hash:
            raise AuditBroken(
                f"audit log: entry {entry.sequence} does not follow from entry {last.sequence}; compare with a backup"
            )
        if entry.hash() != kept:
            raise AuditBroken(f"audit log: entry {entry.sequence} was altered; compare with a backup")
        if wanted.pop(entry.sequence, kept) != kept:
            raise AuditBroken(
                f"audit log: entry {entry.sequence} is not the one whose head was exported; the log was written anew"
            )
        last = Head(entry.sequence, kept)
    if wanted:
        raise AuditBroken(
            f"audit log: it ends at entry {last.sequence}, but a head of entry {max(wanted)} was exported; "
            "the end was cut off"
        )
    return last
