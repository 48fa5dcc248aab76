"""Devices: a network namespace each, with a cable to the server, a host name, a machine id, a daemon, and an agent that
looks after the processes of this namespace alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from demo.fleet import daemon
from demo.fleet.load import enter_network, get
from demo.server import DemoError
from midflight.image.elf import ElfFile

SERVER = "10.213.77.1"
"""The server's address on every cable."""

SETTINGS = """\
rescan = 1.0
processes = "network"
[health]
probes = ["{probe}"]
checks = [{checks}]
[server]
integrity = 2
patience = 30
[server.files]
webd = "{program}"
[server.restart]
webd = "{restart}"
"""
RESTART = """\
#!/bin/sh
# what systemd does elsewhere: ends the daemon, and starts what lies at its place
cd {folder}
old=$(cat webd.pid 2> /dev/null)
[ -z "$old" ] || kill "$old" 2> /dev/null
while [ -n "$old" ] && readlink "/proc/$old/exe" > /dev/null 2>&1; do sleep 0.05; done
setsid {program} {port} > webd.log 2>&1 < /dev/null &
echo $! > webd.pid
"""
PROBE = """\
#!/bin/bash
# whether webd says that it is well
exec 3<> /dev/tcp/127.0.0.1/{port}
printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3
grep -q '^HTTP/1.0 200' <&3
"""


def enroll_all(machines: Sequence[Machine], url: str, token: str, pin: str) -> None:
    """Enroll devices, all at once, and start their agents."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda machine: machine.enroll(url, token, pin), machines))
    for machine in machines:
        machine.start_agent()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"ip {' '.join(words)}: {done.stderr.strip()} (network namespaces need root)")


class Machine:
    """One device. ``number`` from 1."""

    def __init__(self, folder: Path, number: int, program: Path, checks: str = "1, 2, 4") -> None:
        self.name, self.folder = f"web-{number}", folder / f"web-{number}"
        self.space, self.cable = f"midflight-{os.getpid()}-{number}", f"mf{os.getpid()}.{number}"[-15:]
        self.network = Path("/run/netns") / self.space
        self.address = f"10.213.77.{10 + number}"
        self.agent: subprocess.Popen[bytes] | None = None
        self.device = ""
        (self.folder / "config").mkdir(parents=True)
        self.program, self.restart = self.folder / "webd", self.folder / "restart-webd"
        shutil.copy(program, self.program)
        probe = self.folder / "probe-webd"
        probe.write_text(PROBE.format(port=daemon.PORT))
        self.restart.write_text(RESTART.format(folder=self.folder, program=self.program, port=daemon.PORT))
        probe.chmod(0o755)
        self.restart.chmod(0o755)
        (self.folder / "machine-id").write_text(f"{number:032x}\n")
        (self.folder / "config" / "agent.toml").write_text(
            SETTINGS.format(probe=probe, checks=checks, program=self.program, restart=self.restart)
        )
        self._env = {
            **os.environ,
            "MIDFLIGHT_STATE": str(self.folder / "state"),
            "MIDFLIGHT_CONFIG": str(self.folder / "config"),
            "MIDFLIGHT_RUN": str(self.folder / "run"),
        }
        self.log = self.folder / "agent.log"
        self._power_on()

    def _power_on(self) -> None:
        _ip("netns", "add", self.space)
        _ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        _ip("addr", "add", SERVER, "peer", self.address, "dev", self.cable)
        _ip("link", "set", self.cable, "up")
        inside = (
            f"ip link set lo up && ip addr add {self.address} peer {SERVER} dev eth0 && ip link set eth0 up && "
            f"echo {self.name} > /proc/sys/kernel/hostname && "
            f"{{ [ ! -e /etc/machine-id ] || mount --bind {self.folder}/machine-id /etc/machine-id; }} && "
            "echo on && exec sleep infinity"
        )
        own = ["nsenter", f"--net={self.network}", "unshare", "--uts", "--mount", "--propagation", "private"]
        self._holder = subprocess.Popen([*own, "sh", "-c", inside], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"on\n":
            raise DemoError(f"{self.name} did not come up; network namespaces need root")
        self._enter = ["nsenter", "-t", str(self._holder.pid), "--net", "--uts", "--mount", "--"]

    # -- what a person does on the device ------------------------------------------------------------------------

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run something on the device."""
        done = subprocess.run(
            [*self._enter, *words], env=self._env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if check and done.returncode:
            raise DemoError(f"{self.name}: {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def midflight(self, *words: str) -> Any:
        """Run a ``midflight`` command on the device; returns its JSON."""
        return json.loads(self.command(sys.executable, "-m", "midflight", *words, "--json", check=False).stdout)

    def enroll(self, url: str, token: str, pin: str) -> str:
        """``midflight agent enroll``; returns the device's id."""
        words = ["agent", "enroll", "--server", url, "--token", token, "--pin", pin, "--json"]
        done = self.command(sys.executable, "-m", "midflight", *words)
        self.device = str(json.loads(done.stdout)["device"])
        return self.device

    def start_daemon(self) -> None:
        """Start, or start again, what the device is there for."""
        subprocess.run([*self._enter, str(self.restart)], check=True, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while self.ask("/health") != "200":
            if time.monotonic() > deadline:
                raise DemoError(f"{self.name}: webd does not answer: {(self.folder / 'webd.log').read_text()}")
            time.sleep(0.05)

    def start_agent(self) -> None:
        """``midflight agent run``, in the foreground of nobody."""
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                [*self._enter, sys.executable, "-m", "midflight", "agent", "run"],
                env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill_agent(self, number: int = signal.SIGKILL) -> None:
        """End the agent, however."""
        if self.agent is not None:
            self.agent.send_signal(number)
            self.agent.wait(30)
            self.agent = None

    def cut(self, off: bool = True) -> None:
        """Pull the cable, or plug it in again."""
        _ip("link", "set", self.cable, "down" if off else "up")

    # -- what can be seen of it ----------------------------------------------------------------------------------

    def ask(self, page: str) -> str:
        """What the daemon answers; empty: nothing."""
        found: list[str] = []

        def inside() -> None:
            enter_network(self.network)
            with contextlib.suppress(OSError):
                found.append(get(page))

        asking = threading.Thread(target=inside)
        asking.start()
        asking.join()
        return found[0] if found else ""

    @property
    def vulnerable(self) -> bool:
        """Whether the hole is open: tried, not looked up."""
        answer = self.ask(daemon.EXPLOIT)
        if not answer.startswith("hello "):
            raise DemoError(f"{self.name}: webd answered {answer!r}")
        return daemon.SECRET in answer

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return int((self.folder / "webd.pid").read_text())

    def visit(self, url: str) -> tuple[int, str]:
        """Ask a web server, with the device's own certificate; returns the status and the reason it gives."""
        identity = next((self.folder / "state").rglob("identity.pem"))
        form = "%{http_code} %header{x-midflight-reason}"
        done = self.command(
            *("curl", "-sk", "--max-time", "10", "-o", "/dev/null", "-w", form),
            *("--cert", str(identity), "--key", str(identity), url),
        )
        status, _, reason = done.stdout.partition(" ")
        return int(status), reason.strip()

    def tamper(self) -> None:
        """Change a byte of the daemon's code in memory, as an intruder does: in main, which is not run again."""
        with ElfFile.open(self.program) as elf:
            offset = elf.symbols_by_name["main"][0].value
        base = int(Path(f"/proc/{self.pid}/maps").read_text().split("-", 1)[0], 16)
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            os.lseek(memory.fileno(), base + offset, os.SEEK_SET)
            memory.write(b"\xc3")

    def off(self) -> None:
        """Take it away with all that runs on it."""
        with contextlib.suppress(Exception):
            self.kill_agent(signal.SIGTERM)
        self.kill_agent()
        with contextlib.suppress(OSError, ValueError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.kill()
        self._holder.wait()
        subprocess.run(["ip", "link", "del", self.cable], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True)
