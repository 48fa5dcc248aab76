"""Programs and their fixes, built once; a server for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from midflight.image.elf import ElfFile
from midflight.trust.content import Content
from tests.agent.fleet.control import ControlServer, running
from tests.agent.harness import PROGRAM
from tests.live.harness import Fix, Lab

MAKE = "cc -O2 -o target target.c"


def build_id(path: Path) -> str:
    """Of a program."""
    with ElfFile.open(path) as elf:
        return elf.build_id or ""


@dataclass(frozen=True)
class Fixes:
    """A program, two hotpatches for it, and the program with the first fix built in."""

    first: Fix
    second: Fix
    fixed: Path

    @property
    def program(self) -> Path:
        """What runs."""
        return self.first.image

    @property
    def images(self) -> tuple[str, ...]:
        """Its build-id."""
        return (build_id(self.program),)


@pytest.fixture(scope="session")
def fixes(tmp_path_factory: pytest.TempPathFactory) -> Fixes:
    """Built once."""
    import subprocess

    lab = Lab.create(tmp_path_factory.mktemp("fleet"))

    def fixed(value: int) -> dict[str, str]:
        return {"target.c": PROGRAM.replace("x * 0 + 1;", f"x * 0 + {value};")}

    before = {"target.c": PROGRAM}
    first = lab.fix("fleet-answers", before, fixed(2), MAKE)
    second = lab.fix("fleet-answers", before, fixed(3), MAKE, sequence=2)
    tree = lab.tree("baseline", fixed(2))
    subprocess.run(["sh", "-ec", MAKE], cwd=tree, check=True, capture_output=True)
    return Fixes(first, second, tree / "target")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    """A server, with its repository."""
    with running(tmp_path / "server") as found:
        yield found


def publish(server: ControlServer, fixes: Fixes, sequence: int = 1) -> Content:
    """One of the hotpatches, published."""
    fix = fixes.first if sequence == 1 else fixes.second
    return server.publisher.hotpatch(fix.hotpatch, "fleet-answers", sequence, fixes.images)
