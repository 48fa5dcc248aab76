"""Where content comes from: a web server (through a proxy, if need be) or a folder, such as a disk that was carried in.

A source is laid out as ``public`` of a repository is: ``metadata/`` and ``targets/``. Nothing that comes from here is
believed before TUF has verified it, so a source needs no authentication; TLS, where it is used, is the system's own.
"""

from __future__ import annotations

import ssl
import time as clock
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from midflight.errors import InputError
from midflight.trust.pinning import USER_AGENT, Pin, Timeouts, pinned_context, pinned_pools, plainly

SLOWEST = 1024
"""Bytes a second. A source that keeps to less for long is given up: it may be holding updates back (slow retrieval)."""
PIECE = 64 << 10


class Fetcher(Protocol):
    """Reads files of a source."""

    def open(self, url: str, start: int, length: int) -> tuple[int, Iterator[bytes]]:
        """The file from byte ``start`` on, or from its beginning when the source cannot do that; where it begins, and
        its pieces. ``length`` bytes are expected in all, which decides how much time there is.

        Raises:
            DownloadError: see tuf.api.exceptions.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """Where the two halves of a repository are: URLs, http, https or file."""

    metadata: str
    targets: str

    @property
    def is_folder(self) -> bool:
        """Whether it is on this machine."""
        return self.metadata.startswith("file:")


def source_of(place: str | Path) -> Source:
    """A source from its base URL, or from a folder.

    Raises:
        InputError: it is neither.
    """
    text = str(place)
    if text.startswith(("http://", "https://")):
        base = text.rstrip("/")
    elif isinstance(place, Path) or "://" not in text:
        folder = Path(text).absolute()
        if not (folder / "metadata").is_dir():
            raise InputError(f"{folder} has no folder metadata; give a mirror, or the public folder of a repository")
        base = folder.as_uri()
    else:
        raise InputError(f"{text} is no source of content; give an http or https URL, or a folder")
    return Source(f"{base}/metadata/", f"{base}/targets/")


def fetcher_of(
    source: Source, proxy: str | None = None, timeouts: Timeouts | None = None, pins: Iterable[Pin] = ()
) -> HttpFetcher | FileFetcher:
    """What reads a source."""
    return FileFetcher() if source.is_folder else HttpFetcher(proxy, timeouts, pins)


class FileFetcher(FetcherInterface):
    """Reads ``file:`` URLs, and nothing outside of the folder that the URL begins with."""

    def open(self, url: str, start: int, length: int) -> tuple[int, Iterator[bytes]]:
        """See :class:`Fetcher`."""
        path = Path(url2pathname(urlsplit(url).path))
        try:
            size = path.stat().st_size
            file = open(path, "rb")  # noqa: SIM115 - closed when its pieces are read
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise DownloadHTTPError(f"{path} is missing", 404) from None
            raise DownloadError(f"cannot read {path}: {error.strerror}") from None
        start = start if start <= size else 0
        file.seek(start)

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(PIECE):
                    yield piece

        return start, pieces()

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.open(url, 0, 0)[1]


class HttpFetcher(FetcherInterface):
    """Reads http and https URLs; the certificates that the system trusts count for https.

    Args:
        proxy: ``http://[user:password@]host:port``.
        timeouts: ``total`` is for metadata; a target may take as long as it does at SLOWEST bytes a second.
        pins: keys that the source may have over https, when it is the server itself; none: the system's trust counts.
    """

    def __init__(self, proxy: str | None = None, timeouts: Timeouts | None = None, pins: Iterable[Pin] = ()) -> None:
        self._timeouts = timeouts or Timeouts()
        pinned = frozenset(pins)
        context = pinned_context() if pinned else ssl.create_default_context()
        self._pool: urllib3.PoolManager
        if proxy is None:
            self._pool = urllib3.PoolManager(ssl_context=context)
        else:
            where = urlsplit(proxy)
            credentials = f"{where.username}:{where.password or ''}" if where.username else None
            headers = urllib3.make_headers(proxy_basic_auth=credentials) if credentials else None
            self._pool = urllib3.ProxyManager(proxy, proxy_headers=headers, ssl_context=context)
        if pinned:
            self._pool.pool_classes_by_scheme = pinned_pools(pinned)

    def open(self, url: str, start: int, length: int) -> tuple[int, Iterator[bytes]]:
        """See :class:`Fetcher`. Redirects are followed, up to three: content may move to where it is served best."""
        headers = {"user-agent": USER_AGENT, "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        end = clock.monotonic() + self._timeouts.total + length / SLOWEST
        try:
            response = self._pool.request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                timeout=urllib3.Timeout(connect=self._timeouts.connect, read=self._timeouts.read),
                retries=urllib3.Retry(total=3, connect=1, read=0, redirect=3, status=0, other=0),
            )
        except urllib3.exceptions.HTTPError as error:
            raise _failure(url, error) from None
        if response.status == 416 and start:
            response.close()
            return self.open(url, 0, length)
        if response.status not in (200, 206):
            response.close()
            raise DownloadHTTPError(f"{url}: status {response.status}", response.status)
        if response.status == 206 and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            response.close()
            raise DownloadError(f"{url}: answers with another part than was asked for")
        return start if response.status == 206 else 0, self._pieces(url, response, end)

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.open(url, 0, 0)[1]

    def _pieces(self, url: str, response: urllib3.BaseHTTPResponse, end: float) -> Iterator[bytes]:
        try:
            while piece := response.read1(PIECE, decode_content=False):
                yield piece
                if clock.monotonic() > end:
                    raise SlowRetrievalError(f"{url}: too slow, given up")
        except urllib3.exceptions.HTTPError as error:
            raise _failure(url, error) from None
        finally:
            response.close()


class CachedFetcher(FetcherInterface):
    """Reads metadata that a client has kept already: all that is newest, is what we have."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name != "timestamp.json":
            raise DownloadHTTPError(f"what was kept is over by this machine's clock, or {name} is missing", 404)
        try:
            return iter([(self._folder / name).read_bytes()])
        except OSError:
            raise DownloadHTTPError(f"{name} is not among what was kept", 404) from None


def target_url(source: Source, name: str) -> str:
    """Where a target file is, by its hashed name."""
    return source.targets + quote(name, safe="/~+")


def _failure(url: str, error: urllib3.exceptions.HTTPError) -> DownloadError:
    reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    late = isinstance(reason, urllib3.exceptions.TimeoutError)
    if late and not isinstance(reason, urllib3.exceptions.NewConnectionError):
        return SlowRetrievalError(f"{url}: no answer in time")
    return DownloadError(f"{url}: {plainly(reason)}")
