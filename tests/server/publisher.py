"""Publishes content to a server's repository with real offline keys. The bytes of the content are made up."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from midflight.trust.content import Content, Description, Package
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.signing import sign


class Publisher:
    """A repository, and the one who holds its offline key."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.folder = folder
        self._signer = CryptoSigner.generate_ed25519()
        online = folder.parent / f"{folder.name}-online.key"
        online.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
        online.chmod(0o600)
        public = [self._signer.public_key]
        self.repository = Repository.create(folder, public, 1, public, 1, str(online), now)
        self._release()

    def _release(self) -> None:
        sign(self.repository, self._signer)
        publish(self.repository, datetime.now(UTC))

    def publish(
        self, name: str, sequence: int, build_ids: tuple[str, ...], kind: str = "hotpatch", severity: str = "high"
    ) -> Content:
        """Add a piece of content, sign and publish."""
        source = self.folder.parent / "content"
        source.write_bytes(f"{kind} {name} {sequence}".encode() * 10)
        about = Description(
            kind="hotpatch" if kind == "hotpatch" else "baseline",
            name=name,
            sequence=sequence,
            images=build_ids,
            cves=(f"CVE-2026-{10000 + sequence}",),
            classification="security",
            severity=severity,  # type: ignore[arg-type]
            cvss="7.5",
            description="",
            package=None if kind == "hotpatch" else Package("deb", name, f"1.{sequence}", "amd64"),
        )
        content = self.repository.add(source, f"{name}/{kind}-{sequence}.{kind}", about, datetime.now(UTC))
        self._release()
        return content

    def revoke(self, path: str, reason: str = "crashes") -> None:
        """Take content back, for ever."""
        self.repository.revoke(path, reason, True, datetime.now(UTC))
        self._release()
