"""What a repository offers: content (hotpatches and baselines) with what administrators decide by, and what is revoked.

All of it is part of the TUF targets metadata, so it is signed offline: each target's ``custom.midflight`` describes the
content, and the field ``x-midflight`` of the targets metadata lists what was revoked. A target without a description
is no content (``server.json`` is one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tuf.api.metadata import TargetFile, Targets

from midflight.patch.fields import FieldError, boolean, choice, integer, many, optional, pattern, record, text
from midflight.trust.encoding import MAX_INTEGER, format_time, time
from midflight.trust.instructions import SHA256
from midflight.trust.paths import target_path

FORMAT = 1
CUSTOM = "midflight"
FIELD = "x-midflight"
"""TUF 1.0.34 section 4.1 lets implementations add fields to the signed part; readers keep what they do not know."""

ContentKind = Literal["hotpatch", "baseline"]
Classification = Literal["security", "non-security"]
Severity = Literal["critical", "high", "medium", "low", "none", "unknown"]
PackageFormat = Literal["deb", "file"]


@dataclass(frozen=True, slots=True)
class Package:
    """What a baseline installs: a package of the system, or (``file``) one file that an administrator's rule places."""

    format: PackageFormat
    name: str
    version: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Description:
    """What an administrator, and the rules of the server, need to know of a piece of content."""

    kind: ContentKind
    name: str
    """The series; a higher sequence of the same name replaces a lower one."""
    sequence: int
    images: tuple[str, ...]
    """Build-ids: of the baselines that a hotpatch is for; of the images that a baseline brings (may be empty)."""
    cves: tuple[str, ...]
    classification: Classification
    severity: Severity
    cvss: str | None
    """The highest CVSS base score, like ``9.8``."""
    description: str
    supersedes: tuple[str, ...] = ()
    """Names of other content that this one makes unnecessary, at every sequence."""
    package: Package | None = None
    """For a baseline, and then always."""


@dataclass(frozen=True, slots=True)
class Content:
    """One TUF target that is content."""

    path: str
    sha256: str
    length: int
    about: Description


@dataclass(frozen=True, slots=True)
class Revocation:
    """Content that was taken back. It is never offered again; ``revert`` tells agents to take it out where it runs."""

    path: str
    sha256: str
    name: str
    sequence: int
    reason: str
    when: datetime
    revert: bool


@dataclass(frozen=True, slots=True)
class Catalog:
    """All content of a repository, as one version of its targets metadata has it."""

    version: int
    expires: datetime
    contents: Mapping[str, Content]
    """By path."""
    revoked: tuple[Revocation, ...]
    unreadable: Mapping[str, str]
    """Paths of content that this Midflight cannot read (a newer format), with the reason."""

    def revocation(self, sha256: str | None, path: str | None = None) -> Revocation | None:
        """Why content is revoked; None: it is not."""
        for revocation in self.revoked:
            if revocation.sha256 == sha256 or (path is not None and revocation.path == path):
                return revocation
        return None


def catalog_of(targets: Targets) -> Catalog:
    """The catalog in verified targets metadata.

    Raises:
        FieldError: the list of revocations cannot be read; a reader that went on might offer what is revoked.
    """
    contents: dict[str, Content] = {}
    unreadable: dict[str, str] = {}
    for path, target in targets.targets.items():
        try:
            content = _content_of(path, target)
        except FieldError as error:
            unreadable[path] = str(error)
            continue
        if content is not None:
            contents[path] = content
    return Catalog(targets.version, targets.expires, contents, revocations_of(targets), unreadable)


def revocations_of(targets: Targets) -> tuple[Revocation, ...]:
    """What targets metadata says is revoked.

    Raises:
        FieldError: it cannot be read.
    """
    field = targets.unrecognized_fields.get(FIELD)
    if field is None:
        return ()
    revoked: tuple[Revocation, ...] = _field(field)
    return revoked


def set_revocations(targets: Targets, revoked: Sequence[Revocation]) -> None:
    """Write the list of revocations into targets metadata (not yet signed)."""
    document = {
        "format": FORMAT,
        "revoked": [
            {
                "path": item.path,
                "sha256": item.sha256,
                "name": item.name,
                "sequence": item.sequence,
                "reason": item.reason,
                "when": format_time(item.when),
                "revert": item.revert,
            }
            for item in revoked
        ],
    }
    _field(document)
    targets.unrecognized_fields[FIELD] = document


def describe(target: TargetFile, about: Description) -> None:
    """Write a description into a target of targets metadata (not yet signed).

    Raises:
        FieldError: no reader would take it.
    """
    document: dict[str, Any] = {
        "format": FORMAT,
        "kind": about.kind,
        "name": about.name,
        "sequence": about.sequence,
        "images": list(about.images),
        "cves": list(about.cves),
        "classification": about.classification,
        "severity": about.severity,
        "cvss": about.cvss,
        "description": about.description,
        "supersedes": list(about.supersedes),
        "package": None
        if about.package is None
        else {
            "format": about.package.format,
            "name": about.package.name,
            "version": about.package.version,
            "architecture": about.package.architecture,
        },
    }
    _description(document)
    target.unrecognized_fields["custom"] = {CUSTOM: document}


def _content_of(path: str, target: TargetFile) -> Content | None:
    custom = target.custom
    if not isinstance(custom, dict) or CUSTOM not in custom:
        return None
    document = custom[CUSTOM]
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is int and version > FORMAT:
        raise FieldError(f"is of format {version}, and this Midflight reads {FORMAT}; update it here")
    about: Description = _description(document)
    digest = _sha256(target.hashes.get("sha256"))
    return Content(target_path(path), digest, target.length, about)


def _make_description(_: int, *fields: Any) -> Description:
    about = Description(*fields)
    if (about.package is not None) != (about.kind == "baseline"):
        raise FieldError("must be there for a baseline, and for nothing else", ".package")
    if about.kind == "hotpatch" and not about.images:
        raise FieldError("must name at least one image", ".images")
    return about


_sha256 = pattern(SHA256, "a sha256 in hex")
_name = pattern(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}", "a name")
_sequence = integer(1, MAX_INTEGER)
_package = record(
    Package,
    format=choice(("deb", "file")),
    name=pattern(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", "the name of a package"),
    version=pattern(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]{0,199}", "a version"),
    architecture=pattern(r"[a-z0-9_-]{1,32}", "an architecture"),
)
_description = record(
    _make_description,
    format=integer(FORMAT, FORMAT),
    kind=choice(("hotpatch", "baseline")),
    name=_name,
    sequence=_sequence,
    images=many(pattern(r"[A-Za-z0-9-]{4,128}", "a build-id"), 0, 1000),
    cves=many(pattern(r"CVE-[0-9]{4}-[0-9]{4,19}", "a CVE, like CVE-2026-12345"), 0, 1000),
    classification=choice(("security", "non-security")),
    severity=choice(("critical", "high", "medium", "low", "none", "unknown")),
    cvss=optional(pattern(r"(?:10\.0|[0-9]\.[0-9])", "a CVSS base score, like 9.8")),
    description=text(0, 4000, lines=True),
    supersedes=many(_name, 0, 1000),
    package=optional(_package),
)
_field = record(
    lambda _, revoked: revoked,
    format=integer(FORMAT, FORMAT),
    revoked=many(
        record(
            Revocation,
            path=target_path,
            sha256=_sha256,
            name=_name,
            sequence=_sequence,
            reason=text(1, 1000),
            when=time,
            revert=boolean,
        ),
        0,
        10_000,
    ),
)
