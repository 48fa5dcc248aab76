"""Targets for the process room: one C program with many modes, steered through a shared page."""

from __future__ import annotations

import mmap
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midflight.process.linux import LinuxProcess

SOURCE = Path(__file__).with_name("target.c")
Start = Callable[..., "Target"]


class Target:
    """A running target; its page is ``struct shared`` of target.c."""

    def __init__(self, program: Path, page: Path, mode: str, *arguments: str) -> None:
        page.write_bytes(bytes(4096))
        self.file = page.open("r+b")
        self.page = mmap.mmap(self.file.fileno(), 4096)
        self.popen = subprocess.Popen(
            [program, mode, page, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.popen.stdout is not None
        self.greeting = self.popen.stdout.readline().split()
        assert self.greeting[0] == "ready"
        self.process = LinuxProcess(self.popen.pid)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def went(self) -> int:
        """The ``go`` word."""
        return int(struct.unpack_from("<i", self.page, 4)[0])

    @property
    def count(self) -> int:
        return int(struct.unpack_from("<q", self.page, 8)[0])

    @property
    def seen(self) -> int:
        return int(struct.unpack_from("<q", self.page, 16)[0])

    def address(self, index: int = 0) -> int:
        """An address that the target announced."""
        return int(self.greeting[1 + index], 16)

    def go(self) -> None:
        struct.pack_into("<i", self.page, 4, 1)

    def stop(self) -> None:
        struct.pack_into("<i", self.page, 0, 1)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; the test's own time limit ends it."""
        while not condition():
            assert self.popen.poll() is None, f"the target died: {self.popen.returncode}"
            time.sleep(0.001)

    def progress(self) -> None:
        """Wait until the target has worked on."""
        before = self.count
        self.wait_for(lambda: self.count > before)

    def finish(self, text: str = "\n") -> str:
        """Ask the target to end; what it says about itself."""
        self.stop()
        output, _ = self.popen.communicate(text)
        return f"{output.strip()} exit={self.popen.returncode}"

    def discard(self) -> None:
        self.process.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate()
        self.page.close()
        self.file.close()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled target."""
    output = tmp_path_factory.mktemp("process") / "target"
    subprocess.run(["gcc", "-O1", "-g", "-pthread", "-o", output, SOURCE], check=True)
    return output


@pytest.fixture
def start(program: Path, tmp_path: Path) -> Iterator[Start]:
    """Start targets; whatever is left of them at the end is removed."""
    targets: list[Target] = []

    def begin(mode: str, *arguments: str) -> Target:
        targets.append(Target(program, tmp_path / f"page{len(targets)}", mode, *arguments))
        return targets[-1]

    yield begin
    for target in targets:
        target.discard()
