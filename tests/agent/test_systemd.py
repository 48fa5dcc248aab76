"""What systemd hears, over a real socket, and what it thinks of the unit."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from midflight.agent import notices, systemd
from midflight.agent.systemd import Systemd, unit
from midflight.errors import InputError
from midflight.machine import units
from tests.commands import midflight

SWAP = ["/bin/echo", "swap"]


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The socket of a service manager."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return listening


def all_of(listening: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listening.recv(4096).decode())
        except BlockingIOError:
            return found


def test_what_systemd_hears(heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    service = Systemd()
    service.ready("1 hotpatch")
    service.alive("1 hotpatch")
    service.alive("2 hotpatches")
    service.stopping()
    said = all_of(heard)
    assert said[0] == "READY=1\nSTATUS=1 hotpatch" and said[-1] == "STOPPING=1"
    assert "WATCHDOG=1" in said and said.count("STATUS=2 hotpatches") == 1


def test_the_watchdog_of_another_process_is_not_ours(heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Systemd().alive("")
    assert "WATCHDOG=1" not in all_of(heard)


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service = Systemd()
    service.ready("")
    service.alive("x")
    service.stopping()


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    path = tmp_path / systemd.UNIT
    path.write_text(midflight("agent", "install", "--print", "--folder", tmp_path / "50% $HOME").out)
    assert "50%% $$HOME'" in path.read_text()
    if shutil.which("systemd-analyze"):  # is not everywhere where these tests run
        checked = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, checked.stderr


def test_the_unit_keeps_what_a_process_patcher_needs_and_no_more() -> None:
    text = unit(["/usr/bin/midflight"])
    (bounding,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    needed = {"SYS_PTRACE", "DAC_OVERRIDE", "NET_ADMIN", "SYS_ADMIN", "CHECKPOINT_RESTORE", "KILL"}
    assert set(bounding.partition("=")[2].split()) == {f"CAP_{name}" for name in needed}
    for kept in ("PrivateNetwork=no", "RuntimeDirectoryPreserve=yes", "NoNewPrivileges=yes", "Type=notify"):
        assert kept in text.splitlines()
    # Each of these makes a system call filter, and whoever has one cannot suspend those of others.
    filters = (
        "SystemCall", "Restrict", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock",
        "ProtectHostname", "ProtectKernel",
    )  # fmt: skip
    assert not [line for line in text.splitlines() if line.startswith(filters)]


def test_what_the_journal_hears(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "journal"
    tell = systemd.to_journal(notices.to_stream(), place)
    tell(notices.Notice("barred", "nobody\nlistens"))
    assert "barred: nobody listens" in capfd.readouterr().err
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(place))
    tell(notices.Notice("barred", "two\nPRIORITY=7"))
    assert listening.recv(4096).decode().splitlines() == [
        "MESSAGE=barred: two PRIORITY=7", "PRIORITY=3", "SYSLOG_IDENTIFIER=midflight-agent", "MIDFLIGHT_EVENT=barred"
    ]  # fmt: skip
    assert not capfd.readouterr().err


def test_the_journal_is_meant_only_when_it_reads_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # inherited, and redirected since
    assert not systemd.under_journal()
    state = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{state.st_dev}:{state.st_ino}")
    assert systemd.under_journal()


def test_a_unit_is_written_kept_up_to_date_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "FOLDER", tmp_path / "units")
    monkeypatch.setattr(units, "runs", lambda: False)
    path = systemd.install(["/usr/bin/midflight", "agent"], SWAP, start=True)
    assert "ExecStart=/usr/bin/midflight agent\n" in path.read_text()
    assert not path.with_name(f"{path.name}.d").exists()
    systemd.install(["/usr/bin/midflight", "newer"], SWAP, start=True)
    assert "ExecStart=/usr/bin/midflight newer\n" in path.read_text()
    assert systemd.uninstall() == path and not path.exists()
    with pytest.raises(InputError, match="nothing to remove"):
        systemd.uninstall()


def test_for_baselines_a_drop_in_lets_it_into_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "FOLDER", tmp_path / "units")
    monkeypatch.setattr(units, "runs", lambda: False)
    path = systemd.install(["/bin/true"], SWAP, start=True, baselines=True)
    drop_in = path.with_name(f"{path.name}.d") / "baselines.conf"
    assert "ProtectSystem=no\n" in drop_in.read_text()
    drop_in.write_text("older")
    systemd.install(["/bin/true"], SWAP, start=True)
    assert "ProtectSystem=no\n" in drop_in.read_text()
    early = path.with_name(systemd.EARLY)
    assert "ExecStart=/bin/echo swap\n" in early.read_text() and "Before=sysinit.target" in early.read_text()
    if shutil.which("systemd-analyze") is not None:
        checked = subprocess.run(["systemd-analyze", "verify", str(path), str(early)], capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, checked.stderr
    systemd.uninstall()
    assert not list((tmp_path / "units").iterdir())
