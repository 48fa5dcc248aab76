"""A repository with real keys, and what attackers do to what it serves."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, Root

from midflight.trust.client import ContentClient
from midflight.trust.content import Content, Description
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.repositoryfolder import Lifetimes
from midflight.trust.signing import sign
from tests.trust.tls import Handler, serve

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
ABOUT = Description(
    kind="hotpatch",
    name="nginx-2026-42945",
    sequence=1,
    images=("ab" * 20,),
    cves=("CVE-2026-42945",),
    classification="security",
    severity="critical",
    cvss="9.8",
    description="Bounds of the script engine",
)


@dataclass
class Keys:
    """Three holders of offline keys, and the online key."""

    holders: list[CryptoSigner]
    online: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        """New keys; the online one in a file."""
        online = CryptoSigner.generate_ed25519()
        path = folder / "online.key"
        path.write_bytes(online.private_bytes)
        path.chmod(0o600)
        return cls([CryptoSigner.generate_ed25519() for _ in range(3)], path)


@dataclass
class World:
    """A repository that is published, two of three holders of keys signing."""

    repository: Repository
    keys: Keys
    folder: Path

    @classmethod
    def make(cls, folder: Path, now: datetime = NOW, lifetimes: Lifetimes | None = None) -> World:
        """A new one, with one hotpatch."""
        keys = Keys.make(folder)
        public = [holder.public_key for holder in keys.holders]
        repository = Repository.create(folder / "repo", public, 2, public, 2, str(keys.online), now, lifetimes)
        world = cls(repository, keys, folder)
        world.add(1, now=now)
        world.release(now)
        return world

    def add(self, sequence: int, data: bytes | None = None, now: datetime = NOW) -> Content:
        """Stage a hotpatch (of which only the bytes matter here)."""
        source = self.folder / "source"
        source.write_bytes(data if data is not None else b"hotpatch %d " % sequence * 1000)
        path = f"hotpatch/nginx/{sequence}.hotpatch"
        return self.repository.add(source, path, replace(ABOUT, sequence=sequence), now)

    def release(self, now: datetime = NOW, signers: list[Signer] | None = None) -> None:
        """Two holders sign, then it is published."""
        for signer in signers or list(self.keys.holders[:2]):
            sign(self.repository, signer)
        publish(self.repository, now)

    @property
    def first_root(self) -> bytes:
        """What devices are enrolled with."""
        return (self.repository.public / "metadata/1.root.json").read_bytes()

    def client(self, source: str | Path | None = None, name: str = "client", **options: object) -> ContentClient:
        """A device's client, enrolled with the first root."""
        ContentClient.bootstrap(self.folder / name, self.first_root)
        return ContentClient(self.folder / name, source or self.repository.public, **options)  # type: ignore[arg-type]

    def root(self) -> Root:
        """The published root."""
        found = self.repository.published(Root)
        assert found is not None
        return found.signed

    def forge(self, name: str, change: Callable[[Metadata], None], signers: list[Signer]) -> None:  # type: ignore[type-arg]
        """Replace visible metadata by an altered one, signed by whom the attacker can sign with."""
        path = self.repository.public / "metadata" / name
        metadata: Metadata = Metadata.from_bytes(path.read_bytes())  # type: ignore[type-arg]
        change(metadata)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        path.unlink()  # another generation may have the same file
        path.write_bytes(metadata.to_bytes())


@contextmanager
def serving(
    public: Path, before: Callable[[Handler, bytes], bool] | None = None, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve a repository over HTTP, with ranges. ``before`` may answer a request in its own way, and return True."""

    class Files(Handler):
        def do_GET(self) -> None:
            path = public / self.path.lstrip("/")
            if not path.is_file():
                self.answer(404, b"missing")
                return
            data = path.read_bytes()
            if before is not None and before(self, data):
                return
            asked = self.headers.get("range", "")
            if asked:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(data):
                    self.answer(416, b"")
                    return
                self.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
                return
            self.answer(200, data)

    with serve(Files, context) as url:
        yield url
