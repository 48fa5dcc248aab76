"""midflight repo status: show content, keys, what is staged and who must sign, what is over soon."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from midflight.cli.output import Output, Styled, Text
from midflight.cli.repository import shared

if TYPE_CHECKING:
    from midflight.trust.content import Catalog, Content
    from midflight.trust.repository import Repository

HELP = """\
Shows the content as it will be when what is staged is published, with changes marked + (new or changed) and - (gone);
whose keys count; how far the signing is; and how long metadata lasts. The exit status is 1 when something is over, or
will be before a third of its time has passed again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    repository = shared.opened(args)
    now = shared.now()
    contents = _contents(repository, out)
    keys = _keys(repository, out)
    ends, late = _ends(repository, now, out)
    staged = shared.show_staged(repository, out)
    out.result({**contents, "keys": keys, "expires": ends, "late": late, "staged": staged})
    return 1 if late else 0


def _contents(repository: Repository, out: Output) -> dict[str, Any]:
    from tuf.api.metadata import Targets

    new = repository.catalog()
    visible = repository.published(Targets)
    old = repository.catalog(staged=False) if visible is not None else None
    rows: list[Sequence[Text]] = []
    for path in sorted(new.contents.keys() | (old.contents.keys() if old else set())):
        before = old.contents.get(path) if old else None
        rows.append(_row(path, before, new))
    if rows:
        out.table(["", "content", "sequence", "severity", "bytes"], rows)
    else:
        out.line("no content")
    for path, reason in new.unreadable.items():
        out.warn(f"{path}: its description {reason}")
    if new.revoked:
        out.line()
        out.table(["revoked", "reason"], [(item.path, item.reason) for item in new.revoked])
    out.line()
    return {
        "contents": {path: _document(content) for path, content in new.contents.items()},
        "published": sorted(old.contents) if old else [],
        "revoked": [
            {"path": item.path, "reason": item.reason, "when": item.when.isoformat(), "revert": item.revert}
            for item in new.revoked
        ],
    }


def _row(path: str, before: Content | None, new: Catalog) -> Sequence[Text]:
    content = new.contents.get(path)
    if content is None:
        assert before is not None
        return (Styled("-", "bad"), path, str(before.about.sequence), before.about.severity, f"{before.length:,}")
    sign: Text = Styled("+", "good") if content != before else " "
    about = content.about
    severity = f"{about.severity} {about.cvss}" if about.cvss else about.severity
    return (sign, path, str(about.sequence), severity, f"{content.length:,}")


def _document(content: Content) -> dict[str, Any]:
    about = content.about
    return {
        "sha256": content.sha256,
        "length": content.length,
        "kind": about.kind,
        "name": about.name,
        "sequence": about.sequence,
        "cves": list(about.cves),
        "severity": about.severity,
        "cvss": about.cvss,
        "images": list(about.images),
    }


def _keys(repository: Repository, out: Output) -> dict[str, Any]:
    root = repository.root()
    rows: list[Sequence[Text]] = []
    document: dict[str, Any] = {}
    for name in ("root", "targets", "snapshot", "timestamp"):
        role = root.roles[name]
        document[name] = {"threshold": role.threshold, "keys": list(role.keyids)}
        for number, keyid in enumerate(role.keyids):
            first = number == 0
            kind = root.keys[keyid].scheme
            rows.append(
                (name if first else "", f"{role.threshold} of {len(role.keyids)}" if first else "", keyid[:16], kind)
            )
    out.table(["role", "needed", "key", "scheme"], rows)
    out.line()
    return document


def _ends(repository: Repository, now: datetime, out: Output) -> tuple[dict[str, str], list[str]]:
    """Until when the published metadata lasts, and which of it is over or soon will be."""
    from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

    ends: dict[str, str] = {}
    late: list[str] = []
    published = (
        repository.published(Root),
        repository.published(Targets),
        repository.published(Snapshot),
        repository.published(Timestamp),
    )
    for found in published:
        if found is None:
            continue
        role, end = found.signed.type, found.signed.expires
        ends[role] = end.isoformat()
        left = end - now
        soon = left < getattr(repository.lifetimes, role) / 3
        text = f"{role:<10} version {found.signed.version}, until {end:%Y-%m-%d %H:%M} UTC"
        if soon:
            late.append(role)
            who = "midflight repo renew" + (" --root" if role == "root" else "")
            what = who if role in ("root", "targets") else "run the server, or midflight repo publish"
            out.line(Styled(f"{text}: {'over' if left.total_seconds() <= 0 else 'over soon'}; {what}", "bad"))
        else:
            out.line(text)
    if not ends:
        out.line("not published yet")
    return ends, late
