"""Which processes of the machine an agent looks after: all, or those that share a namespace or a control group."""

from __future__ import annotations

import os
import sys

from midflight.errors import InputError

_NAMESPACES = {"pid": "pid", "mount": "mnt", "network": "net"}
NAMES = ("all", *_NAMESPACES)
CGROUP = "cgroup:"


class Scope:
    """Says of a process whether it is looked after (namespaces(7), cgroups(7)).

    Args:
        which: ``all``; ``pid``, ``mount`` or ``network``: those in the agent's own namespace of that kind;
            ``cgroup:/PATH``: those of a control group and of what is below it (cgroup v2).
    """

    def __init__(self, which: str = "all") -> None:
        self.which = which
        self._namespace = ""
        self._group = ""
        if which == "all":
            return
        if sys.platform == "win32":
            raise InputError(f"processes = {which!r}: only Linux has namespaces and control groups; leave it at all")
        if which.startswith(CGROUP):
            self._group = "/" + which.removeprefix(CGROUP).strip("/")
        elif which in _NAMESPACES:
            self._namespace = _NAMESPACES[which]
            self._own = os.readlink(f"/proc/self/ns/{self._namespace}")
        else:
            raise InputError(f"processes = {which!r} is not known; there are: {', '.join(NAMES)}, {CGROUP}/PATH")

    def covers(self, pid: int) -> bool:
        """Whether a process is looked after; one that is gone is not."""
        if self.which == "all":
            return True
        try:
            if self._namespace:
                return os.readlink(f"/proc/{pid}/ns/{self._namespace}") == self._own
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
                groups = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
        except OSError:
            return False
        return any(group == self._group or group.startswith(self._group.rstrip("/") + "/") for group in groups)
