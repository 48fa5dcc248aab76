"""Baselines: laid ready, swapped in, accounted, taken back; killed at every step; files and packages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from midflight.agent.fleet import records, staging
from midflight.agent.fleet.records import Baseline, Records
from midflight.agent.fleet.staging import Offer, Staging, StagingError
from midflight.trust.content import Content, Description, Package
from tests.agent.fleet.conftest import Fixes, build_id, publish
from tests.agent.fleet.control import ControlServer, apply, now
from tests.agent.fleet.harness import Device
from tests.commands import until
from tests.live.harness import Target

THING = Package("file", "fleet-answers", "1.1", "amd64")


@pytest.fixture
def place(fixes: Fixes, tmp_path: Path) -> Path:
    """The program, installed."""
    path = tmp_path / "sbin" / "answers"
    path.parent.mkdir()
    shutil.copy2(fixes.program, path)
    path.chmod(0o751)
    return path


def answer(program: Path) -> str:
    with Target.start(program) as target:
        return target.ask()


def offer(file: Path, images: tuple[str, ...] = (), package: Package = THING) -> Offer:
    about = Description("baseline", "fleet-answers", 2, images, (), "security", "high", None, "", (), package)
    return Offer(Content("x", "cd" * 32, file.stat().st_size, about), file, "act-1", "dpl-1", None)


class Lab:
    """A device's folder of state, without an agent."""

    def __init__(self, folder: Path, root: Path = Path("/")) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.records = Records(folder)
        self.staging = Staging(folder, self.records, "boot", root)

    def the_one(self) -> Baseline:
        (found,) = self.records.baselines()
        return found


def test_a_file_takes_its_place_with_the_same_owner_and_mode_and_goes_back(
    fixes: Fixes, place: Path, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "state")
    before = place.read_bytes()
    staged = lab.staging.stage(offer(fixes.fixed, (build_id(fixes.fixed),)), place, ())
    assert place.read_bytes() == before and staged.replaced == fixes.images
    lab.staging.swap(staged)
    assert place.read_bytes() == fixes.fixed.read_bytes() and place.stat().st_mode & 0o7777 == 0o751
    assert answer(place) == "2"
    lab.staging.take_back(lab.the_one())
    assert place.read_bytes() == before and answer(place) == "1"
    assert [path.name for path in place.parent.iterdir()] == [place.name], "nothing is left lying about"


def test_what_is_not_what_it_says_or_has_no_place_is_not_laid_ready(fixes: Fixes, place: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "state")
    with pytest.raises(StagingError, match="not the image that its description says"):
        lab.staging.stage(offer(fixes.fixed, ("ab" * 20,)), place, ())
    with pytest.raises(StagingError, match="nothing to replace"):
        lab.staging.stage(offer(fixes.fixed), tmp_path / "nowhere", ())
    staged = lab.staging.stage(offer(fixes.fixed), place, ())
    shutil.copy("/bin/true", tmp_path / "other")
    (tmp_path / "other").replace(place)  # a package upgrade came first
    with pytest.raises(StagingError, match="replaced by something else"):
        lab.staging.swap(staged)
    assert lab.the_one().state == "failed" and place.read_bytes() == Path("/bin/true").read_bytes()


def work(what: str, place: Path, fixes: Fixes, state: Path, note: Callable[[str], None] = lambda name: None) -> int:
    """Swap the file in, or take it back, as an agent would that goes on where another one was killed; in a process of
    its own, whose status is returned. ``note`` is called at each step."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        for module in (staging, records):
            setattr(module, "point", note)  # noqa: B010
        lab = Lab(state)
        lab.staging.settle()
        found = lab.records.baselines() or [lab.staging.stage(offer(fixes.fixed), place, ())]
        if what == "go" and found[0].state == "staged":
            lab.staging.swap(found[0])
        elif what == "back" and found[0].state != "returned":
            lab.staging.take_back(found[0])
        status = 0
    finally:
        os._exit(status)


def killing(at: str) -> Callable[[str], None]:
    """Die at this step, as by the out-of-memory killer."""
    return lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == at else None


def test_whoever_is_killed_leaves_the_old_or_the_new_file_and_the_next_goes_on(
    fixes: Fixes, place: Path, tmp_path: Path
) -> None:
    old, new = place.read_bytes(), fixes.fixed.read_bytes()
    log, state = tmp_path / "points", tmp_path / "state"

    def noting(name: str) -> None:
        with log.open("a") as file:
            file.write(f"{name}\n")

    assert work("go", place, fixes, state, noting) == 0
    assert work("back", place, fixes, state, noting) == 0
    points = log.read_text().split()
    assert {"fleet-kept", "fleet-swapped", "fleet-baseline-swapping", "fleet-baselined-returning"} <= set(points)
    for point in points:
        shutil.rmtree(state)
        what = "back" if "return" in point else "go"
        if what == "back":
            assert work("go", place, fixes, state) == 0
        assert work(what, place, fixes, state, killing(point)) == -signal.SIGKILL, point
        assert place.read_bytes() in (old, new), point
        assert work(what, place, fixes, state) == 0, point
        assert place.read_bytes() == (new if what == "go" else old), point
        if what == "go":
            assert work("back", place, fixes, state) == 0
        assert place.read_bytes() == old and [path.name for path in place.parent.iterdir()] == [place.name], point


# -- packages --------------------------------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Path]:
    """A root of its own for dpkg."""
    root = tmp_path / "root"
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    (root / "var/lib/dpkg/status").touch()
    yield root


def deb(folder: Path, version: str, text: str) -> Path:
    tree = folder / f"tree-{version}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: fleet-thing\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\n"
        "Description: test\n"
    )
    (tree / "DEBIAN/conffiles").write_text("/etc/thing.conf\n")
    for name, content in (("usr/share/thing", text), ("etc/thing.conf", "as shipped\n")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    out = folder / f"thing-{version}.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(tree), str(out)], check=True, capture_output=True)
    return out


def test_a_package_is_installed_and_what_was_there_comes_back_as_it_was(system: Path, tmp_path: Path) -> None:
    old, new = deb(tmp_path, "1.0", "old"), deb(tmp_path, "1.1", "new")
    subprocess.run(["dpkg", f"--root={system}", "--install", str(old)], check=True, capture_output=True)
    (system / "etc/thing.conf").write_text("changed here\n")
    lab = Lab(tmp_path / "state", system)
    with pytest.raises(Exception, match="was signed as fleet-thing"):
        lab.staging.stage(offer(new, package=Package("deb", "fleet-thing", "9.9", "all")), None, ())
    staged = lab.staging.stage(offer(new, package=Package("deb", "fleet-thing", "1.1", "all")), None, ("ab" * 20,))
    assert (system / "usr/share/thing").read_text() == "old"
    lab.staging.swap(staged)
    assert (system / "usr/share/thing").read_text() == "new"
    assert (system / "etc/thing.conf").read_text() == "changed here\n"
    lab.staging.take_back(lab.the_one())
    assert (system / "usr/share/thing").read_text() == "old"
    assert (system / "etc/thing.conf").read_text() == "changed here\n"
    shown = subprocess.run(
        ["dpkg-query", f"--admindir={system}/var/lib/dpkg", "-W", "fleet-thing"], capture_output=True, text=True
    )
    assert shown.stdout.split() == ["fleet-thing", "1.0"]


# -- with a server ---------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_after_a_restart_the_baseline_serves_and_no_hotpatch_is_needed(
    server: ControlServer, fixes: Fixes, place: Path, tmp_path: Path
) -> None:
    device = Device(tmp_path / "device", f'[server.files]\nfleet-answers = "{place}"\n')
    device.enroll(server)
    hotpatch = publish(server, fixes)
    baseline = server.publisher.baseline(fixes.fixed, "fleet-answers", 2, (build_id(fixes.fixed),), THING)
    with device:
        id = server.device().id
        with Target.start(place) as running:
            server.tell(id, apply(hotpatch), apply(baseline, "act-2", "baseline"))
            until(lambda: running.ask() == "2", "patched")
            assert server.outcome("staged", "act-2").reason == "restart_needed"
            server.after_check_ins()
            state = server.device().state
            assert state is not None and state.restart.pending
            assert place.read_bytes() == fixes.program.read_bytes(), "on disk nothing changes before the restart"
        until(lambda: place.read_bytes() == fixes.fixed.read_bytes(), "swapped in, as nobody runs the old one")
        with Target.start(place) as running:
            server.outcome("applied", "act-2")
            assert running.ask() == "2"
            lines = Path(f"/proc/{running.pid}/maps").read_text()
            assert "midflight" not in lines, "it needs no hotpatch"

            def accounted() -> bool:
                known = server.device().state
                return known is not None and known.facts.get("baselines") == "fleet-answers:2" and not known.patches

            until(accounted, "accounted")
        assert [one["state"] for one in device.ask("baselines")["baselines"]] == ["current"]
        device.ask("rollback-baseline", "fleet-answers")
        assert place.read_bytes() == fixes.program.read_bytes()
        with Target.start(place) as running:
            until(lambda: running.ask() == "2", "patched again: what was taken back needs it")
            assert server.outcome("reverted", "act-2").action == "act-2"


@pytest.mark.live
def test_a_restart_is_warned_of_and_done_when_the_policy_says_so(
    server: ControlServer, fixes: Fixes, place: Path, tmp_path: Path
) -> None:
    pid, warned = tmp_path / "pid", tmp_path / "warned"
    script = tmp_path / "restart"
    script.write_text(f"#!/bin/sh\nkill $(cat {pid})\necho restarted >> {tmp_path}/restarted\n")
    script.chmod(0o755)
    warn = tmp_path / "warn"
    warn.write_text(f'#!/bin/sh\necho "$1" >> {warned}\n')
    warn.chmod(0o755)
    settings = (
        f'[server]\nwarn = "{warn}"\n[server.files]\nfleet-answers = "{place}"\n'
        f'[server.restart]\nfleet-answers = "{script}"\n'
    )
    device = Device(tmp_path / "device", settings)
    device.enroll(server)
    baseline = server.publisher.baseline(fixes.fixed, "fleet-answers", 2, (build_id(fixes.fixed),), THING)
    with Target.start(place) as running, device:
        pid.write_text(str(running.pid))
        id = server.device().id
        order = apply(baseline, "act-2", "baseline", deadline=now() + timedelta(seconds=1))
        server.tell(id, order, policy={"restart": "never", "grace_s": 0})
        server.outcome("staged")
        time.sleep(1.5)
        server.after_check_ins()
        assert running.process.poll() is None, "the policy does not say so"
        policy: dict[str, object] = {"restart": "at_deadline", "grace_s": 3600, "warnings_s": [86400]}
        server.tell(id, order, policy=policy)
        until(warned.exists, "warned")
        assert "restarts at" in warned.read_text() and running.process.poll() is None
        server.tell(id, order, policy={**policy, "grace_s": 0})
        until(lambda: running.process.poll() is not None, "restarted")
        assert place.read_bytes() == fixes.fixed.read_bytes()
        assert len(warned.read_text().splitlines()) == 1
