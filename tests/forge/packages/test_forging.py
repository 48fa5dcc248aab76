"""From a package and a fix to a hotpatch: a tiny package is built by its own rules and matched with what it shipped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from midflight.errors import InputError, Refused
from midflight.forge.forge import ForgeRequest, ForgeResult, RefusedWithFindings
from midflight.forge.packages import forging
from midflight.forge.packages.debian import Debian
from midflight.forge.packages.forging import PLAIN, PackageRequest, forge_package
from midflight.image.elf import ElfFile
from tests.forge.packages.archive import Archive, changelog_entry

CODE = """\
#include "shop.h"

int limit = 1000;

__attribute__((noinline)) int price(int pieces)
{
    return pieces * 7 + limit / 3;
}

int order(int pieces)
{
    int sum = 0;
    for (int i = 0; i < pieces; i++)
        sum += price(i) ^ (sum << 1);
    return sum;
}

void complain(int line);

int checked(int pieces)
{
    if (pieces > 99)
        complain(__LINE__);
    return pieces;
}

int greetings(const char *name)
{
    int count = 1;
    for (; *name; name++)
        count = count * 5 + *name % 17;
    return count;
}
"""
PROGRAM = """\
#include "shop.h"
#include <stdio.h>
#include <stdlib.h>

void complain(int line)
{
    printf("line %d\\n", line);
}

int main(int argc, char **argv)
{
    printf("%d\\n", order(argc > 1 ? atoi(argv[1]) : 3));
    return 0;
}
"""
HEADER = "int price(int pieces);\nint order(int pieces);\n"
FIX = (
    "Description: no debts\n--- a/shop.c\n+++ b/shop.c\n@@ -4,6 +4,8 @@\n \n"
    " __attribute__((noinline)) int price(int pieces)\n {\n+    if (pieces < 0)\n+        return 0;\n"
    "     return pieces * 7 + limit / 3;\n }\n \n"
)
OTHER = (
    "--- a/unused.c\n+++ b/unused.c\n@@ -1 +1 @@\n-int unused(void) { return 1; }\n+int unused(void) { return 2; }\n"
)
RULES = """\
#!/usr/bin/make -f
build-arch: stamp
stamp:
	gcc -O2 -g -fPIC -c -o shop.o shop.c
	gcc -shared -Wl,-soname,libshop.so.1 -Wl,--build-id -o libshop.so.1.0 shop.o
	gcc -O2 -g -c -o main.o main.c
	gcc -O2 -g -c -o static.o shop.c
	gcc -Wl,--build-id -o shop main.o static.o
	touch stamp
"""
CONTROL = (
    "Source: shop\nMaintainer: N <n@localhost>\nStandards-Version: 4.6.0\n\n"
    "Package: libshop1\nArchitecture: any\nDescription: shop\n\nPackage: shop\nArchitecture: any\nDescription: shop\n"
)
JAN, FEB = (f"Mon, 01 {month} 2024 00:00:00 +0000" for month in ("Jan", "Feb"))
FILES = {"shop.c": CODE, "main.c": PROGRAM, "shop.h": HEADER, "unused.c": "int unused(void) { return 1; }\n"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Version 1.0-1 as it was shipped (built plainly, stripped), and the sources of 1.0-1 and of 1.0-2 with fixes."""
    made = Archive(tmp_path_factory.mktemp("forging"))
    entries = [changelog_entry("shop", "1.0-1", "First.", JAN)]
    debian = {"control": CONTROL, "rules": RULES, "changelog": entries[0]}
    made.add_source("shop", "1.0-1", FILES, debian)
    entries.insert(0, changelog_entry("shop", "1.0-2", "CVE-2024-1111, CVE-2024-2222", FEB))
    patches = {"CVE-2024-1111.patch": FIX, "CVE-2024-2222.patch": OTHER}
    debian |= {f"patches/{name}": text for name, text in patches.items()}
    debian |= {"patches/series": "\n".join(patches) + "\n", "changelog": "\n".join(entries)}
    made.add_source("shop", "1.0-2", FILES, debian)
    build = made.folder / "shipped"
    build.mkdir()
    for name, text in {**FILES, "rules": RULES}.items():
        (build / name).write_text(text)
    subprocess.run(["make", "-f", "rules", "build-arch"], cwd=build, check=True, capture_output=True)
    subprocess.run(["strip", "libshop.so.1.0", "shop"], cwd=build, check=True)
    library, program = (build / "libshop.so.1.0").read_bytes(), (build / "shop").read_bytes()
    made.add_binary("libshop1", "1.0-1", {"usr/lib/libshop.so.1.0": library}, Source="shop")
    made.add_binary("shop", "1.0-1", {"usr/bin/shop": program}, Source="shop")
    made.publish()
    admin = made.folder / "dpkg"
    for folder in ("info", "updates"):
        (admin / folder).mkdir(parents=True)
    # What is installed is what the build needs; the package itself is not.
    shutil.copy2("/var/lib/dpkg/status", admin / "status")
    return made


def forged(
    archive: Archive, what: str, running: str | None = None, *images: str, version: str = "1.0-1"
) -> ForgeResult:
    """Forge a fix of shop."""
    work = archive.folder / "work"
    front = Debian(archive.folder / "cache", lambda line: None, archive.etc, archive.folder / "dpkg")
    wanted = PackageRequest("shop", version, what, running, images)
    return forge_package(front, wanted, ForgeRequest(Path(), Path(), "", "", work), lambda line: None)


def test_one_hotpatch_for_all_images_that_the_fix_changes(archive: Archive) -> None:
    made = forged(archive, "CVE-2024-1111")
    manifest = made.manifest
    assert (manifest.name, manifest.cves) == ("shop", ("CVE-2024-1111",))
    assert manifest.description == "CVE-2024-1111 in shop 1.0-1"
    for name in ("libshop.so.1.0", "shop"):
        with ElfFile.open(archive.folder / "shipped" / name) as elf:
            (target,) = [target for target in manifest.targets if target.build_id == elf.build_id]
        assert [function.name for function in target.functions] == ["price"]
        assert target.payload in made.payloads
    assert len(manifest.targets) == 2


def test_an_image_can_be_chosen_by_its_soname(archive: Archive) -> None:
    made = forged(archive, "CVE-2024-1111", None, "libshop.so.1")
    assert [target.image_name for target in made.manifest.targets] == ["libshop.so.1"]
    with pytest.raises(InputError, match=r"there are shop, libshop\.so\.1\.0"):
        forged(archive, "CVE-2024-1111", None, "libshop.so.2")


def test_the_cache_and_another_fix_in_between_change_nothing(archive: Archive, tmp_path: Path) -> None:
    """The sources of each build are looked at (for __LINE__), not those that the tree has by now."""
    first = forged(archive, "CVE-2024-1111")
    other = tmp_path / "other.patch"
    other.write_text(
        '--- a/shop.c\n+++ b/shop.c\n@@ -1,5 +1,6 @@\n #include "shop.h"\n \n'
        "+/* 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 */\n"
        " int limit = 1000;\n \n __attribute__((noinline)) int price(int pieces)\n"
    )
    # With these numbers in the source, a changed one may be more than a line's: the function is replaced.
    assert [function.name for function in forged(archive, str(other)).manifest.targets[0].functions] == ["checked"]
    again = forged(archive, "CVE-2024-1111")
    shutil.rmtree(next((archive.folder / "work").iterdir()) / "tree")
    without = forged(archive, "CVE-2024-1111")
    assert first.payloads == again.payloads == without.payloads
    names = [[function.name for function in made.manifest.targets[0].functions] for made in (first, again, without)]
    assert names == [["price"]] * 3


def test_a_fix_that_is_not_compiled_in_is_told(archive: Archive) -> None:
    with pytest.raises(Refused, match=r"MF160 nothing to patch: .* compiled into .*libshop\.so\.1\.0"):
        forged(archive, "CVE-2024-2222")


def test_a_binary_of_another_source_is_refused(archive: Archive, tmp_path: Path) -> None:
    other = tmp_path / "libshop.so.1.0"
    source = tmp_path / "shop.c"
    source.write_text(CODE.replace("pieces * 7", "pieces * 9"))
    (tmp_path / "shop.h").write_text(HEADER)
    flags = ["-O2", "-fPIC", "-shared", "-Wl,-soname,libshop.so.1", "-Wl,--build-id"]
    subprocess.run(["gcc", *flags, "-o", other, source], check=True)
    subprocess.run(["strip", other], check=True)
    with pytest.raises(RefusedWithFindings) as refused:
        forged(archive, "CVE-2024-1111", str(other))
    assert {item.code[:4] for item in refused.value.findings} == {"MF13"}


def test_a_version_that_has_the_fix_is_refused_or_taken_back_for_a_plain_build(archive: Archive) -> None:
    library = (archive.folder / "shipped" / "libshop.so.1.0").read_bytes()
    archive.add_binary("libshop1", "1.0-2", {"usr/lib/libshop.so.1.0": library}, Source="shop")
    archive.publish()
    shutil.rmtree(archive.folder / "cache" / "apt", ignore_errors=True)
    with pytest.raises(Refused, match=r"MF163 shop 1\.0-2, which is in the archive, is already fixed: it carries CVE"):
        forged(archive, "CVE-2024-1111", version="1.0-2")
    made = forged(archive, "CVE-2024-1111", PLAIN, version="1.0-2")
    assert [function.name for function in made.manifest.targets[0].functions] == ["price"]


QUIET = (
    "--- a/shop.c\n+++ b/shop.c\n@@ -29,7 +29,7 @@\n int greetings(const char *name)\n {\n     int count = 1;\n"
    "     for (; *name; name++)\n-        count = count * 5 + *name % 17;\n+        count = count * 6 + *name % 19;\n"
    "     return count;\n }\n"
)


def test_a_source_made_from_another_must_match_as_a_whole(archive: Archive, tmp_path: Path) -> None:
    """A patch came since of which nothing tells: what it changed does not match, although the fix is elsewhere."""
    other = Archive(tmp_path, [], archive.binaries)
    shutil.copytree(archive.pool, other.pool, ignore=shutil.ignore_patterns("*.dsc", "*.tar.*", "root-*", "shop-*"))
    entries = [changelog_entry("shop", v, t, d) for v, t, d in (("1.0-2", "CVE-2024-1111", FEB), ("1.0-1", "x", JAN))]
    patches = {"quiet.patch": QUIET, "CVE-2024-1111.patch": FIX}
    debian = {"control": CONTROL, "rules": RULES, "changelog": "\n".join(entries)}
    debian |= {f"patches/{name}": text for name, text in patches.items()}
    other.add_source("shop", "1.0-2", FILES, debian | {"patches/series": "\n".join(patches) + "\n"})
    other.publish()
    shutil.copytree(archive.folder / "dpkg", other.folder / "dpkg")
    with pytest.raises(RefusedWithFindings) as refused:
        forged(other, "CVE-2024-1111")
    # The matcher itself trusts less where an object has a stranger; what it lets pass, MF139 refuses.
    assert {item.code[:4] for item in refused.value.findings} == {"MF13"}


def test_a_stranger_in_a_source_made_from_another_is_named(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    first = forged(archive, "CVE-2024-1111")
    objects = {"shop.c": {"functions": 3, "of": 4, "unmatched": ["greetings"]}}
    report = {**first.report, "images": [{"match": {"objects": objects}}]}
    monkeypatch.setattr(forging, "forge_images", lambda *words: replace(first, report=report))
    assert forged(archive, "CVE-2024-1111").manifest == first.manifest
    real = Debian.fixed_source
    monkeypatch.setattr(Debian, "fixed_source", lambda *words: replace(real(*words), made_from="1.0-2"))
    with pytest.raises(RefusedWithFindings) as refused:
        forged(archive, "CVE-2024-1111")
    (item,) = refused.value.findings
    assert item.code == "MF139"
    assert "made from that of 1.0-2" in item.reason and "greetings" in item.reason


INTERRUPTED = """\
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.forge.packages.archive import Archive
from tests.forge.packages.test_forging import forged
from midflight.forge.packages import debian
try:
    forged(Archive(Path({folder!r})), sys.argv[1])
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupted_build_leaves_nothing_behind(archive: Archive, tmp_path: Path) -> None:
    """The rules are made to wait; Ctrl-C comes while they do."""
    forged(archive, "CVE-2024-1111")  # so that the trees are there, whichever tests came before
    folder = tmp_path / "copy"
    shutil.copytree(archive.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("work", "apt", "locks"))
    for rules in (folder / "cache" / "trees").rglob("rules"):
        rules.write_text(rules.read_text().replace("stamp:\n", "stamp:\n\tsleep 61.5\n"))
    Archive(folder, archive.sources, archive.binaries).publish()
    root = str(Path(__file__).resolve().parents[3])
    program = INTERRUPTED.format(root=root, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program, "CVE-2024-1111"], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not _sleepers() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        assert _sleepers(), "the build never began"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    assert not _sleepers()
    assert list((folder / "work").iterdir()) == []


def _sleepers() -> list[str]:
    done = subprocess.run(["pgrep", "-f", "^sleep 61.5$"], capture_output=True, text=True, check=False)
    return done.stdout.split()
