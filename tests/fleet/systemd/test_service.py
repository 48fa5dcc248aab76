"""The agent as a service of a systemd that runs: readiness, watchdog, journal, sandboxes, upgrades, restarts."""

from __future__ import annotations

from pathlib import Path

from tests.commands import until
from tests.fleet.systemd.machine import Booted
from tests.fleet.systemd.thing import Things

AGENT = "midflight-agent"
ORDERS = "/var/lib/midflight/hotpatches"

SANDBOXES = {
    "private-tmp": "PrivateTmp=yes",
    "strict": "ProtectSystem=strict\nProtectHome=yes\nReadOnlyPaths=/",
    "dynamic-user": "DynamicUser=yes\nStateDirectory=dynamic",
    "user": "User=nobody",
    "no-write-execute": "MemoryDenyWriteExecute=yes",
    "filter": "SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM",
    "killing-filter": "SystemCallFilter=~memfd_create process_vm_readv @debug @module @mount @raw-io",
    "narrow-filter": "SystemCallFilter=execve brk arch_prctl access openat read pread64 newfstatat fstat close mmap "
    "mprotect munmap set_tid_address set_robust_list rseq prlimit64 socket setsockopt bind listen accept write "
    "getrandom exit_group",
    "no-new-privileges": "NoNewPrivileges=yes",
    "private-users": "PrivateUsers=yes",
    "private-users-of-nobody": "PrivateUsers=yes\nUser=nobody",
    "private-network": "PrivateNetwork=yes",
    "private-devices": "PrivateDevices=yes",
    "hidden-processes": "ProtectProc=invisible\nProcSubset=pid\nUser=nobody",
    "namespaces": "RestrictNamespaces=yes\nRestrictAddressFamilies=AF_INET\nLockPersonality=yes\nRestrictRealtime=yes",
    "no-capabilities": "CapabilityBoundingSet=",
    "own-root": "RootDirectory=/srv/box\nMountAPIVFS=yes\nBindReadOnlyPaths=/usr /lib /lib64",
    "no-exec": "TemporaryFileSystem=/var:ro\nNoExecPaths=/\nExecPaths=/usr/sbin /usr/lib /lib /lib64",
    "limits": "TasksMax=1\nLimitNOFILE=8\nLimitMEMLOCK=0\nLimitFSIZE=0\nLimitAS=16M",
}
SANDBOXES["everything"] = "\n".join(
    lines
    for name, lines in SANDBOXES.items()
    if name not in ("user", "own-root", "no-exec", "limits") and "-of-" not in name
).replace("User=nobody", "UMask=0077") + (
    "\nProtectKernelModules=yes\nProtectKernelTunables=yes\nProtectClock=yes\nProtectHostname=yes\n"
    "ProtectControlGroups=yes\nProtectKernelLogs=yes\nRemoveIPC=yes\nSystemCallArchitectures=native"
)


def installed(machine: Booted, *options: str) -> None:
    """Install the agent as a user does; when that has returned it is ready."""
    machine.midflight("agent", "install", *options)
    assert machine.show(AGENT, "ActiveState") == "active"


def service(machine: Booted, name: str, lines: str = "", command: str = "/usr/sbin/thing") -> None:
    """Write a service of the system."""
    machine.write(f"/etc/systemd/system/{name}", f"[Service]\nExecStart={command}\n{lines}\n")
    machine.run("systemctl", "daemon-reload")


def restarts(machine: Booted) -> int:
    """How often systemd has started the agent again by itself."""
    return int(machine.show(AGENT, "NRestarts"))


def test_every_sandbox_of_systemd_is_patched(machine: Booted, things: Things) -> None:
    ports = {name: 7000 + number for number, name in enumerate(SANDBOXES)}
    (machine.root_now / "srv/box").mkdir(parents=True)
    for name, lines in SANDBOXES.items():
        service(machine, f"{name}.service", lines, f"/usr/sbin/thing {ports[name]}")
    service(machine, "template@.service", "DynamicUser=yes", "/usr/sbin/thing %i")
    service(machine, "socket.service", "DynamicUser=yes")
    machine.write("/etc/systemd/system/socket.socket", "[Socket]\nListenStream=7100\n")
    machine.run("systemctl", "daemon-reload")
    ports |= {"template@7101": 7101}
    machine.run("systemctl", "start", "socket.socket", *(f"{name}.service" for name in ports))
    for name, port in ports.items():
        until(lambda name=name, port=port: machine.ask(name, port) == "hole", f"{name} answers")  # type: ignore[misc]
    installed(machine)
    machine.copy(things.hotpatch, f"{ORDERS}/thing-1.hotpatch")
    until(lambda: machine.midflight("agent", "status", status=None)["hotpatches"], "the order was read")
    for name, port in ports.items():
        until(lambda name=name, port=port: machine.ask(name, port) == "mended", f"{name} is mended")  # type: ignore[misc]
    # What starts later; a socket brings its service with the first who asks.
    assert machine.ask("socket", 7100)
    until(lambda: machine.ask("socket", 7100) == "mended", "the service of a socket is mended")
    machine.run("systemctl", "restart", "everything", "template@7101")
    until(lambda: machine.ask("everything", ports["everything"]) == "mended", "what was restarted is mended again")
    until(lambda: machine.midflight("agent", "status")["hotpatches"][0]["processes"] == len(ports) + 1, "all are told")
    machine.run("midflight", "check", "--pid", str(machine.main_pid("everything")))
    machine.run("midflight", "revert", "--name", "thing", "--pid", str(machine.main_pid("narrow-filter")))


def test_an_agent_with_a_system_call_filter_says_why_it_cannot_patch_those_that_have_one(
    machine: Booted, things: Things
) -> None:
    service(machine, "filtered.service", SANDBOXES["filter"], "/usr/sbin/thing 7000")
    service(machine, "open.service", "", "/usr/sbin/thing 7001")
    machine.run("systemctl", "start", "filtered", "open")
    machine.write(f"/etc/systemd/system/{AGENT}.service.d/filter.conf", "[Service]\nLockPersonality=yes\n")
    installed(machine)
    machine.copy(things.hotpatch, f"{ORDERS}/thing-1.hotpatch")
    until(lambda: machine.ask("open", 7001) == "mended", "the one without a filter is mended")
    (failed,) = until(lambda: machine.midflight("agent", "status", status=None)["failed"], "the other is refused")
    assert failed["pid"] == machine.main_pid("filtered") and "SystemCallFilter" in failed["reason"]
    assert machine.ask("filtered", 7000) == "hole"


def test_systemd_restarts_an_agent_that_hangs_dies_or_cannot_begin(machine: Booted, things: Things) -> None:
    machine.write(f"/etc/systemd/system/{AGENT}.service.d/soon.conf", "[Service]\nWatchdogSec=2\nRestartSec=100ms\n")
    service(machine, "thing.service", "", "/usr/sbin/thing 7000")
    machine.run("systemctl", "start", "thing")
    installed(machine)
    assert "hotpatches in force" in machine.show(AGENT, "StatusText")
    machine.copy(things.hotpatch, f"{ORDERS}/thing-1.hotpatch")
    until(lambda: machine.ask("thing", 7000) == "mended", "it is mended")
    patched = machine.main_pid("thing")

    for number, name in enumerate(("SIGSTOP", "SIGKILL"), 1):
        machine.run("systemctl", "kill", "--signal", name, AGENT)
        until(lambda number=number: restarts(machine) == number, f"systemd starts it again after {name}")  # type: ignore[misc]
        until(lambda: machine.show(AGENT, "SubState") == "running", "it runs again")

    machine.write("/etc/midflight/agent.toml", "bogus = 1\n")
    machine.run("systemctl", "restart", AGENT, status=1)
    until(lambda: restarts(machine) > 20, "it is tried more often than systemd would by itself")
    why = [one for one in machine.journal(AGENT) if "bogus" in one["MESSAGE"]]
    assert {one["PRIORITY"] for one in why} == {"3"} and why[0]["SYSLOG_IDENTIFIER"] == AGENT
    (machine.root_now / "etc/midflight/agent.toml").unlink()
    until(lambda: machine.show(AGENT, "SubState") == "running", "it begins when it can")

    # What is in force stayed so, in the same process, and was not put there twice.
    assert machine.main_pid("thing") == patched and machine.ask("thing", 7000) == "mended"
    machine.run("systemctl", "stop", AGENT)
    assert machine.show(AGENT, "Result") == "success" and machine.ask("thing", 7000) == "mended"
    assert not machine.midflight("agent", "status", status=1)["running"]
    assert [one["MESSAGE"] for one in machine.journal(AGENT) if one.get("MIDFLIGHT_EVENT") == "applied"] == [
        one["MESSAGE"] for one in machine.journal(AGENT) if one["MESSAGE"].startswith("applied: thing 1 in process")
    ]


def test_the_journal_has_levels_and_kinds(machine: Booted, things: Things) -> None:
    installed(machine)
    machine.copy(things.hotpatch, f"{ORDERS}/thing-1.hotpatch")
    machine.copy(things.program, f"{ORDERS}/broken.hotpatch")
    entries = until(lambda: machine.journal(AGENT, "MIDFLIGHT_EVENT=problem", "-g", "broken"), "what is wrong is told")
    assert entries[0]["PRIORITY"] == "4" and entries[0]["SYSLOG_IDENTIFIER"] == AGENT
    (started,) = machine.journal(AGENT, "MIDFLIGHT_EVENT=started")
    assert started["PRIORITY"] == "6" and started["MESSAGE"].startswith("started: the folder ")


def test_hotpatches_stay_when_midflight_is_upgraded_and_go_when_the_machine_starts_again(
    machine: Booted, things: Things, midflight_wheel: Path
) -> None:
    service(machine, "thing.service", "[Install]\nWantedBy=multi-user.target", "/usr/sbin/thing 7000")
    machine.run("systemctl", "enable", "--now", "thing")
    installed(machine)
    unit = machine.root_now / f"etc/systemd/system/{AGENT}.service"
    now = unit.read_text()
    machine.copy(things.hotpatch, f"{ORDERS}/thing-1.hotpatch")
    until(lambda: machine.ask("thing", 7000) == "mended", "it is mended")
    patched, before = machine.main_pid("thing"), machine.main_pid(AGENT)

    unit.write_text(now.replace("Nice=-10", "Nice=5"))  # as an older version had it
    machine.install(midflight_wheel)
    installed(machine)
    assert unit.read_text() == now and machine.main_pid(AGENT) != before
    assert machine.main_pid("thing") == patched and machine.ask("thing", 7000) == "mended"
    status = machine.midflight("agent", "status")
    assert status["hotpatches"] == [{"name": "thing", "sequence": 1, "processes": 1}]

    machine.reboot()
    until(lambda: machine.ask("thing", 7000) == "mended", "the agent starts with the machine, and patches what starts")
    machine.run("midflight", "check", "--pid", str(machine.main_pid("thing")))
    machine.midflight("agent", "uninstall")
    assert machine.show(AGENT, "LoadState") == "not-found" and machine.ask("thing", 7000) == "mended"


def test_a_package_that_is_upgraded_meanwhile_ends_the_need(machine: Booted, things: Things) -> None:
    machine.copy(things.old_package, "/root/old.deb")
    machine.copy(things.new_package, "/root/new.deb")
    machine.run("dpkg", "-i", "/root/old.deb")
    service(machine, "thing.service", SANDBOXES["everything"], "/usr/sbin/thing 7000")
    machine.run("systemctl", "start", "thing")
    installed(machine)
    machine.copy(things.hotpatch, f"{ORDERS}/thing-1.hotpatch")
    until(lambda: machine.ask("thing", 7000) == "mended", "it is mended")

    machine.run("dpkg", "-i", "/root/new.deb")  # and nobody restarts the service
    old = machine.main_pid("thing")
    machine.run("systemctl", "restart", AGENT)
    assert machine.ask("thing", 7000) == "mended"
    machine.run("midflight", "check", "--pid", str(old))
    service(machine, "another.service", "", f"/proc/{old}/exe 7001")
    machine.run("systemctl", "start", "another")
    until(
        lambda: machine.ask("another", 7001) == "mended", "a file that is not there any more is patched where it runs"
    )
    machine.run("systemctl", "stop", "another")

    machine.run("systemctl", "restart", "thing")
    until(lambda: machine.ask("thing", 7000) == "mended", "the new one has the fix built in")
    assert machine.main_pid("thing") != old
    status = until(
        lambda: (found := machine.midflight("agent", "status"))["hotpatches"][0]["processes"] == 0 and found, "noticed"
    )
    assert not status["failed"]
    machine.run("midflight", "check", "--pid", str(machine.main_pid("thing")))
