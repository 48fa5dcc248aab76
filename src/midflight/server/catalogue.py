"""The catalogue as the server has it: what the repository's targets metadata says, taken over row by row.

The folder of the repository is ours, and was verified when it was published (midflight.trust.publishing); devices
verify it again. Content never changes: another file under the id of content that is known is refused and reported,
not taken over.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from midflight.server.domain.model import Classification, Severity
from midflight.server.store import events, meta
from midflight.server.store.catalogue import Content, ContentCve, ContentImage
from midflight.server.store.invalidate import baselines_changed, content_changed
from midflight.trust.content import Catalog, Revocation
from midflight.trust.content import Content as Offered

_VERSION = "catalogue_version"
_RELINK = text("UPDATE device_patch SET content_id = :content WHERE sha256 = :sha256 AND content_id IS NULL")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a look at the repository brought."""

    added: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    """Paths that came with other bytes than before under the same id, or that cannot be read."""


def content_id(offered: Offered) -> str:
    """``KIND:NAME:SEQUENCE``."""
    return f"{offered.about.kind}:{offered.about.name}:{offered.about.sequence}"


def take(session: Session, catalog: Catalog, now: datetime) -> Taken:
    """Take over a version of the repository's catalogue; nothing is done when it was taken over before."""
    if meta.read(session, _VERSION) == str(catalog.version):
        return Taken()
    known = {row.id: row for row in session.scalars(select(Content))}
    added, refused, seen = [], [], set()
    for offered in catalog.contents.values():
        id = content_id(offered)
        seen.add(id)
        row = known.get(id)
        if row is None:
            session.add_all(_rows(id, offered, now))
            session.flush()
            session.execute(_RELINK, {"content": id, "sha256": offered.sha256})
            added.append(id)
            data = {"path": offered.path, "sha256": offered.sha256, "cves": list(offered.about.cves)}
            events.publish(session, "content.published", data, subject=id, at=now)
        elif row.sha256 != offered.sha256:
            refused.append(offered.path)
            data = {"path": offered.path, "known": row.sha256, "offered": offered.sha256}
            events.publish(session, "content.refused", data, subject=id, at=now)
        else:
            row.missing = False
    refused += catalog.unreadable
    revoked = [id for revocation in catalog.revoked for id in _revoke(session, known, revocation, now)]
    missing = [id for id, row in known.items() if id not in seen and row.revoked is None and not row.missing]
    for id in missing:
        known[id].missing = True
        events.publish(session, "content.missing", {"path": known[id].path}, subject=id, at=now)
    meta.write(session, _VERSION, str(catalog.version))
    content_changed(session, [*revoked, *missing])
    changed = (id.split(":", 1) for id in (*added, *revoked, *missing))
    baselines_changed(session, {rest.rpartition(":")[0] for kind, rest in changed if kind == "baseline"})
    meta.bump(session, "catalogue")
    return Taken(tuple(added), tuple(revoked), tuple(missing), tuple(refused))


def edited(session: Session, content: str) -> None:
    """What this server adds to content was changed: whoever has to do with it is decided anew."""
    content_changed(session, [content])
    meta.bump(session, "catalogue")


def _revoke(session: Session, known: dict[str, Content], revocation: Revocation, now: datetime) -> list[str]:
    """Revocation is final: what is revoked once stays so, whatever a later catalogue says."""
    done = []
    for id, row in known.items():
        if row.sha256 == revocation.sha256 and row.revoked is None:
            row.revoked, row.revoked_reason, row.revoked_revert = revocation.when, revocation.reason, revocation.revert
            done.append(id)
            data = {"reason": revocation.reason, "revert": revocation.revert}
            events.publish(session, "content.revoked", data, subject=id, at=now)
    return done


def _rows(id: str, offered: Offered, now: datetime) -> list[Content | ContentImage | ContentCve]:
    about = offered.about
    cvss = float(about.cvss) if about.cvss is not None else None
    severity = _severity(about.severity, cvss)
    details: dict[str, object] = {"on_track": True}
    if about.package is not None:
        details["package"] = {
            "format": about.package.format,
            "name": about.package.name,
            "version": about.package.version,
            "architecture": about.package.architecture,
        }
    content = Content(
        id=id,
        kind=about.kind,
        name=about.name,
        package=about.name,
        sequence=about.sequence,
        path=offered.path,
        sha256=offered.sha256,
        length=offered.length,
        classification=_classification(about.classification, severity).value,
        severity=severity.value,
        cvss=cvss,
        description=about.description,
        published=now,
        deployable_until=None,
        supersedes=list(about.supersedes),
        details=details,
        revoked=None,
        revoked_reason="",
        revoked_revert=False,
        missing=False,
    )
    images = [ContentImage(content_id=id, build_id=build_id) for build_id in sorted(set(about.images))]
    cves = [
        ContentCve(content_id=id, cve=cve, cvss=cvss, severity=severity.value, exploited=False)
        for cve in sorted(set(about.cves))
    ]
    return [content, *images, *cves]


def _severity(word: str, cvss: float | None) -> Severity:
    """An unknown severity is taken to be high: what nobody rated must not wait behind what somebody rated low."""
    if word != "unknown":
        return Severity(word)
    return Severity.of_score(cvss) if cvss is not None else Severity.HIGH


def _classification(word: str, severity: Severity) -> Classification:
    if word != "security":
        return Classification.OTHER
    return Classification.CRITICAL if severity is Severity.CRITICAL else Classification.SECURITY
