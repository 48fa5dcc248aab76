"""Source packages through a private apt: an archive on disk stands in for Debian's mirror, apt and dpkg are real."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from midflight.forge.packages import apt as debapt
from midflight.forge.packages.apt import SourceError, debian_sources
from midflight.forge.packages.patching import PatchError, apply_patch, apply_what_is_there, fits, revert_patch
from midflight.forge.packages.sources import fetch

ORIGINAL = "one\ntwo\nthree\n"
FIRST = "--- a/list\n+++ b/list\n@@ -1,3 +1,4 @@\n one\n+one and a half\n two\n three\n"
SECOND = "--- a/list\n+++ b/list\n@@ -1,4 +1,4 @@\n one\n-one and a half\n+one and more than a half\n two\n three\n"
THIRD = "--- a/list\n+++ b/list\n@@ -2,3 +2,4 @@\n one and more than a half\n two\n three\n+four\n"
CONTROL = "Source: tiny\nMaintainer: N <n@localhost>\nStandards-Version: 4.6.0\n\nPackage: tiny\nArchitecture: all\n"
CHANGELOG = "tiny ({version}) bookworm; urgency=low\n\n  * x\n\n -- N <n@localhost>  Mon, 01 Jan 2024 00:00:00 +0000\n"


def source_package(folder: Path, version: str) -> Path:
    """Make tiny's source package with dpkg-source; returns the .dsc."""
    original = folder / "tiny_1.0.orig.tar.gz"
    if not original.exists():
        with tarfile.open(original, "w:gz") as archive:
            member = tarfile.TarInfo("tiny-1.0/list")
            member.size = len(ORIGINAL)
            archive.addfile(member, io.BytesIO(ORIGINAL.encode()))
    tree = folder / f"tree-{version}"
    (tree / "debian" / "patches").mkdir(parents=True)
    (tree / "debian" / "source").mkdir()
    (tree / "list").write_text(ORIGINAL)
    files = {"control": CONTROL, "changelog": CHANGELOG.format(version=version), "rules": "#!/bin/sh\n"}
    files |= {"source/format": "3.0 (quilt)\n", "patches/series": "first.patch # why\nsecond.patch\n\nthird.patch\n"}
    files |= {"patches/first.patch": FIRST, "patches/second.patch": SECOND, "patches/third.patch": THIRD}
    for name, text in files.items():
        (tree / "debian" / name).write_text(text)
    subprocess.run(["dpkg-source", "-b", tree.name], cwd=folder, check=True, capture_output=True)
    return folder / f"tiny_{version}.dsc"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with two versions of tiny; returns the etc/apt that is configured for it."""
    root = tmp_path / "archive"
    pool, index = root / "pool", root / "dists" / debapt.codename() / "main" / "source"
    pool.mkdir(parents=True)
    index.mkdir(parents=True)
    stanzas = []
    for version in ("1.0-9", "1.0-10"):
        dsc = source_package(pool, version)
        stanza = dsc.read_text().replace("Source: tiny", "Package: tiny\nDirectory: pool", 1)
        for field, algorithm in (("Files", "md5"), ("Checksums-Sha256", "sha256")):
            line = f" {hashlib.new(algorithm, dsc.read_bytes()).hexdigest()} {dsc.stat().st_size} {dsc.name}"
            stanza = re.sub(rf"^{field}:\s*$", f"{field}:\n{line}", stanza, count=1, flags=re.MULTILINE)
        stanzas.append(stanza.strip() + "\n")
    sources = index / "Sources"
    sources.write_text("\n".join(stanzas))
    digest = hashlib.sha256(sources.read_bytes()).hexdigest()
    (index.parent.parent / "Release").write_text(
        f"Suite: {debapt.codename()}\nCodename: {debapt.codename()}\nComponents: main\n"
        f"SHA256:\n {digest} {sources.stat().st_size} main/source/Sources\n"
    )
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "sources.list").write_text(f"deb [trusted=yes] file:{root} {debapt.codename()} main contrib\n")
    return etc


def test_the_newest_version_is_fetched_once_and_used_again_offline(archive: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    source = fetch("tiny", cache, log=said.append, etc=archive)
    assert (source.version, source.requested) == ("1.0-10", None)
    assert (source.tree / "list").read_text() == "one\none and more than a half\ntwo\nthree\nfour\n"
    assert any("1.0-10" in line for line in said)
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    assert fetch("tiny", cache, log=said.append, etc=nowhere) == source
    assert fetch("tiny", cache, "1.0-10", log=said.append, etc=nowhere) == source


def test_a_version_that_left_the_mirror_is_replaced_and_that_is_said(archive: Path, tmp_path: Path) -> None:
    said: list[str] = []
    asked = fetch("tiny", tmp_path / "cache", "1.0-9", log=said.append, etc=archive)
    assert (asked.version, asked.requested) == ("1.0-9", None)
    other = fetch("tiny", tmp_path / "cache", "1.0-3", log=said.append, etc=archive)
    assert (other.version, other.requested) == ("1.0-10", "1.0-3")
    assert said[-1] == "tiny 1.0-3 is not on the mirror (any more); using 1.0-10 instead"


def test_a_version_that_the_index_names_but_the_mirror_lacks_is_passed_over(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "archive" / "pool" / "tiny_1.0-10.dsc").unlink()
    said: list[str] = []
    source = fetch("tiny", tmp_path / "cache", log=said.append, etc=archive)
    assert source.version == "1.0-9"
    assert any("1.0-10 is in the index but not on the mirror" in line for line in said)


def test_what_is_not_to_be_had_is_an_error_in_one_line(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="have no source package enormous"):
        fetch("enormous", tmp_path / "cache", log=lambda line: None, etc=archive)
    source = fetch("tiny", tmp_path / "cache", log=lambda line: None, etc=archive)
    with pytest.raises(SourceError, match=r"no debian/patches/fourth\.patch"):
        source.copy(tmp_path / "copy", without=["fourth.patch"])


def test_a_copy_can_leave_patches_out(archive: Path, tmp_path: Path) -> None:
    source = fetch("tiny", tmp_path / "cache", log=lambda line: None, etc=archive)
    before = (source.tree / "list").read_text()
    last = source.copy(tmp_path / "copy", without=["third.patch"])
    assert (last / "list").read_text() == "one\none and more than a half\ntwo\nthree\n"
    both = source.copy(tmp_path / "copy", without=["second.patch", "third.patch"])
    assert (both / "list").read_text() == "one\none and a half\ntwo\nthree\n"
    with pytest.raises(SourceError, match=r"second\.patch cannot be applied"):
        source.copy(tmp_path / "copy", without=["first.patch"])
    assert (source.tree / "list").read_text() == before


def test_patches_go_in_and_out_or_change_nothing(tmp_path: Path) -> None:
    tree, patch = tmp_path / "tree", tmp_path / "first.patch"
    tree.mkdir()
    (tree / "list").write_text(ORIGINAL)
    patch.write_text(FIRST)
    assert fits(tree, patch) and not fits(tree, patch, reverse=True)
    apply_patch(tree, patch)
    assert "one and a half" in (tree / "list").read_text()
    with pytest.raises(SourceError, match=r"first\.patch cannot be applied"):
        apply_patch(tree, patch)
    revert_patch(tree, patch)
    assert (tree / "list").read_text() == ORIGINAL
    with pytest.raises(SourceError, match=r"first\.patch cannot be reverted"):
        revert_patch(tree, patch)
    assert sorted(path.name for path in tree.iterdir()) == ["list"]


def test_parts_for_files_that_another_patch_makes_are_left_out(tmp_path: Path) -> None:
    tree, patch = tmp_path / "tree", tmp_path / "first.patch"
    tree.mkdir()
    (tree / "list").write_text(ORIGINAL)
    other = "--- a/tests/new\n+++ b/tests/new\n@@ -1 +1 @@\n-old\n+new\n"
    made = "--- /dev/null\n+++ b/made\n@@ -0,0 +1 @@\n+made\n"
    patch.write_text(other + FIRST + other.replace("tests/new", "tests/newer") + made)
    with pytest.raises(PatchError):
        apply_patch(tree, patch)
    apply_what_is_there(tree, patch)
    assert "one and a half" in (tree / "list").read_text() and (tree / "made").read_text() == "made\n"
    assert sorted(path.name for path in tree.iterdir()) == ["list", "made"]
    (tree / "made").unlink()
    with pytest.raises(PatchError, match=r"first\.patch cannot be applied") as caught:
        apply_what_is_there(tree, patch)
    assert caught.value.patch == patch
    assert sorted(path.name for path in tree.iterdir()) == ["list"]


def test_only_debians_own_archives_count(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# a comment\ndeb [signed-by=/k] http://m.example/debian bookworm main contrib  # mine\n"
        "deb-src http://m.example/debian-security bookworm-security main\ndeb http://v.example/apt stable-tools main\n"
        "deb http://v.example/debian bookworm stable\n#deb http://off.example/debian bookworm main\n"
    )
    (tmp_path / "sources.list.d" / "a.sources").write_text(
        "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates bookworm-backports\n"
        "Components: main non-free\nArchitectures: amd64\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n xyz\n"
        "\nEnabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n"
        "\nTypes: deb\nURIs: http://v.example\nSuites: nodistro\nComponents: main\n"
    )
    lines, stanzas = debian_sources(tmp_path, "bookworm")
    assert lines == [
        "deb [signed-by=/k] http://m.example/debian bookworm main",
        "deb-src [signed-by=/k] http://m.example/debian bookworm main",
        "deb http://m.example/debian-security bookworm-security main",
        "deb-src http://m.example/debian-security bookworm-security main",
    ]
    (stanza,) = stanzas
    assert stanza == (
        "Types: deb deb-src\nUris: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n xyz\n"
    )
    with pytest.raises(SourceError, match="no Debian archive for trixie is configured"):
        debian_sources(tmp_path, "trixie")


def test_an_interrupted_download_leaves_nothing_behind(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(apt: debapt.Apt, name: str, version: str, folder: Path) -> str | None:
        (folder / "partial").write_text("half")
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(debapt.Apt, "download_source", interrupted)
        fetch("tiny", cache, log=lambda line: None, etc=archive)
    assert not any((cache / "tiny").iterdir())
    assert fetch("tiny", cache, log=lambda line: None, etc=archive).version == "1.0-10"
