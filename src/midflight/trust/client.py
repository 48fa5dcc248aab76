"""Gets content: what exists, by verified TUF metadata, and the files, which are as they were signed or not there.

All rules of the TUF client workflow (specification 1.0.34 section 5) are those of ``tuf.ngclient``. This adds where
metadata is kept, one error a case, downloads that go on where they stopped, folders as sources, and the catalog.

Layout of a client's folder: ``root.json`` (the root that this device was enrolled with), ``metadata/`` (TUF's own),
``partial/`` (downloads that are not complete).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from midflight.errors import InputError
from midflight.patch.fields import FieldError
from midflight.trust import errors
from midflight.trust.content import Catalog, Content, catalog_of
from midflight.trust.fetching import CachedFetcher, FileFetcher, HttpFetcher, Source, fetcher_of, source_of, target_url
from midflight.trust.files import sync_folder, write_new
from midflight.trust.pinning import Pin, Timeouts
from midflight.trust.serverrecord import MAX_RECORD, ServerRecord, decode_record
from midflight.trust.serverrecord import TARGET as SERVER_TARGET

ROOT = "root.json"
METADATA = "metadata"
PARTIAL = "partial"
ATTEMPTS = 4
"""How often one download begins again where the connection broke off, while each attempt brings something."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest sizes that are read, in bytes."""

    root: int = 512 << 10
    timestamp: int = 16 << 10
    snapshot: int = 256 << 10
    targets: int = 32 << 20
    file: int = 4 << 30
    """Of a target."""


class ContentClient:
    """Follows one repository, from a root that was trusted from the beginning.

    One at a time may use a folder.

    Args:
        folder: the client's own; made by :meth:`bootstrap`.
        source: base URL, or a folder (a mirror, or ``public`` of a repository).
        proxy: ``http://[user:password@]host:port``.
        pins: keys of the source, where that is the server itself, whose certificate no authority need have issued.
    """

    def __init__(
        self,
        folder: Path,
        source: str | Path | Source,
        proxy: str | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        pins: Iterable[Pin] = (),
    ) -> None:
        self.folder = folder
        self.source = source if isinstance(source, Source) else source_of(source)
        self.limits = limits or Limits()
        self._fetcher: HttpFetcher | FileFetcher = fetcher_of(self.source, proxy, timeouts, pins)
        self._updater: Updater | None = None
        try:
            self._root = (folder / ROOT).read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read the root of trust {folder / ROOT}: {error.strerror}; enroll this device"
            ) from None

    @classmethod
    def bootstrap(cls, folder: Path, root: bytes, fingerprint: str | None = None) -> None:
        """Trust a root from now on. It comes with the agent's package or from the enrollment, over a pinned connection.

        Args:
            root: root metadata, of any version of the repository.
            fingerprint: sha256 of ``root`` in hex, when the person who enrolls the device was given it.

        Raises:
            ContentError: the root is not what the fingerprint says, or no root at all.
            InputError: another root is trusted in that folder already.
        """
        if fingerprint is not None and sha256(root).hexdigest() != fingerprint.lower():
            raise errors.ContentAltered(
                f"the server's root of trust has the sha256 {sha256(root).hexdigest()}, not {fingerprint.lower()} as "
                "was given; ask whoever runs the server which is right before you trust it"
            )
        with _translated("root.json"):
            metadata: Metadata[Root] = Metadata.from_bytes(root)
            if metadata.signed.type != Root.type:
                raise ValueError(f"it is {metadata.signed.type} metadata, not root")
            metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
        for path in (folder, folder / METADATA, folder / PARTIAL):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / ROOT).exists():
            if (folder / ROOT).read_bytes() != root:
                raise InputError(f"{folder} trusts another root already; remove it to trust a new one")
            return
        write_new({folder / ROOT: (root, 0o644)})
        sync_folder(folder)

    # --- metadata --------------------------------------------------------------------------------------------------

    def refresh(self) -> Catalog:
        """Get the newest metadata and return the catalog.

        Raises:
            ContentError: one class a case; what was known before stays as it was.
        """
        return self._follow(self._fetcher)

    def cached(self) -> Catalog:
        """The catalog by the metadata that was kept, without a look at the source.

        Raises:
            MetadataExpired: it is over, so the source must be asked.
            ContentError: nothing was kept, or it is damaged.
        """
        return self._follow(CachedFetcher(self.folder / METADATA))

    def find(self, path: str) -> TargetFile:
        """What is signed of a target.

        Raises:
            ContentMissing: there is no such target.
        """
        if self._updater is None:
            self.refresh()
        assert self._updater is not None
        with _translated(path):
            target = self._updater.get_targetinfo(path)
        if target is None:
            raise errors.ContentMissing(f"the repository has no {path}; it may have been revoked")
        return target

    def server_record(self) -> ServerRecord | None:
        """The record by which devices know the server; None when the repository has none.

        Raises:
            TrustError: it cannot be had, or not read.
        """
        try:
            target = self.find(SERVER_TARGET)
        except errors.ContentMissing:
            return None
        if target.length > MAX_RECORD:
            raise errors.EndlessData(f"{SERVER_TARGET} has {target.length} bytes, and {MAX_RECORD} are allowed")
        final = self.folder / SERVER_TARGET
        self.download_target(target, final)
        return decode_record(final.read_bytes())

    # --- files -----------------------------------------------------------------------------------------------------

    def download(self, content: Content, folder: Path) -> Path:
        """Have the file of a piece of content in a folder, named by its hash; returns its path.

        A file that is there and right is not fetched again. What comes of a broken connection is kept, and the next
        call goes on there, also in another process.

        Raises:
            ContentError: one class a case.
        """
        target = self.find(content.path)
        if target.hashes.get("sha256") != content.sha256 or target.length != content.length:
            raise errors.ContentAltered(f"{content.path} was replaced in the repository meanwhile; refresh")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        final = folder / f"{content.sha256}.{content.path.rpartition('/')[2]}"
        self.download_target(target, final)
        return final

    def download_target(self, target: TargetFile, final: Path) -> None:
        """Have the file of a target at ``final``, as :meth:`download` does it."""
        if target.length > self.limits.file:
            raise errors.EndlessData(f"{target.path} has {target.length} bytes, and {self.limits.file} are allowed")
        if _is_right(target, final):
            return
        algorithm, digest = next(iter(target.hashes.items()))
        digest = target.hashes.get("sha256", digest)
        partial = self.folder / PARTIAL / f"{sha256(f'{algorithm}{digest}'.encode()).hexdigest()}.part"
        partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder, slash, name = target.path.rpartition("/")
        if self._prefixed():
            name = f"{digest}.{name}"
        url = target_url(self.source, f"{folder}{slash}{name}")
        with _translated(target.path):
            for attempt in range(ATTEMPTS):
                before = _size(partial)
                try:
                    self._fetch_into(url, partial, target.length)
                    break
                except (tuf_errors.DownloadHTTPError, tuf_errors.DownloadLengthMismatchError):
                    raise
                except tuf_errors.DownloadError:
                    if attempt == ATTEMPTS - 1 or _size(partial) <= before:
                        raise
            try:
                with open(partial, "rb") as file:
                    target.verify_length_and_hashes(file)
            except tuf_errors.LengthOrHashMismatchError:
                partial.unlink()
                raise
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.replace(final)
        sync_folder(final.parent)

    def forget_partial(self) -> int:
        """Delete what is kept of downloads that are not complete; returns how many bytes."""
        freed = 0
        for path in (self.folder / PARTIAL).glob("*.part"):
            freed += _size(path)
            path.unlink(missing_ok=True)
        return freed

    # --- inside ----------------------------------------------------------------------------------------------------

    def _follow(self, fetcher: FetcherInterface) -> Catalog:
        self._updater = None
        metadata = self.folder / METADATA
        metadata.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _translated(self.source.metadata):
            updater = Updater(
                str(metadata),
                self.source.metadata,
                fetcher=fetcher,
                config=UpdaterConfig(
                    root_max_length=self.limits.root,
                    timestamp_max_length=self.limits.timestamp,
                    snapshot_max_length=self.limits.snapshot,
                    targets_max_length=self.limits.targets,
                ),
                bootstrap=self._root,
            )
            updater.refresh()
            # What refresh() has verified last is what it has written there.
            targets: Metadata[Targets] = Metadata.from_file(str(metadata / "targets.json"))
            try:
                catalog = catalog_of(targets.signed)
            except FieldError as error:
                raise errors.MetadataMalformed(
                    f"the list of revocations cannot be read: {error}; update Midflight on this machine"
                ) from None
        self._updater = updater
        return catalog

    def _prefixed(self) -> bool:
        """Whether target files are named by their hash."""
        # tuf has a link to the newest one besides, which not every system can make
        kept = (self.folder / METADATA / "root_history").glob(f"*.{ROOT}")
        newest = max(kept, key=lambda path: int(path.name.partition(".")[0]))
        root = Metadata.from_file(str(newest)).signed
        return bool(root.consistent_snapshot)

    def _fetch_into(self, url: str, partial: Path, length: int) -> None:
        """Bring a partial file up to its length, from wherever it ends."""
        have = _size(partial)
        if have == length:
            return
        if have > length:
            partial.unlink()
            have = 0
        start, pieces = self._fetcher.open(url, have, length)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        with open(descriptor, "wb") as file:
            file.truncate(start)
            file.seek(start)
            for piece in pieces:
                start += len(piece)
                if start > length:
                    file.truncate(0)
                    raise tuf_errors.DownloadLengthMismatchError(f"{url}: more than {length} bytes")
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if start < length:
            raise tuf_errors.DownloadError(f"{url}: ended after {start} of {length} bytes")


def _is_right(target: TargetFile, path: Path) -> bool:
    with suppress(OSError, tuf_errors.LengthOrHashMismatchError), open(path, "rb") as file:
        target.verify_length_and_hashes(file)
        return True
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn the errors of TUF into ours, one class a case."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise errors.MetadataExpired(f"{what}: {error}; the source is frozen, or nobody renews it") from None
    except tuf_errors.BadVersionNumberError as error:
        raise errors.MetadataRollback(f"{what}: {error}; the source has less than was seen before") from None
    except tuf_errors.UnsignedMetadataError as error:
        raise errors.MetadataUnsigned(f"{what}: {error}; it does not come from who should make it") from None
    except tuf_errors.LengthOrHashMismatchError as error:
        raise errors.ContentAltered(f"{what}: {error}; it was altered on its way") from None
    except tuf_errors.DownloadLengthMismatchError as error:
        raise errors.EndlessData(f"{what}: {error}; the rest was not read") from None
    except tuf_errors.SlowRetrievalError as error:
        raise errors.SourceSlow(f"{what}: {error or 'too slow'}; try again later") from None
    except tuf_errors.DownloadHTTPError as error:
        if error.status_code in (403, 404, 410):
            raise errors.ContentMissing(f"{what}: {error}; the source is not complete") from None
        raise errors.SourceUnreachable(f"{what}: {error}; try again later") from None
    except tuf_errors.DownloadError as error:
        raise errors.SourceUnreachable(f"{what}: {error}; check address, network and proxy") from None
    except (tuf_errors.RepositoryError, DeserializationError, ValueError) as error:
        raise errors.MetadataMalformed(f"{what}: {' '.join(str(error).split())}; it cannot be read") from None
