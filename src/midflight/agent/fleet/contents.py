"""Content on this device: what exists by the repository's metadata, and the verified files that are kept.

Where metadata cannot be had, what was verified before counts until it is over; files are fetched on from where a
connection broke off. Files are named by their sha256, so that one is never taken for another.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from pathlib import Path

from midflight.agent.fleet.enrollment import Enrolled, client_of
from midflight.errors import InputError, PatchFileError
from midflight.patch.hotpatch import Hotpatch, read_vouched
from midflight.patch.signature import PublicKey
from midflight.process.faults import point
from midflight.trust.content import Catalog, Content
from midflight.trust.errors import ContentError
from midflight.trust.pinning import Timeouts
from midflight.trust.serverrecord import ServerRecord

FOLDER = "content"


class DiskFull(ContentError):
    """There is no room for a download, which goes on where it stopped when there is."""

    reason = "disk_low"


class Mismatch(ContentError):
    """Content is not what its description says: signed so, and no matter of how it came here."""

    reason = "content_mismatch"


class Contents:
    """The content of one device.

    Args:
        state: the agent's folder of state.
        trusted: keys of this machine that may have signed hotpatches, beside those that the repository names. Where
            there is any key, one must have signed each; where there is none, the repository's word is enough.
    """

    def __init__(
        self,
        state: Path,
        enrolled: Enrolled,
        trusted: Sequence[PublicKey] = (),
        mirror: Path | None = None,
        proxy: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.folder = state / FOLDER
        self._trusted = trusted
        self._proxy, self._timeouts = proxy, timeouts
        self._places = [str(mirror)] if mirror is not None else list(enrolled.repositories)
        self._enrolled = enrolled
        self.catalog: Catalog | None = None
        """As it was verified last; None: not in this run."""
        self._hotpatches: dict[str, Hotpatch] = {}
        self._renew()

    def _renew(self) -> None:
        self._client = client_of(self._enrolled, self._places, self._proxy, self._timeouts)

    def follow(self, enrolled: Enrolled) -> None:
        """The server has other pins or addresses now."""
        self._enrolled = enrolled
        self._renew()

    def refresh(self) -> tuple[Catalog, ServerRecord | None]:
        """Get the newest metadata, and the record of the server with it.

        Raises:
            ContentError: it cannot be had, or is not believed. Another place is asked the next time.
        """
        try:
            with _full_disk():
                self.catalog = self._client.refresh()
                point("fleet-refreshed")
                return self.catalog, self._client.server_record()
        except (ContentError, InputError):
            self._places.append(self._places.pop(0))
            self._renew()
            raise

    def known(self) -> Catalog:
        """The metadata that was verified last, which is not over.

        Raises:
            ContentError: there is none; :meth:`refresh`.
        """
        with _full_disk():
            self.catalog = self._client.cached()
        return self.catalog

    def fetched(self, sha256: str) -> Path | None:
        """The file of a piece of content, if it is here."""
        return next(iter(sorted(self.folder.glob(f"{sha256}.*"))), None)

    def fetch(self, content: Content) -> Path:
        """Have the file of a piece of content.

        Raises:
            ContentError: it cannot be had; what came of it is kept.
        """
        point("fleet-fetch")
        with _full_disk():
            path = self._client.download(content, self.folder)
        point("fleet-fetched")
        return path

    def hotpatch(self, sha256: str, path: Path) -> Hotpatch:
        """A hotpatch that was fetched; read once.

        Raises:
            PatchFileError: it cannot be read.
        """
        if sha256 not in self._hotpatches:
            self._hotpatches[sha256] = read_vouched(path, sha256, (*self._trusted, *self._enrolled.hotpatch_keys))
        return self._hotpatches[sha256]

    def described(self, content: Content, path: Path) -> Hotpatch:
        """A hotpatch that was fetched, if it is what its description says.

        Raises:
            Mismatch: it is not.
            PatchFileError: it cannot be read.
        """
        hotpatch = self.hotpatch(content.sha256, path)
        manifest, about = hotpatch.manifest, content.about
        images = {target.build_id for target in manifest.targets}
        if (manifest.name, manifest.sequence) != (about.name, about.sequence) or images != set(about.images):
            raise Mismatch(
                f"{content.path} is {manifest.name} {manifest.sequence}, and was signed as {about.name} "
                f"{about.sequence}, or for other images; publish it with its own description"
            )
        return hotpatch

    def prune(self, keep: Collection[str]) -> None:
        """Remove the files of all content but this (by sha256)."""
        for path in self.folder.glob("*.*"):
            if path.name.partition(".")[0] not in keep:
                path.unlink(missing_ok=True)
        for sha256 in self._hotpatches.keys() - set(keep):
            del self._hotpatches[sha256]


class _full_disk:
    """Tells a full disk, and other failures to write, from a fault of the content."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, PatchFileError):
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
            raise DiskFull(f"{error.filename or 'content'} cannot be written: {why}; free some space") from None
