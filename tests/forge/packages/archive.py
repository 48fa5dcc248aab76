"""A small Debian archive on disk: source and binary packages made with dpkg's own tools, indexes as apt reads them."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge.packages.apt import codename

MAINTAINER = "N <n@localhost>"


def changelog_entry(name: str, version: str, text: str, date: str) -> str:
    """One entry of debian/changelog."""
    items = "\n".join(f"  * {line}" for line in text.splitlines())
    return f"{name} ({version}) bookworm; urgency=low\n\n{items}\n\n -- {MAINTAINER}  {date}\n"


@dataclass
class Archive:
    """The archive in ``folder``; ``etc`` is an /etc/apt that is configured for it."""

    folder: Path
    sources: list[str] = field(default_factory=list)
    binaries: list[str] = field(default_factory=list)

    @property
    def pool(self) -> Path:
        """Where the packages are."""
        return self.folder / "archive" / "pool"

    @property
    def etc(self) -> Path:
        """The system's apt configuration."""
        return self.folder / "etc"

    def add_source(self, name: str, version: str, original: Mapping[str, str], debian: Mapping[str, str]) -> Path:
        """Make a "3.0 (quilt)" source package; returns its .dsc."""
        self.pool.mkdir(parents=True, exist_ok=True)
        upstream = re.sub(r"^\d+:|-[^-]*$", "", version)
        tarball = self.pool / f"{name}_{upstream}.orig.tar.gz"
        if not tarball.exists():
            with tarfile.open(tarball, "w:gz") as archive:
                for path, text in original.items():
                    member = tarfile.TarInfo(f"{name}-{upstream}/{path}")
                    member.size, member.mtime = len(text.encode()), 1_600_000_000
                    archive.addfile(member, io.BytesIO(text.encode()))
        tree = self.pool / f"{name}-{upstream}-{version.replace(':', '_')}"
        with tarfile.open(tarball) as archive:
            archive.extractall(self.pool / "unpacked", filter="data")
        (self.pool / "unpacked" / f"{name}-{upstream}").rename(tree)
        for path, text in {"source/format": "3.0 (quilt)\n", **debian}.items():
            (tree / "debian" / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / "debian" / path).write_text(text)
        if (tree / "debian" / "rules").exists():
            (tree / "debian" / "rules").chmod(0o755)
        subprocess.run(["dpkg-source", "-b", tree.name], cwd=self.pool, check=True, capture_output=True)
        dsc = self.pool / f"{name}_{re.sub(r'^[0-9]+:', '', version)}.dsc"
        stanza = re.sub(r"(?m)^Source: (.*)$", r"Package: \1\nDirectory: pool", dsc.read_text(), count=1)
        for field_name, algorithm in (("Files", "md5"), ("Checksums-Sha256", "sha256")):
            line = f" {hashlib.new(algorithm, dsc.read_bytes()).hexdigest()} {dsc.stat().st_size} {dsc.name}"
            stanza = re.sub(rf"^{field_name}:\s*$", f"{field_name}:\n{line}", stanza, count=1, flags=re.MULTILINE)
        self.sources.append(stanza.strip() + "\n")
        return dsc

    def add_binary(self, name: str, version: str, files: Mapping[str, bytes], **fields: str) -> Path:
        """Make a binary package; further control fields by keyword (``Source="expat (1.0-1)"``); returns the .deb."""
        self.pool.mkdir(parents=True, exist_ok=True)
        root = self.pool / f"root-{name}-{version.replace(':', '_')}"
        (root / "DEBIAN").mkdir(parents=True)
        known = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": MAINTAINER}
        control = known | {key.replace("_", "-"): value for key, value in fields.items()}
        control.setdefault("Description", name)
        text = "".join(f"{key}: {value}\n" for key, value in control.items())
        (root / "DEBIAN" / "control").write_text(text)
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        deb = self.pool / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, deb], check=True, capture_output=True)
        content = deb.read_bytes()
        place = f"Filename: pool/{deb.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        self.binaries.append(text + place)
        return deb

    def publish(self) -> Path:
        """Write the indexes; returns the configuration."""
        root, release = self.folder / "archive", codename()
        suite = root / "dists" / release
        sums = []
        for path, stanzas in (
            ("main/source/Sources", self.sources),
            ("main/binary-amd64/Packages", self.binaries),
        ):
            index = suite / path
            index.parent.mkdir(parents=True, exist_ok=True)
            index.write_text("\n".join(stanzas))
            sums.append(f" {hashlib.sha256(index.read_bytes()).hexdigest()} {index.stat().st_size} {path}\n")
        (suite / "Release").write_text(
            f"Suite: {release}\nCodename: {release}\nComponents: main\nArchitectures: amd64\nSHA256:\n{''.join(sums)}"
        )
        self.etc.mkdir(exist_ok=True)
        (self.etc / "sources.list").write_text(f"deb [trusted=yes] file:{root} {release} main contrib\n")
        return self.etc
