"""A real fix for a real library: zlib of Debian's source as a DLL, in a program that uses it."""

from __future__ import annotations

from tests.wine.harness import Target, applied, clean, load, reverted


def test_the_hole_is_there() -> None:
    with Target("zlibhost.exe") as target:
        assert target.ask("join") == "joined"
        assert target.ask("negative") == "loops"


def test_the_fix_closes_it_and_goes_out_again() -> None:
    hotpatch = load("zlib")
    assert hotpatch.manifest.cves == ("CVE-2026-27171",)
    with Target("zlibhost.exe") as target:
        for _ in range(5):
            applied(target, hotpatch)
            assert (target.ask("negative"), target.ask("join")) == ("returned", "joined")
            clean(target)
            reverted(target)
            assert target.ask("join") == "joined"
        assert target.ask("negative") == "loops"
