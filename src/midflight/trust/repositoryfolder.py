"""A repository's folder: its settings, what is staged, what is visible, and how far the signing is.

:mod:`midflight.trust.repository` says how the folder is laid out, and makes changes; this reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from midflight.errors import InputError
from midflight.patch.fields import FieldError
from midflight.trust import generations
from midflight.trust.content import Catalog, catalog_of
from midflight.trust.files import replace_file
from midflight.trust.serverrecord import TARGET as SERVER_TARGET
from midflight.trust.serverrecord import ServerRecord, decode_record
from midflight.trust.signers import open_signer

FORMAT = 1
SETTINGS = "repository.json"
STAGED = "staged"
OfflineRole = Literal["root", "targets"]
OFFLINE: tuple[OfflineRole, ...] = ("root", "targets")
ONLINE = ("snapshot", "timestamp")
_JSON = JSONSerializer(compact=False)
T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long metadata lasts from when it was made or renewed."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=90)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Signatures:
    """How far the signing of a role is."""

    signed: tuple[str, ...]
    """Key ids that signed validly."""
    open: tuple[str, ...]
    """Key ids that may still sign."""
    missing: int
    """Signatures that are still needed; 0: enough."""


class RepositoryFolder:
    """Reads a repository in a folder."""

    def __init__(self, folder: Path) -> None:
        """Open an existing repository.

        Raises:
            InputError: there is none in that folder, or it is of a newer format.
        """
        self.folder = folder
        try:
            document = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise InputError(f"{folder} is of format {document['format']}; update Midflight")
            days = document["lifetime_hours"]
            self.lifetimes = Lifetimes(**{role: timedelta(hours=days[role]) for role in (*OFFLINE, *ONLINE)})
            self.online_key = str(document["online_key"])
        except FileNotFoundError:
            raise InputError(f"{folder} is not a repository; make one with midflight repo init") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / SETTINGS} cannot be read: {error}; restore it") from None

    @property
    def public(self) -> Path:
        """What any web server may serve: ``metadata`` and ``targets``."""
        return self.folder / generations.PUBLIC

    def published(self, kind: type[T]) -> Metadata[T] | None:
        """The visible metadata of a role; None before the first publication."""
        folder = self.public / generations.METADATA
        if not folder.exists():
            return None
        name = f"{kind.type}.json"
        if kind is not Timestamp:
            name = f"{max(_versions(folder, kind.type))}.{name}"
        return _read(folder / name)

    def staged(self, kind: type[T]) -> Metadata[T] | None:
        """The staged metadata of an offline role; None when nothing is staged for it."""
        path = self.folder / STAGED / f"{kind.type}.json"
        if not path.exists():
            return None
        found: Metadata[T] = _read(path)
        current = self.published(kind)
        # Somebody who was killed between publishing and tidying up leaves what is published already.
        return None if current is not None and found.signed.version <= current.signed.version else found

    def root(self) -> Root:
        """The root in force once all that is staged is published."""
        found = self.staged(Root) or self.published(Root)
        if found is None:
            raise InputError(f"{self.folder} has no root metadata; restore it from a backup")
        return found.signed

    def targets(self) -> Targets:
        """The targets, staged changes included. Do not change it: see :meth:`add` and the others."""
        found = self.staged(Targets) or self.published(Targets)
        if found is None:
            raise InputError(f"{self.folder} has no targets metadata; restore it from a backup")
        return found.signed

    def catalog(self, *, staged: bool = True) -> Catalog:
        """All content, with or without what is staged.

        Raises:
            InputError: nothing is published yet (without ``staged``), or it cannot be read.
        """
        try:
            if staged:
                return catalog_of(self.targets())
            found = self.published(Targets)
        except FieldError as error:
            raise InputError(f"{self.folder}: the list of revocations cannot be read: {error}") from None
        if found is None:
            raise InputError(f"{self.folder} is not published yet; sign it and run midflight repo publish")
        return catalog_of(found.signed)

    def server_record(self) -> ServerRecord | None:
        """The server's record, staged changes included; None when there is none."""
        target = self.targets().targets.get(SERVER_TARGET)
        return None if target is None else decode_record(self.find_file(target).read_bytes())

    def find_file(self, target: TargetFile) -> Path:
        """Where the file of a target is.

        Raises:
            InputError: it is missing or altered.
        """
        name = hashed_name(target)
        for folder in (self.folder / STAGED / "targets", self.public / generations.TARGETS):
            try:
                with open(folder / name, "rb") as file:
                    target.verify_length_and_hashes(file)
                return folder / name
            except FileNotFoundError:
                continue
            except (OSError, RepositoryError):
                raise InputError(f"{folder / name} is damaged; restore it from where it came from") from None
        raise InputError(f"the file of {target.path} is missing; put it into {self.folder / STAGED / 'targets' / name}")

    def signatures(self, role: OfflineRole) -> Signatures | None:
        """How far the signing of what is staged for a role is; None when nothing is staged."""
        metadata: Metadata[Root] | Metadata[Targets] | None
        metadata = self.staged(Root) if role == "root" else self.staged(Targets)
        if metadata is None:
            return None
        payload, found = metadata.signed_bytes, metadata.signatures
        judges = [self.root()]
        if role == "root" and (current := self.published(Root)) is not None:
            judges.insert(0, current.signed)  # a new root is signed by the old threshold as well as by its own
        results = [judge.get_verification_result(role, payload, found) for judge in judges]
        signed = {keyid for result in results for keyid in result.signed}
        unsigned = {keyid for result in results for keyid in result.unsigned} - signed
        missing = max(result.missing for result in results)
        return Signatures(tuple(sorted(signed)), tuple(sorted(unsigned)), missing)

    # --- for those who change it, who hold the lock ------------------------------------------------------------------

    def write_settings(self) -> None:
        """Write ``repository.json``."""
        hours = {role: int(getattr(self.lifetimes, role).total_seconds() // 3600) for role in (*OFFLINE, *ONLINE)}
        settings = {"format": FORMAT, "lifetime_hours": hours, "online_key": self.online_key}
        replace_file(self.folder / SETTINGS, json.dumps(settings, indent=2).encode() + b"\n")

    def stage(self, role: OfflineRole, metadata: Metadata[Root] | Metadata[Targets]) -> None:
        """Write staged metadata; a change takes away the signatures of what it was before."""
        replace_file(self.folder / STAGED / f"{role}.json", metadata.to_bytes(_JSON))

    def tidy(self) -> None:
        """Take away everything that is staged."""
        for name in ("root.json", "targets.json"):
            (self.folder / STAGED / name).unlink(missing_ok=True)
        for path in sorted((self.folder / STAGED / "targets").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def online_signer(self) -> Signer:
        """Who signs snapshot and timestamp."""
        return open_online(self.folder, self.online_key)


def hashed_name(target: TargetFile) -> str:
    """The name of a target's file among the target files (consistent snapshots, TUF 1.0.34 section 6.2)."""
    folder, slash, name = target.path.rpartition("/")
    return f"{folder}{slash}{target.hashes['sha256']}.{name}"


def open_online(folder: Path, reference: str) -> Signer:
    """Who signs with the online key of a repository; a relative path is taken from its folder."""
    if ":" not in reference:
        reference = str(folder / reference)
    return open_signer(reference)


def _versions(folder: Path, role: str) -> list[int]:
    return [int(path.name.partition(".")[0]) for path in folder.glob(f"*.{role}.json")]


def _read(path: Path) -> Metadata[T]:
    try:
        found: Metadata[T] = Metadata.from_bytes(path.read_bytes())
        return found
    except (OSError, DeserializationError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; restore it from a backup") from None


def encode(metadata: Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp]) -> bytes:
    """Metadata as it stands in files."""
    return metadata.to_bytes(_JSON)
