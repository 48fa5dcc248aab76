"""A TUF repository in a folder: what exists is signed offline by several people, that it is fresh is signed online.

Changes are staged, signed by one key holder after the other, and published when the thresholds are met. Roles (TUF
specification 1.0.34): *root* says whose keys count, *targets* what content exists, both signed offline by a threshold
of keys; *snapshot* and *timestamp* say what is current, signed online, and expire soon. Layout of the folder:

    repository.json     settings: how long metadata lasts, which online key
    staged/             root.json, targets.json with the signatures so far; targets/ has new files
    public/             what any web server serves (midflight.trust.generations)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Role, Root, TargetFile, Targets

from midflight.errors import InputError
from midflight.patch.fields import FieldError
from midflight.trust.content import Content, Description, Revocation, describe, set_revocations
from midflight.trust.files import replace_file
from midflight.trust.generations import locked
from midflight.trust.paths import target_path
from midflight.trust.repositoryfolder import (
    OFFLINE,
    ONLINE,
    STAGED,
    Lifetimes,
    OfflineRole,
    RepositoryFolder,
    hashed_name,
    open_online,
)
from midflight.trust.serverrecord import TARGET as SERVER_TARGET
from midflight.trust.serverrecord import ServerRecord, encode_record


class Repository(RepositoryFolder):
    """A repository whose changes are staged. Times are given, so that all of it can be tested."""

    @classmethod
    def create(
        cls,
        folder: Path,
        root_keys: Sequence[Key],
        root_threshold: int,
        targets_keys: Sequence[Key],
        targets_threshold: int,
        online_key: str,
        now: datetime,
        lifetimes: Lifetimes | None = None,
    ) -> Repository:
        """Make a repository in a new or empty folder. Its first root and targets are staged, to be signed.

        Args:
            online_key: reference of the key for snapshot and timestamp (:mod:`midflight.trust.signers`); a relative
                path is taken from the folder.

        Raises:
            InputError: the folder is in use, a threshold cannot be met, or the online key is an offline one too.
        """
        lifetimes = lifetimes or Lifetimes()
        if folder.exists() and any(entry.stem != Path(online_key).stem for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty; give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        online = open_online(folder, online_key).public_key
        root = Root(version=1, expires=now + lifetimes.root, consistent_snapshot=True)
        for role, keys, threshold in (
            ("root", root_keys, root_threshold),
            ("targets", targets_keys, targets_threshold),
            ("snapshot", [online], 1),
            ("timestamp", [online], 1),
        ):
            _check_threshold(role, threshold, len({key.keyid for key in keys}))
            root.roles[role] = Role([], threshold)
            for key in keys:
                root.add_key(key, role)
        _check_roles(root)
        if min(lifetimes.root, lifetimes.targets, lifetimes.snapshot, lifetimes.timestamp) < timedelta(hours=1):
            raise InputError("metadata must last for at least an hour")
        (folder / STAGED / "targets").mkdir(parents=True)
        made = cls.__new__(cls)
        made.folder, made.lifetimes, made.online_key = folder, lifetimes, online_key
        made.stage("root", Metadata(root))
        made.stage("targets", Metadata(Targets(version=1, expires=now + lifetimes.targets)))
        made.write_settings()
        return made

    def add(self, source: Path, path: str, about: Description, now: datetime) -> Content:
        """Stage a piece of content. A file with the same path is replaced.

        Raises:
            InputError: the path or the description is not allowed, or this content was revoked.
        """
        with locked(self.folder):
            try:
                target = TargetFile.from_file(target_path(path), str(source), ["sha256"])
                describe(target, about)
            except FieldError as error:
                raise InputError(f"{source}: {error}") from None
            except OSError as error:
                raise InputError(f"cannot read {source}: {error.strerror}; check the path") from None
            if path == SERVER_TARGET:
                raise InputError(f"{SERVER_TARGET} is the server's own record; choose another path")
            catalog = self.catalog()
            revocation = catalog.revocation(target.hashes["sha256"], path)
            if revocation is not None:
                raise InputError(f"{path} was revoked: {revocation.reason}; publish it anew with another sequence")
            self._add(target, source, now)
        return Content(path, target.hashes["sha256"], target.length, about)

    def set_server_record(self, server: ServerRecord, now: datetime) -> None:
        """Stage the record by which devices know the server.

        Raises:
            TrustError: no device would take it.
        """
        data = encode_record(server)
        with locked(self.folder):
            target = TargetFile.from_data(SERVER_TARGET, data, ["sha256"])
            source = self.folder / STAGED / SERVER_TARGET
            replace_file(source, data)
            self._add(target, source, now)
            source.unlink()

    def revoke(self, path: str, reason: str, revert: bool, now: datetime) -> Revocation:
        """Stage that a piece of content is taken back for ever.

        Args:
            revert: whether agents should take it out of processes where it runs.

        Raises:
            InputError: there is no such content.
        """
        with locked(self.folder):
            catalog = self.catalog()
            content = catalog.contents.get(path)
            if content is None:
                raise InputError(f"there is no content {path}; see midflight repo status {self.folder}")
            moment = now.replace(microsecond=0)
            about = content.about
            revocation = Revocation(path, content.sha256, about.name, about.sequence, reason, moment, revert)
            targets = self.targets()
            del targets.targets[path]
            try:
                set_revocations(targets, [*catalog.revoked, revocation])
            except FieldError as error:
                raise InputError(f"{path} cannot be revoked so: {error}") from None
            self._change_targets(targets, now)
        return revocation

    def change_keys(
        self,
        role: OfflineRole | Literal["online"],
        add: Iterable[Key],
        remove: Iterable[str],
        threshold: int | None,
        now: datetime,
    ) -> Root:
        """Stage another set of keys for a role (``online``: snapshot and timestamp).

        Args:
            remove: key ids.

        Raises:
            InputError: a key is not there, or the threshold could not be met.
        """
        with locked(self.folder):
            root = self.root()
            add, remove = list(add), list(remove)
            for name in ONLINE if role == "online" else (role,):
                for keyid in remove:
                    if keyid not in root.roles[name].keyids:
                        raise InputError(f"key {keyid[:16]}… does not sign {name}; see midflight repo status")
                    root.revoke_key(keyid, name)
                for key in add:
                    root.add_key(key, name)
                if threshold is not None:
                    root.roles[name].threshold = threshold
            _check_roles(root)
            self._change_root(root, now)
        return root

    def use_online_key(self, reference: str) -> None:
        """Note with which key snapshot and timestamp are signed from the next publication on."""
        with locked(self.folder):
            self.online_key = reference
            self.write_settings()

    def extend(self, roles: Iterable[OfflineRole], now: datetime) -> None:
        """Stage roles again with nothing but a later end."""
        with locked(self.folder):
            for role in roles:
                if role == "root":
                    self._change_root(self.root(), now)
                else:
                    self._change_targets(self.targets(), now)

    def discard(self) -> None:
        """Forget everything that is staged.

        Raises:
            InputError: nothing was published yet, so nothing would be left.
        """
        with locked(self.folder):
            if self.published(Root) is None:
                raise InputError(f"{self.folder} was never published; delete the folder instead")
            self.tidy()

    def _add(self, target: TargetFile, source: Path, now: datetime) -> None:
        final = self.folder / STAGED / "targets" / hashed_name(target)
        final.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        if sha256(content).hexdigest() != target.hashes["sha256"]:
            raise InputError(f"{source} changed while it was read; try again")
        replace_file(final, content)
        targets = self.targets()
        targets.targets[target.path] = target
        self._change_targets(targets, now)

    def _change_root(self, root: Root, now: datetime) -> None:
        current = self.published(Root)
        root.version = current.signed.version + 1 if current is not None else 1
        root.expires = now + self.lifetimes.root
        self.stage("root", Metadata(root))

    def _change_targets(self, targets: Targets, now: datetime) -> None:
        current = self.published(Targets)
        targets.version = current.signed.version + 1 if current is not None else 1
        targets.expires = now + self.lifetimes.targets
        self.stage("targets", Metadata(targets))


def _check_threshold(role: str, threshold: int, keys: int) -> None:
    if not 1 <= threshold <= keys:
        raise InputError(f"{role} would need {threshold} of {keys} keys; give a threshold that can be met")


def _check_roles(root: Root) -> None:
    """Thresholds that can be met, and offline keys that are not online."""
    for name, role in root.roles.items():
        _check_threshold(name, role.threshold, len(role.keyids))
    online = {keyid for name in ONLINE for keyid in root.roles[name].keyids}
    for name in OFFLINE:
        both = online & set(root.roles[name].keyids)
        if both:
            raise InputError(
                f"key {min(both)[:16]}… would sign {name} and be online; a stolen server could then add content"
            )
