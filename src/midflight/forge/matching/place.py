"""Where a package is built: on this machine or in a private root of its own, and in both without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from midflight.forge.capture.shims import Tool, find_tools

_ENTER = """
set -e
root=$1 base=$2 tree=$3
shift 3
mount --make-rprivate /
mkdir -p "$root$base"
mount --bind "$base" "$root$base"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" env -C "$tree" "$@"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """This machine (``root`` None), or the folder of a private root."""

    root: Path | None = None

    def tools(self, path: str) -> tuple[Tool, ...]:
        """The compilers, linkers and makes on a PATH there."""
        return find_tools(path, self.root)

    def python(self, own: str) -> str:
        """The interpreter for the shims: ``own`` on this machine."""
        return own if self.root is None else "/usr/bin/python3"

    def enter(self, base: Path) -> tuple[str, ...]:
        """The words to put before a command, for it to run there with the folder ``base`` at the same path.

        Nothing that is mounted outlives the command: it is in a mount namespace of its own (unshare(1)).
        """
        if self.root is None:
            return _without_network()
        words = ("unshare", "--mount", "--net", "--", "/bin/sh", "-c", _ENTER, "enter")
        return (*words, str(self.root), str(base), str(base / "tree"))


def _without_network() -> tuple[str, ...]:
    """Words that keep a command off the network; none where this machine does not allow that."""
    if shutil.which("unshare") is None:
        return ()
    options = ["--net"] if os.geteuid() == 0 else ["--map-current-user", "--net"]
    tried = subprocess.run(["unshare", *options, "--", "true"], check=False, capture_output=True)
    return ("unshare", *options, "--") if tried.returncode == 0 else ()
