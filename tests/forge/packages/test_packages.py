"""Names, versions, sources and fixes of packages: a small archive on disk, apt and dpkg as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from midflight.errors import InputError
from midflight.forge.packages.apt import SourceError
from midflight.forge.packages.changelog import read_changelog
from midflight.forge.packages.debian import Debian
from midflight.forge.packages.model import Package
from tests.forge.packages.archive import Archive, changelog_entry

CODE = "int price(int pieces)\n{\n    return pieces * 3;\n}\n"
OLD = (
    "--- a/shop.c\n+++ b/shop.c\n@@ -1,4 +1,4 @@\n int price(int pieces)\n {\n-    return pieces * 3;\n"
    "+    return pieces * 4;\n }\n"
)
CHECK = (
    "--- a/shop.c\n+++ b/shop.c\n@@ -1,4 +1,5 @@\n int price(int pieces)\n {\n+    if (pieces < 0) return 0;\n"
    "     return pieces * 4;\n }\n"
)
LIMIT = (
    "Description: bound it (follow-up of CVE-2024-1111)\n Found by nobody.\nBug-Debian: https://bugs.debian.org/77\n"
    "--- a/shop.c\n+++ b/shop.c\n@@ -1,5 +1,6 @@\n int price(int pieces)\n {\n     if (pieces < 0) return 0;\n"
    "+    if (pieces > 999) return 0;\n     return pieces * 4;\n }\n"
)
CONTROL = (
    "Source: shop\nMaintainer: N <n@localhost>\nStandards-Version: 4.6.0\nBuild-Depends: libc6-dev\n\n"
    "Package: shop\nArchitecture: any\nDescription: shop\n\nPackage: libshop1\nArchitecture: any\nDescription: shop\n"
)
JAN, FEB, MAR = (f"Mon, 01 {month} 2024 00:00:00 +0000" for month in ("Jan", "Feb", "Mar"))
ENTRIES = {
    "2:1.0-1": changelog_entry("shop", "2:1.0-1", "First.", JAN),
    "2:1.0-1+deb12u1": changelog_entry("shop", "2:1.0-1+deb12u1", "CVE-2024-1111: no debts (Closes: #70)", FEB),
    "2:1.0-1+deb12u2": changelog_entry("shop", "2:1.0-1+deb12u2", "bound.patch: CVE-2024-2222 (Closes: #77)", MAR),
}
PATCHES = {"old.patch": OLD, "CVE-2024-1111.patch": CHECK, "bound.patch": LIMIT}
VERSIONS = list(ENTRIES)
ELF = Path(shutil.which("true") or "/bin/true")


def add_version(archive: Archive, version: str) -> None:
    """One version of shop, as a source package."""
    count = VERSIONS.index(version) + 1
    patches = dict(list(PATCHES.items())[:count])
    debian = {f"patches/{name}": text for name, text in patches.items()}
    debian |= {"patches/series": "".join(f"{name}\n" for name in patches), "control": CONTROL}
    debian |= {"changelog": "\n".join(ENTRIES[v] for v in reversed(VERSIONS[:count]))}
    debian |= {"rules": "#!/usr/bin/make -f\nbuild-arch:\n\tgcc -shared -o libshop.so.1 shop.c\n"}
    archive.add_source("shop", version, {"shop.c": CODE}, debian)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The sources of two of three versions; the binaries of all, and some others."""
    made = Archive(tmp_path_factory.mktemp("made"))
    for version in VERSIONS[1:]:
        add_version(made, version)
    for version in VERSIONS:
        made.add_binary(
            "libshop1", version, {"usr/lib/libshop.so.1": ELF.read_bytes()}, Source="shop", Provides="shops"
        )
    made.add_binary("shop", "2:1.0-1+deb12u1+b3", {"usr/bin/shop": ELF.read_bytes()}, Source="shop (2:1.0-1+deb12u1)")
    made.add_binary("oldshop", "9", {}, Depends="libshop1", Description="transitional package")
    made.add_binary("shopdata", "1", {"usr/share/x": b"x"})
    return made


@pytest.fixture
def archive(made: Archive, tmp_path: Path) -> Archive:
    """A copy of it to be changed."""
    copy = Archive(tmp_path, made.sources, made.binaries)
    shutil.copytree(made.pool, copy.pool, ignore=shutil.ignore_patterns("root-*", "shop-*"))
    copy.publish()
    return copy


def debian(archive: Archive, installed: str = "", said: list[str] | None = None) -> Debian:
    """The front end on that archive, on a machine with an invented set of installed packages."""
    admin = archive.folder / "dpkg"
    (admin / "info").mkdir(parents=True, exist_ok=True)
    (admin / "updates").mkdir(exist_ok=True)
    (admin / "status").write_text(installed)
    lines = said if said is not None else []
    return Debian(archive.folder / "cache", lines.append, archive.etc, admin)


INSTALLED = (
    "Package: libshop1\nStatus: install ok installed\nMaintainer: N <n@localhost>\nArchitecture: amd64\nSource: shop\n"
    "Version: 2:1.0-1\nDescription: shop\n\n"
)


def summary(package: Package) -> tuple[str, str, list[str]]:
    return package.name, package.version, [str(binary) for binary in package.binaries]


def test_a_name_is_a_source_a_binary_a_virtual_or_a_transitional_package(archive: Archive) -> None:
    front = debian(archive, INSTALLED)
    wanted = ("shop", "2:1.0-1", ["libshop1 2:1.0-1"])
    for name in ("shop", "libshop1", "libshop1:amd64", "shops", "oldshop"):
        assert summary(front.resolve(name, None)) == wanted, name
    assert front.resolve("shop", None).installed


def test_a_version_is_of_the_source_or_of_a_binary_and_rebuilds_are_told(archive: Archive) -> None:
    front = debian(archive)
    newer = front.resolve("shop", "2:1.0-1+deb12u1+b3")
    assert summary(newer) == ("shop", "2:1.0-1+deb12u1", ["shop 2:1.0-1+deb12u1+b3"])
    assert newer.rebuild == "2:1.0-1+deb12u1+b3"
    assert front.resolve("libshop1", "2:1.0-1+deb12u2").version == "2:1.0-1+deb12u2"
    tree = front.fixed_source(newer, "CVE-2024-2222").tree
    assert [entry.version for entry in read_changelog(tree / "debian" / "changelog")][:2] == [
        "2:1.0-1+deb12u1+b3",
        "2:1.0-1+deb12u1",
    ]


def test_what_cannot_be_meant_is_one_line(archive: Archive) -> None:
    front = debian(archive)
    for name, version, message in (
        ("nosuch", None, "have no package nosuch"),
        ("shopd", None, "there are shopdata"),
        ("libshop1:i386", None, "packages of i386 cannot be hotpatched"),
        ("Shop", None, "no name of a Debian package"),
        ("libshop1", "3.0", r"there are 2:1\.0-1\+deb12u2, 2:1\.0-1\+deb12u1\+b3, 2:1\.0-1\+deb12u1, 2:1\.0-1"),
    ):
        with pytest.raises(InputError, match=message) as error:
            front.resolve(name, version)
        assert "\n" not in str(error.value)


def test_a_package_without_code_is_told(archive: Archive) -> None:
    front = debian(archive)
    with pytest.raises(SourceError, match="holds a program or library"):
        front.shipped(front.resolve("shopdata", None))


def test_a_source_that_is_gone_is_made_from_a_newer_one(archive: Archive) -> None:
    said: list[str] = []
    front = debian(archive, INSTALLED, said)
    fixed = front.fixed_source(front.resolve("shop", None), "CVE-2024-1111")
    assert (fixed.tree / "shop.c").read_text() == CODE.replace("* 3", "* 4")
    assert "pieces < 0" in (fixed.fix / "shop.c").read_text()
    assert "pieces > 999" not in (fixed.fix / "shop.c").read_text()
    assert read_changelog(fixed.tree / "debian" / "changelog")[0].version == "2:1.0-1"
    assert not fixed.present and fixed.cves == ("CVE-2024-1111",)
    assert any("made from 2:1.0-1+deb12u1 without CVE-2024-1111.patch" in note for note in front.notes)


def test_a_fix_brings_along_what_it_stands_on(archive: Archive) -> None:
    front = debian(archive, INSTALLED)
    fixed = front.fixed_source(front.resolve("shop", None), "CVE-2024-2222")
    text = (fixed.fix / "shop.c").read_text()
    assert "pieces < 0" in text and "pieces > 999" in text
    assert fixed.cves == ("CVE-2024-1111", "CVE-2024-2222")
    assert any("stands on 1 other" in note for note in front.notes)


def test_a_fix_that_is_there_already_is_taken_out(archive: Archive) -> None:
    front = debian(archive, INSTALLED.replace("2:1.0-1", "2:1.0-1+deb12u1"))
    fixed = front.fixed_source(front.resolve("shop", None), "cve-2024-1111")
    assert fixed.present
    assert "pieces < 0" not in (fixed.tree / "shop.c").read_text()
    assert "pieces < 0" in (fixed.fix / "shop.c").read_text()


def test_a_patch_file_that_is_there_already_is_taken_out(archive: Archive) -> None:
    front = debian(archive, INSTALLED.replace("2:1.0-1", "2:1.0-1+deb12u1"))
    patch = archive.folder / "CVE-2024-1111.diff"
    patch.write_text(CHECK)
    fixed = front.fixed_source(front.resolve("shop", None), str(patch))
    assert fixed.present and fixed.cves == ()
    assert "pieces < 0" not in (fixed.tree / "shop.c").read_text()
    assert "pieces < 0" in (fixed.fix / "shop.c").read_text()
    patch.write_text(
        CHECK.replace("pieces < 0", "pieces < 1")
    )  # neither there nor not there: that is said when it is read
    assert not front.fixed_source(front.resolve("shop", None), str(patch)).present


def test_what_stands_on_a_fix_that_is_taken_out_goes_with_it(archive: Archive) -> None:
    """No binary had the later patch and not the fix, so the older source has neither."""
    front = debian(archive, INSTALLED.replace("2:1.0-1", "2:1.0-1+deb12u2"))
    fixed = front.fixed_source(front.resolve("shop", None), "CVE-2024-1111")
    assert fixed.present
    assert (fixed.tree / "shop.c").read_text() == CODE.replace("* 3", "* 4")
    assert "pieces > 999" in (fixed.fix / "shop.c").read_text()
    assert any("bound.patch stands on the fix of CVE-2024-1111" in note for note in front.notes)


def test_the_difference_to_a_version_that_the_mirror_lacks_offers_others(archive: Archive) -> None:
    (archive.pool / "shop_1.0-1+deb12u2.dsc").unlink()
    front = debian(archive, INSTALLED)
    with pytest.raises(SourceError, match=r"not on the mirror.*the index has =2:1\.0-1\+deb12u1, too; or give a patch"):
        front.fixed_source(front.resolve("shop", None), "=2:1.0-1+deb12u2")


def test_the_difference_to_a_version_leaves_the_packaging_out(archive: Archive) -> None:
    front = debian(archive, INSTALLED)
    fixed = front.fixed_source(front.resolve("shop", None), "=2:1.0-1+deb12u2")
    assert "pieces > 999" in (fixed.fix / "shop.c").read_text()
    assert fixed.cves == ("CVE-2024-1111", "CVE-2024-2222")
    changelogs = [(tree / "debian" / "changelog").read_text() for tree in (fixed.tree, fixed.fix)]
    assert changelogs[0] == changelogs[1]
    with pytest.raises(InputError, match="not newer"):
        front.fixed_source(front.resolve("shop", None), "=2:1.0-1")


def test_a_cve_that_nobody_names_is_one_line(archive: Archive) -> None:
    front = debian(archive, INSTALLED)
    with pytest.raises(InputError, match="names CVE-2024-9999"):
        front.fixed_source(front.resolve("shop", None), "CVE-2024-9999")
    with pytest.raises(InputError, match="no file, no folder, no CVE id and no =VERSION"):
        front.fixed_source(front.resolve("shop", None), "fix.diff")


def test_a_source_that_the_index_names_and_the_mirror_lacks(archive: Archive) -> None:
    (archive.pool / "shop_1.0-1+deb12u2.dsc").unlink()
    said: list[str] = []
    front = debian(archive, "", said)
    # Nobody runs anything: the newest version that can be built.
    assert front.resolve("libshop1", None).version == "2:1.0-1+deb12u1"
    assert any("although its binary packages are there" in note for note in front.notes)
    # The newest one is asked for: what is there is offered.
    with pytest.raises(SourceError, match=r"sources that are there: 2:1\.0-1\+deb12u1; give one as shop=2:1\.0"):
        front.fixed_source(front.resolve("libshop1", "2:1.0-1+deb12u2"), "CVE-2024-2222")


def test_files_that_were_changed_after_installation_are_fetched(archive: Archive) -> None:
    front = debian(archive, INSTALLED)
    library = archive.folder / "libshop.so.1"
    info = archive.folder / "dpkg" / "info"
    (info / "libshop1.list").write_text(f"/.\n{library}\n")
    (info / "libshop1.md5sums").write_text(f"{'0' * 32}  {str(library)[1:]}\n")
    shutil.copy2(ELF, library)
    (file,) = front.shipped(front.resolve("shop", None))
    assert file.file.is_relative_to(archive.folder / "cache") and file.name == "/usr/lib/libshop.so.1"
    shutil.rmtree(archive.pool)
    (again,) = front.shipped(front.resolve("shop", None))
    assert again == file
