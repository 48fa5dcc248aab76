"""What the commands on packages find on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from midflight.cli.packages import _older_builds
from midflight.forge.packages.model import Shipped
from midflight.image.elf import ElfFile


def program(path: Path, number: int) -> str:
    """Compile a program that waits; returns its build-id."""
    source = path.with_suffix(".c")
    source.write_text(f"#include <unistd.h>\nint main(void) {{ char c; read(0, &c, 1); return {number}; }}\n")
    subprocess.run(["gcc", "-Wl,--build-id", "-w", source, "-o", path], check=True)
    with ElfFile.open(path) as elf:
        assert elf.build_id is not None
        return elf.build_id


def test_builds_that_an_upgrade_replaced_are_found_where_they_run_still(tmp_path: Path) -> None:
    installed, upgrade = tmp_path / "shop", tmp_path / "upgrade"
    before, now = program(installed, 1), program(upgrade, 2)
    processes = [subprocess.Popen([installed], stdin=subprocess.PIPE)]
    try:
        search = _older_builds(tmp_path / "mapped")
        shipped = [Shipped(installed, "/usr/bin/shop", "shop")]
        assert not search(shipped)  # what runs is what is installed
        upgrade.rename(installed)
        processes.append(subprocess.Popen([installed], stdin=subprocess.PIPE))
        (running,) = search(shipped)
        with ElfFile.open(running.file) as elf:
            assert elf.build_id == before != now
        assert running.name == "/usr/bin/shop"
        assert not search([Shipped(installed, "/usr/bin/market", "shop")])
    finally:
        for process in processes:
            process.communicate(b"x", timeout=30)
    with ElfFile.open(running.file) as elf:  # the copy outlives the process
        assert elf.build_id == before
