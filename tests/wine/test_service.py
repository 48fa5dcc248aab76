"""The agent as a service: installed, started and stopped by the service control manager, it patches what starts."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midflight.agent import clocks, eventlog, winservice
from midflight.agent.notices import Notice
from midflight.agent.state import Snapshot, look
from midflight.errors import InputError
from midflight.machine import sids
from midflight.machine.ownership import make_closed_folder
from midflight.machine.places import (
    config_folder,
    hotpatch_folder,
    log_folder,
    machine_folder,
    run_folder,
    state_folder,
)
from midflight.process.snapshots import INTERVAL, Snapshots
from midflight.trust.store import trusted_keys
from tests.commands import until
from tests.wine.harness import PROGRAMS, Target, clean, hotpatch_file, load, midflight, refused

ACCESS_VIOLATION = 0xC0000005
EVERYBODY = "D:P(A;;FA;;;BA)(A;;FA;;;WD)"


def log() -> str:
    """What the service wrote."""
    folder = log_folder()
    assert folder is not None
    path = folder / "agent.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def known() -> Snapshot:
    """What the service remembers."""
    return look(state_folder(), clocks.boot())


def sc(*words: str) -> str:
    """The service control program of the system."""
    return subprocess.run(["sc", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60).stdout


@pytest.fixture
def machine() -> Iterator[Path]:
    """The folders of this machine, empty, and gone again afterwards."""
    for name in ("config", "state", "hotpatches", "log"):
        shutil.rmtree(machine_folder() / name, ignore_errors=True)
    yield machine_folder()
    for name in ("config", "state", "hotpatches", "log"):
        shutil.rmtree(machine_folder() / name, ignore_errors=True)


@pytest.fixture
def service(machine: Path) -> Iterator[Path]:
    """The service, installed and running with the keys and the folder of the machine; that folder."""
    midflight("agent", "install", "--no-start")
    try:
        shutil.copy(PROGRAMS / "test.pub", config_folder() / "trust.d")
        sc("start", winservice.NAME)
        until(lambda: "in force: nothing" in log() or "failed: " in log(), "started")
        assert "failed: " not in log(), log()
        yield hotpatch_folder()
    finally:
        midflight("agent", "uninstall", status=None)


def test_the_life_of_a_service(service: Path) -> None:
    with Target("threads.exe", "2") as early, Target("threads.exe", "2") as doomed:
        assert early.ask() == "1 10 0"
        shutil.copy(hotpatch_file("both2"), service / "new.tmp")
        (service / "new.tmp").rename(service / "both2.hotpatch")
        until(lambda: early.ask() == "2 20 0", "patched, though it ran when the hotpatch came")
        until(lambda: doomed.ask() == "2 20 0", "patched")
        with Target("threads.exe", "2") as late:
            until(lambda: late.ask() == "2 20 0", "patched, though it started when the hotpatch was there")
        # The third has ended; that it did is noticed a moment later.
        until(lambda: len(known().applications) == 2, "on record")
        shown = midflight("agent", "status", "--json", status=None).json
        assert shown["running"] and shown["hotpatches"] == [{"name": "answers", "sequence": 1, "processes": 2}], shown

        # It ends as an unhandled access violation ends a program.
        ctypes.WinDLL("kernel32").TerminateProcess(int(doomed.process._handle), ACCESS_VIOLATION)  # type: ignore[attr-defined]
        until(lambda: early.ask() == "1 10 0", "taken out, though another process crashed")
        (bar,) = until(lambda: known().bars, "barred")
        assert (bar.name, bar.sequence) == ("answers", 1) and "0xc0000005" in bar.reason
        with Target("threads.exe", "1") as later:
            time.sleep(1.0)
            assert later.ask() == "1 10 0", "what is barred was applied"
        midflight("agent", "unbar", "answers:1")
        until(lambda: early.ask() == "2 20 0", "applied again, though it is not barred any more")

        assert "STOP" in sc("stop", winservice.NAME).upper()
        until(lambda: "stopped: " in log(), "stopped")
        assert early.ask() == "2 20 0", "what is in force stays in force"
        clean(early)
    assert not known().running
    for kind in ("applied: answers 1", "crashed: ", "barred: answers 1", "reverted: answers 1", "unbarred: answers 1"):
        assert kind in log(), kind


def test_a_service_is_installed_as_it_should_be_says_why_it_fails_and_leaves_nothing(machine: Path) -> None:
    winreg: Any = __import__("winreg")
    path = rf"SYSTEM\CurrentControlSet\Services\{winservice.NAME}"
    midflight("agent", "install", "--no-start", "--folder", r"C:\there\is\none")
    try:
        with pytest.raises(winservice.ServiceError, match="already"):
            winservice.install("anything")
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            command = winreg.QueryValueEx(key, "ImagePath")[0]
            assert sys.executable in command
            assert command.endswith(r"-m midflight agent run --service --folder C:\there\is\none")
            assert winreg.QueryValueEx(key, "Start")[0] == 2, "it starts with the machine"
            assert "hotpatches" in winreg.QueryValueEx(key, "Description")[0]
            # The recovery actions are taken by Wine, but kept nowhere.
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, eventlog.KEY) as key:
            assert winreg.QueryValueEx(key, "EventMessageFile")[0].endswith("EventCreate.exe")
        for folder in (config_folder(), config_folder() / "trust.d", hotpatch_folder(), run_folder()):
            assert sids.changeable_by(folder) is None
        with pytest.raises(winservice.ServiceError, match="has stopped again"):
            winservice.start()
        assert r"there is no folder C:\there\is\none" in log()
    finally:
        midflight("agent", "uninstall")
    for gone in (path, eventlog.KEY):
        with pytest.raises(FileNotFoundError):
            winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, gone)
    with pytest.raises(winservice.ServiceError, match="there is no service"):
        winservice.uninstall()


def test_only_the_service_manager_starts_a_service() -> None:
    with pytest.raises(winservice.ServiceError, match="service manager"):
        winservice.serve(lambda control: None)


def test_events_are_taken_by_the_event_log() -> None:
    """Wine keeps none, so that they are taken is all that can be seen here."""
    tell = eventlog.to_event_log()
    for kind in eventlog.NUMBERS:
        tell(Notice(kind, f"a test of {kind}"))
    assert len(set(eventlog.NUMBERS.values())) == len(eventlog.NUMBERS) and max(eventlog.NUMBERS.values()) <= 1000


def test_processes_are_seen_to_begin_and_end() -> None:
    assert INTERVAL <= 0.1
    events = Snapshots()

    def told() -> list[tuple[str, int]]:
        return [(event.kind, event.pid) for event in events.wait(1)]

    with Target("threads.exe", "0") as target:
        until(lambda: ("started", target.pid) in told(), "seen")
        assert ("ended", target.pid) not in told() + told()
    until(lambda: ("ended", target.pid) in told(), "seen to end")


def test_keys_that_others_can_change_are_not_trusted(machine: Path) -> None:
    folder = config_folder() / "trust.d"
    make_closed_folder(folder)
    shutil.copy(PROGRAMS / "test.pub", folder)
    assert len(trusted_keys()) == 1
    for path in (folder / "test.pub", folder):
        sids.give_rights(path, EVERYBODY)
        with pytest.raises(InputError, match="can be changed by others \\(everybody\\)"):
            trusted_keys()
        sids.give_rights(path, sids.CLOSED)
    assert len(trusted_keys()) == 1


def test_a_run_folder_that_others_can_change_is_not_used() -> None:
    make_closed_folder(run_folder())
    with Target("threads.exe", "1") as target:
        sids.give_rights(run_folder(), EVERYBODY)
        try:
            assert "everybody can change it" in refused(target, load("both2"))
            assert target.ask() == "1 10 0"
        finally:
            sids.give_rights(run_folder(), sids.CLOSED)
