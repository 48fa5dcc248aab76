"""A machine with systemd: a small Debian 12 in namespaces of its own, with systemd as its first process, and Midflight
installed there from a wheel as a user installs it.

It has its own processes, mounts, network, host name and control groups, and a cable to this machine but no way to the
network outside. What it changes on its disk lies in a layer that goes with it; a restart keeps that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.commands import PATIENCE, until

TOP = Path(__file__).resolve().parents[3]
PACKAGES = "systemd,systemd-sysv,dbus,python3-venv"
ENVIRONMENT = "/opt/midflight"
HERE, THERE = "10.213.79.1", "10.213.79.2"
"""The two ends of its cable: this machine, and that one."""
_GROUPS = Path("/sys/fs/cgroup")
_START = r"""
set -e
root=$1
ip link set lo up
mount --bind $root $root
mount -t proc -o nosuid,noexec,nodev proc $root/proc
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs $root/sys
mount -t tmpfs -o mode=755,nosuid tmpfs $root/dev
for one in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read name major minor <<< $one
  mknod -m 666 $root/dev/$name c $major $minor
done
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs $root/dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs $root/run
if [ -d /sys/fs/cgroup/systemd ]; then
  mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
  mkdir $root/sys/fs/cgroup/systemd $root/sys/fs/cgroup/unified
  mount -t cgroup -o none,name=systemd cgroup $root/sys/fs/cgroup/systemd
  mount -t cgroup2 cgroup2 $root/sys/fs/cgroup/unified
else
  mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
fi
cd $root
pivot_root . mnt
umount -l /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /lib/systemd/systemd --log-target=console
"""


def _run(*words: str | int | Path, **more: Any) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}"
    return str(done.stdout)


def _debian() -> Path:
    """The root file system that all such machines share; made once (15 s) by mmdebstrap, from the archives that this
    machine is configured for."""
    root = TOP / ".cache" / f"debian-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:12]}"
    if not root.exists():
        part = root.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        _run("mmdebstrap", "--mode=root", "--variant=essential", f"--include={PACKAGES}", "--quiet", "bookworm", part)
        _run("chroot", part, "python3", "-m", "venv", "--without-pip", ENVIRONMENT)
        (part / "usr/bin/midflight").write_text(f'#!/bin/sh\nexec {ENVIRONMENT}/bin/python -m midflight "$@"\n')
        (part / "usr/bin/midflight").chmod(0o755)
        (part / "etc/hostname").write_text("device\n")
        part.rename(root)
    return root


def wheel(folder: Path) -> Path:
    """Build the wheel of Midflight as it is."""
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    return folder / _run(sys.executable, "-c", build, folder, cwd=TOP).splitlines()[-1]


class Booted:
    """One machine. ``folder``: for its layer of the file system."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._name = folder, f"midflight-test-{os.getpid()}"
        self.root = folder / "root"
        self.console = folder / "console.log"
        self._outer: subprocess.Popen[bytes] | None = None
        self.init = 0
        """Its first process, as this machine counts processes."""
        for name in ("root", "upper", "work"):
            (folder / name).mkdir(parents=True)
        layers = f"lowerdir={_debian()},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)

    def install(self, file: Path, extra: str = "") -> None:
        """Have the wheel in its virtual environment, with what it needs (and an extra, such as ``[server]``) in the
        versions that are pinned."""
        version = f"python{sysconfig.get_python_version()}"
        place = next(self.root.glob(f"{ENVIRONMENT[1:]}/lib/python3*/site-packages"))
        assert place.parent.name == version, "the tests run by the Python version of Debian 12"
        uv = Path(sys.executable).with_name("uv")
        what = ("-c", TOP / "requirements.lock", f"{file}{extra}")
        _run(uv, "pip", "install", "-q", "-p", sys.executable, "--target", place, "--link-mode=copy", *what)

    def boot(self) -> None:
        """Switch it on, and wait until everything has started."""
        groups = [
            path for path in (_GROUPS / "systemd", _GROUPS / "unified", _GROUPS) if (path / "cgroup.procs").exists()
        ]
        for group in groups:
            (group / self._name).mkdir(exist_ok=True)
        spaces = ["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--propagation=private"]

        def confined() -> None:
            for group in groups:
                (group / self._name / "cgroup.procs").write_text("0")

        with self.console.open("ab") as log:
            self._outer = subprocess.Popen(
                ["unshare", *spaces, "--fork", "--kill-child", "bash", "-c", _START, "start", str(self.root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=confined, start_new_session=True,
            )  # fmt: skip
        outer = self._outer.pid

        def started() -> int:
            assert self._outer is not None and self._outer.poll() is None, self.console.read_text()
            for pid in Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return int(pid)
            return 0

        self.init = until(started, "its systemd starts")
        self._plug_in()
        until(lambda: (self.root_now / "run/systemd/private").exists(), "its systemd listens")
        state = self.run("systemctl", "is-system-running", "--wait", status=None).strip()
        assert state == "running", self.run("systemctl", "--failed", status=None)

    def _plug_in(self) -> None:
        near, inside = f"mf{os.getpid()}s", ("nsenter", "-t", self.init, "--net", "ip")
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", self.init)
        _run("ip", "addr", "add", HERE, "peer", THERE, "dev", near)
        _run("ip", "link", "set", near, "up")
        _run(*inside, "addr", "add", THERE, "peer", HERE, "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")

    @property
    def root_now(self) -> Path:
        """Its file system while it runs, with all that is mounted there."""
        return Path(f"/proc/{self.init}/root")

    def run(self, *words: str | Path, status: int | None = 0) -> str:
        """Run something on it, as root; returns what it said."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
             *map(str, words)],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
        assert status is None or done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return str(done.stdout + (done.stderr if status != 0 else ""))

    def midflight(self, *words: str, status: int | None = 0) -> Any:
        """A ``midflight`` command on it; returns its JSON."""
        return json.loads(self.run("midflight", *words, "--json", status=status))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on it."""
        place = self.root_now / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def copy(self, file: Path, path: str) -> None:
        """Copy a file to it; it has its name when it is complete."""
        place = self.root_now / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        shutil.copy(file, part)
        os.chown(part, 0, 0)
        part.rename(place)

    def read(self, path: str) -> str:
        """Read a file on it."""
        return (self.root_now / path.lstrip("/")).read_text(errors="replace")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as systemd tells it."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def main_pid(self, unit: str) -> int:
        """The main process of a service, as the machine counts processes; 0: it does not run."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str, *options: str) -> list[dict[str, Any]]:
        """What its journal has of a unit."""
        lines = self.run("journalctl", "-o", "json", "--no-pager", "-u", unit, *options, status=None).splitlines()
        return [json.loads(line) for line in lines]

    def ask(self, unit: str, port: int) -> str:
        """What a service answers, asked in its own network."""
        pid = self.main_pid(unit) or 1
        words = f"exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3"
        return self.run("nsenter", "-t", str(pid), "-n", "bash", "-c", words, status=None).strip()

    def reboot(self) -> None:
        """``systemctl reboot``: everything ends in its order, and starts again from what is on the disk."""
        assert self._outer is not None
        self.run("systemctl", "reboot", status=None)
        self._outer.wait(PATIENCE)
        self.boot()

    def off(self) -> None:
        """Take it away with all that it was."""
        if self._outer is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init or self._outer.pid, signal.SIGKILL)
            self._outer.wait(PATIENCE)
        subprocess.run(["umount", "-l", str(self.root)], capture_output=True)
        for group in (_GROUPS / "systemd", _GROUPS / "unified", _GROUPS):
            top = group / self._name
            for path in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True) if top.exists() else ():
                path.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()
