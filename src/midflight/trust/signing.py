"""Signing what is staged: by one key holder after the other, here or in copies of the repository."""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from midflight.errors import InputError
from midflight.trust.generations import locked
from midflight.trust.repositoryfolder import OFFLINE, STAGED, OfflineRole, RepositoryFolder
from midflight.trust.signers import sign_failure


def sign(repository: RepositoryFolder, signer: Signer, reference: str = "the key") -> tuple[OfflineRole, ...]:
    """Sign what is staged with one key; returns the roles that it signed now.

    Raises:
        InputError: nothing is staged, the key has no say here, or it did not sign.
    """
    keyid = signer.public_key.keyid
    done: list[OfflineRole] = []
    with locked(repository.folder):
        states = {role: repository.signatures(role) for role in OFFLINE}
        if not any(states.values()):
            raise InputError(f"nothing is staged in {repository.folder}, so there is nothing to sign")
        for role, state in states.items():
            if state is None or keyid not in state.open:
                continue
            metadata = repository.staged(Root) if role == "root" else repository.staged(Targets)
            assert metadata is not None
            try:
                metadata.sign(signer, append=True)
            except Exception as error:  # tokens and services have errors of their own
                raise sign_failure(reference, error) from None
            repository.stage(role, metadata)
            done.append(role)
    if not done and not any(state and keyid in state.signed for state in states.values()):
        raise InputError(f"key {keyid[:16]}… has no say over what is staged; see midflight repo status")
    return tuple(done)


def merge(repository: RepositoryFolder, other: Path) -> int:
    """Take the signatures that others made in a copy of this repository; returns how many were new and valid.

    Args:
        other: the copy, its ``staged`` folder, or one file of it.

    Raises:
        InputError: the copy does not have what is staged here, so its signatures are for something else.
    """
    files = _files(other)
    with locked(repository.folder):
        taken = 0
        for metadata in (repository.staged(Root), repository.staged(Targets)):
            path = files.get(metadata.signed.type) if metadata is not None else None
            if metadata is None or path is None:
                continue
            try:
                theirs: Metadata[Root] | Metadata[Targets] = Metadata.from_bytes(path.read_bytes())
            except (OSError, DeserializationError) as error:
                raise InputError(f"{path} cannot be read: {error}") from None
            if theirs.signed_bytes != metadata.signed_bytes:
                raise InputError(
                    f"{path} is not what is staged in {repository.folder}; sign a copy of what is staged now"
                )
            metadata.signatures = {**theirs.signatures, **metadata.signatures}
            role: OfflineRole = "root" if metadata.signed.type == "root" else "targets"
            before = repository.signatures(role)
            repository.stage(role, metadata)
            after = repository.signatures(role)
            assert before is not None and after is not None
            taken += len(after.signed) - len(before.signed)
        return taken


def _files(other: Path) -> dict[str, Path]:
    """The staged files of a copy, by role."""
    if other.is_file():
        return {other.stem: other}
    folder = other if (other / "targets.json").exists() or (other / "root.json").exists() else other / STAGED
    found = {role: folder / f"{role}.json" for role in ("root", "targets") if (folder / f"{role}.json").exists()}
    if not found:
        raise InputError(f"{other} has nothing staged; give a copy of the repository, or a signed file")
    return found
