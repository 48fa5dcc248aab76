"""When what uses a replaced image is restarted, and how its users are warned. The plan is pure.

Nothing is restarted unless the policy says so: ``never`` leaves it to people; ``services`` restarts services alone, in
a maintenance window or past the deadline; ``in_window`` the machine too, in a window; ``at_deadline`` when the deadline
and the grace after it are over. (After Windows Update for Business: the grace begins anew for a device that was away.)
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from midflight.agent.fleet.decisions import window_at
from midflight.agent.fleet.moments import Moment
from midflight.trust.instructions import Instructions

Behaviour = Literal["never", "services", "in_window", "at_deadline"]
_TIME = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """When a restart is forced (None: never), whether it is to be now, and how many warnings are due by now."""

    behaviour: Behaviour
    forced: datetime | None
    now: bool
    warnings: int = 0

    @property
    def machine(self) -> bool:
        """Whether the machine itself may be restarted."""
        return self.behaviour in ("in_window", "at_deadline")


NEVER = Plan("never", None, False)


def plan(
    instructions: Instructions, staged: datetime, deadline: datetime | None, back: datetime, moment: Moment
) -> Plan:  # fmt: skip
    """The restart that a staged baseline needs.

    Args:
        staged: when it lay ready.
        deadline: of its action; None: it always waits.
        back: when this device last came back after it was away.
    """
    policy = instructions.policy
    behaviour = policy.get("restart", "never")
    if behaviour not in ("services", "in_window", "at_deadline"):
        return NEVER
    grace = timedelta(seconds=_seconds(policy.get("grace_s")))
    forced = None
    if deadline is not None:
        late = max(deadline, staged)
        forced = max(late, back if back > deadline else late) + grace
    open_window = all(window_at(instructions, now) is not None for now in moment.readings)
    late_now = forced is not None and all(now >= forced for now in moment.readings)
    if behaviour == "services":
        return Plan("services", forced, open_window or late_now)
    if behaviour == "in_window":
        return Plan("in_window", forced, open_window)
    # In a window nobody needs to be asked; without any window in the policy there is only the deadline.
    early = open_window and bool(instructions.windows)
    ahead = policy.get("warnings_s")
    times = [_seconds(one) for one in ahead] if isinstance(ahead, Sequence) and not isinstance(ahead, str) else []
    due = sum(forced is not None and moment.now >= forced - timedelta(seconds=time) for time in times)
    return Plan("at_deadline", forced, late_now or early, due)


@dataclass(frozen=True, slots=True)
class Means:
    """How to get rid of the old image: commands that restart services, or the machine."""

    commands: tuple[str, ...]
    left: tuple[int, ...]
    """Processes that none of them restarts."""


def means(
    name: str, users: Collection[int], configured: Mapping[str, str], units: Mapping[int, str]
) -> Means:  # fmt: skip
    """What restarts the users of an image.

    Args:
        name: of the baseline; its configured command restarts all of them.
        units: of systemd, by process.
    """
    if name in configured:
        return Means((configured[name],), ())
    wanted = sorted({units[pid] for pid in users if pid in units})
    return Means(tuple(f"systemctl restart {unit}" for unit in wanted), tuple(sorted(set(users) - units.keys())))


def unit_of(pid: int) -> str:
    """The service of systemd that a process belongs to (systemd.slice(5)); empty: none of the system's."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        if path.startswith("/system.slice/"):
            unit = next((part for part in path.split("/") if part.endswith(".service")), "")
            if unit and all(c.isalnum() or c in "@.-_:\\" for c in unit):
                return unit
    return ""


def units_of(pids: Collection[int]) -> dict[int, str]:
    """The services of processes, where they have one."""
    return {pid: unit for pid in pids if (unit := unit_of(pid))}


def run(command: str) -> str:
    """Run a command of the administrator's; empty, or why it failed."""
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIME,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command}: {error}"
    return "" if done.returncode == 0 else f"{command}: {' '.join(done.stderr.split())[-300:] or done.returncode}"


def warning(name: str, forced: datetime, machine: bool) -> str:
    """What users are told."""
    what = "This machine" if machine else "A service of this machine"
    return f"{what} restarts at {forced.astimezone():%H:%M on %Y-%m-%d} to finish the update {name}. Save your work."


def warn(text: str, command: str) -> str:
    """Tell the users of this machine; empty, or why that failed. ``command`` gets the text as its last argument."""
    if command:
        import shlex

        return run(f"{command} {shlex.quote(text)}")
    wall = shutil.which("wall")
    if wall is None:
        return "there is no command wall; set warn in agent.toml"
    try:
        done = subprocess.run([wall, text], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIME)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip()


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0.0


def instant(seconds: float) -> datetime:
    """A time of the records."""
    return datetime.fromtimestamp(seconds, UTC)
