"""A device of Windows with a server: that runs here, the agent is a service under Wine (:mod:`tests.wine.device`).

Runs on Linux; ``make test-wine`` does it after what runs in the Windows Python.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.fleet.control import ControlPlane, until

pytestmark = pytest.mark.wine
ROOT = Path(__file__).resolve().parents[2]
LISTEN = "127.0.0.1:19460"
_START = "import sys; sys.path.insert(0, '.'); from tests.wine.device import main; main(*sys.argv[1:])"
PROGRAMS = ROOT / "build" / "wine"


class Device:
    """The Windows side; what it writes, line by line."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._end = folder / "end"
        words = [plane.url, plane.invite(1), plane.pin, f"Z:{self._end}".replace("/", "\\")]
        self._process = subprocess.Popen(
            [str(ROOT / "scripts" / "wine"), "-c", _START, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self.all: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.all.append(line)
            self._lines.put(line)
        self._lines.put("")

    def says(self, text: str) -> None:
        """Wait for a line that begins so."""
        while not (line := self._lines.get(timeout=180)).startswith(text):
            assert line, f"it ended before it said {text!r}"

    def end(self) -> None:
        """Let it end."""
        self._end.touch()
        self._process.wait(180)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A server that runs."""
    plane = ControlPlane(tmp_path / "server", f"https://{LISTEN}", (LISTEN,))
    plane.start()
    try:
        plane.wait()
        plane.sign_in()
        plane.trust_vendor(PROGRAMS / "test.pub")
        yield plane
    finally:
        plane.kill()


def test_a_windows_device_follows_its_server(plane: ControlPlane, tmp_path: Path) -> None:
    device = Device(plane, tmp_path)
    try:
        device.says("enrolled")
        device.says("answer 1 10 0")
        (known,) = until(lambda: [one for one in plane.get("/devices")["items"] if one["last_seen"]], "it has reported")
        assert known["platform"] == "windows-x86_64", known
        group = plane.post("/groups", name="all", rule='platform like "windows-*"')["id"]
        ring = {"name": "all", "kind": "rest", "gate": {"min_sample": 1, "max_failures": 0, "soak": "PT0S"}}
        document = {"audience": {"groups": [group]}, "rings": [ring], "check_in_s": 10}
        policy = str(plane.post("/policies", name="all", document=document)["id"])
        until(lambda: plane.get(f"/policies/{policy}")["devices"] == 1, "the policy governs it")

        plane.release("add", PROGRAMS / "both2.hotpatch", "--severity", "high")
        plane.post("/catalogue/refresh")
        hotpatch = plane.deploy("hotpatch:answers:1", policy)
        device.says("answer 2 20 0")
        until(lambda: plane.states(hotpatch) == {known["id"]: "applied"}, "the server knows that it is in")

        # A device that runs a hotpatch of the series is offered the release with the fix built in.
        about = ("--name", "answers", "--version", "2", "--architecture", "amd64", "--sequence", "2")
        plane.release("add", PROGRAMS / "threads.exe", *about, "--image", "0" * 40, "--severity", "high")
        plane.post("/catalogue/refresh")
        baseline = plane.deploy("baseline:answers:2", policy)
        until(lambda: plane.states(baseline) == {known["id"]: "ineligible"}, "a baseline is refused")

        plane.post(f"/deployments/{hotpatch}/revert")
        device.says("answer 1 10 0")
        until(lambda: plane.states(hotpatch) == {known["id"]: "reverted"}, "the server knows that it is out")
    finally:
        # what a failure is understood by
        for one in plane.get("/deployments")["items"]:
            print(one, plane.get(f"/deployments/{one['id']}/devices")["items"])
        device.end()
        print("".join(device.all))
    found = json.loads(next(line for line in reversed(device.all) if line.startswith("{")))
    assert any(
        "refused: wrong_platform: this agent puts no baselines in place on Windows" in line for line in device.all
    )
    assert found["status"]["running"] and found["status"]["server"]["device"] == known["id"]
    assert "identity.pem" in found["others"] and set(found["others"].values()) == {None}, "others can change that"
