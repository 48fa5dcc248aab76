"""Publishing a repository: proving what is staged the way a client does, then one step that makes it visible.

Here the online keys are used, and they can do no more than say which of the versions signed offline is current.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from midflight.errors import InputError
from midflight.trust.generations import TARGETS, locked, put_metadata, put_target, remove_targets
from midflight.trust.repositoryfolder import ONLINE, RepositoryFolder, encode, hashed_name
from midflight.trust.signers import sign_failure


def publish(repository: RepositoryFolder, now: datetime) -> None:
    """Make what is staged visible, in one step, with fresh snapshot and timestamp.

    Raises:
        InputError: something is not signed by enough keys, a file is missing, metadata is over, or the online key
            cannot be used.
    """
    with locked(repository.folder):
        staged_root, staged_targets = repository.staged(Root), repository.staged(Targets)
        root = _provable_root(repository, staged_root, now)
        targets = staged_targets or repository.published(Targets)
        assert targets is not None, "the first targets are staged when the repository is made"
        _check_signed(repository, root, targets)
        if targets.signed.is_expired(now):
            raise InputError("the targets metadata is over; run midflight repo renew, sign, and publish again")
        files = {}
        for target in targets.signed.targets.values():
            files[hashed_name(target)] = repository.find_file(target)
        metadata: dict[str, bytes] = {}
        if staged_root is not None:
            metadata[f"{staged_root.signed.version}.root.json"] = encode(staged_root)
        if staged_targets is not None:
            metadata[f"{staged_targets.signed.version}.targets.json"] = encode(staged_targets)
        metadata |= _online(repository, root, targets.signed.version, now, snapshot=True)
        previous = repository.published(Targets)
        for name, source in files.items():
            put_target(repository.public, name, source)
        put_metadata(repository.public, metadata)
        # Nothing below matters for what is visible.
        repository.tidy()
        old = previous.signed.targets.values() if previous is not None else ()
        remove_targets(repository.public / TARGETS, {*files, *(hashed_name(target) for target in old)})


def renew_online(repository: RepositoryFolder | Path, now: datetime) -> datetime:
    """Keep a published repository fresh: sign snapshot and timestamp anew where half of their time is over.

    For the server to call; cheap when nothing is due. Returns when it should be called again.

    Raises:
        InputError: nothing is published yet, or the online key cannot be used.
    """
    if isinstance(repository, Path):
        repository = RepositoryFolder(repository)
    with locked(repository.folder):
        root, targets = repository.published(Root), repository.published(Targets)
        snapshot, timestamp = repository.published(Snapshot), repository.published(Timestamp)
        if root is None or targets is None or snapshot is None or timestamp is None:
            raise InputError(f"{repository.folder} is not published yet; sign it and run midflight repo publish")
        late = snapshot.signed.expires - repository.lifetimes.snapshot / 2 <= now
        if late or timestamp.signed.expires - repository.lifetimes.timestamp / 2 <= now:
            files = _online(repository, root.signed, targets.signed.version, now, snapshot=late)
            put_metadata(repository.public, files)
            timestamp = repository.published(Timestamp)
            assert timestamp is not None
        return timestamp.signed.expires - repository.lifetimes.timestamp / 2


def _provable_root(repository: RepositoryFolder, staged: Metadata[Root] | None, now: datetime) -> Root:
    """The root that will be in force, proven the way a client proves it."""
    current = repository.published(Root)
    metadata = staged or current
    assert metadata is not None, "the first root is staged when the repository is made"
    if staged is not None:
        previous = current.signed if current is not None else None
        result = staged.signed.get_root_verification_result(previous, staged.signed_bytes, staged.signatures)
        if not result:
            state = repository.signatures("root")
            assert state is not None
            raise InputError(f"root is not signed by enough keys: {state.missing} more must sign")
    if metadata.signed.is_expired(now):
        raise InputError("the root metadata is over; run midflight repo renew --root, sign, and publish again")
    return metadata.signed


def _check_signed(repository: RepositoryFolder, root: Root, targets: Metadata[Targets]) -> None:
    try:
        root.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    except UnsignedMetadataError:
        state = repository.signatures("targets")
        if state is None:
            raise InputError(
                "the published targets are not signed by the new keys; run midflight repo renew, sign, and publish"
            ) from None
        raise InputError(f"targets is not signed by enough keys: {state.missing} more must sign") from None


def _online(
    repository: RepositoryFolder, root: Root, targets_version: int, now: datetime, *, snapshot: bool
) -> dict[str, bytes]:
    """New timestamp metadata, with new snapshot metadata or with the published one."""
    signer = repository.online_signer()
    for role in ONLINE:
        if signer.public_key.keyid not in root.roles[role].keyids:
            raise InputError(
                f"the online key {repository.online_key} does not sign {role}; see midflight repo rotate --online-key"
            )
    files: dict[str, bytes] = {}
    old_snapshot, old_timestamp = repository.published(Snapshot), repository.published(Timestamp)
    version = old_snapshot.signed.version if old_snapshot is not None else 0
    if snapshot or old_snapshot is None:
        version += 1
        made = Snapshot(
            version=version,
            expires=now + repository.lifetimes.snapshot,
            meta={"targets.json": MetaFile(targets_version)},
        )
        files[f"{version}.snapshot.json"] = _signed(Metadata(made), signer, repository.online_key)
    stamp = Timestamp(
        version=(old_timestamp.signed.version if old_timestamp is not None else 0) + 1,
        expires=now + repository.lifetimes.timestamp,
        snapshot_meta=MetaFile(version),
    )
    files["timestamp.json"] = _signed(Metadata(stamp), signer, repository.online_key)
    return files


def _signed(metadata: Metadata[Snapshot] | Metadata[Timestamp], signer: Signer, reference: str) -> bytes:
    try:
        metadata.sign(signer)
    except Exception as error:  # tokens and services have errors of their own
        raise sign_failure(reference, error) from None
    return encode(metadata)
