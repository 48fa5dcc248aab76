"""What is to be done now with each action of the instructions. Pure: the machine, the records and the time are given.

Nothing begins outside of a maintenance window, but what was expedited, what is past its deadline, and reverts. What has
begun goes on: processes that start later get a hotpatch in force at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from midflight.agent.fleet.eligibility import Finding, Machine, ineligible, no_room, superseded
from midflight.agent.fleet.moments import Moment
from midflight.agent.fleet.reasons import Code
from midflight.trust.agreement import Agreed
from midflight.trust.content import Content
from midflight.trust.instructions import Action, Instructions, Window

Step = Literal["begin", "wait", "refuse", "confirm"]
"""``confirm``: it is so already; only the outcome is to be told."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one action now."""

    action: Action
    content: Content | None
    step: Step
    findings: tuple[Finding, ...] = ()
    """Why not; the first is the one that counts."""

    @property
    def code(self) -> str:
        """The reason in a word; empty when there is none."""
        return self.findings[0].code.value if self.findings else ""

    @property
    def detail(self) -> str:
        """All reasons, for people."""
        return "; ".join(f"{f.code.value}: {f.detail}" if f.detail else f.code.value for f in self.findings)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that decisions depend on."""

    machine: Machine
    moment: Moment
    in_force: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Hotpatches that are ordered here, by sha256: name and sequence."""
    leaving: frozenset[str] = frozenset()
    """sha256 of what is being taken out."""
    barred: frozenset[tuple[str, int]] = frozenset()
    staged: frozenset[str] = frozenset()
    """sha256 of baselines that lie ready or are in place."""
    fetched: frozenset[str] = frozenset()
    """sha256 of content that is on this machine."""
    places: frozenset[str] = frozenset()
    """Names of ``file`` packages whose place the settings say."""


def decide(instructions: Instructions, agreed: Sequence[Agreed], situation: Situation) -> list[Decision]:
    """One decision for each action that both roots of trust bear out, in their order."""
    holds = [one.action for one in agreed if one.action.kind == "hold"]
    return [_decide(instructions, one, holds, situation) for one in agreed if one.action.kind != "hold"]


def _decide(
    instructions: Instructions, one: Agreed, holds: Sequence[Action], situation: Situation
) -> Decision:  # fmt: skip
    action, content = one.action, one.content
    if action.kind == "revert":
        known = action.sha256 in situation.in_force and action.sha256 not in situation.leaving
        return Decision(action, content, "begin" if known else "confirm")
    assert content is not None and action.sha256 is not None  # agreement.combine: both kinds need their content
    done = situation.in_force if action.kind == "apply" else situation.staged
    if action.sha256 in done and action.sha256 not in situation.leaving:
        return Decision(action, content, "confirm")
    against = _against_hotpatch if action.kind == "apply" else _against_baseline
    findings = against(instructions, action, content, situation)
    if findings:
        return Decision(action, content, "refuse", tuple(findings))
    held = [hold for hold in holds if hold.target is None or hold.sha256 == action.sha256]
    if held:
        return Decision(action, content, "wait", (Finding(Code.HELD, held[0].id),))
    waits = when(instructions, action, situation.moment)
    if waits is not None and action.kind == "apply":
        return Decision(action, content, "wait", (waits,))
    return Decision(action, content, "begin")  # a baseline is only laid ready, which changes nothing that runs


def _against_hotpatch(
    instructions: Instructions, action: Action, content: Content, situation: Situation
) -> list[Finding]:
    about = content.about
    if (about.name, about.sequence) in situation.barred:
        return [Finding(Code.BARRED, "it failed here before; look at it, then lift the bar")]
    later = superseded(about, situation.in_force.values())
    if later is not None:
        return [later]
    missing = 0 if content.sha256 in situation.fetched else content.length
    hotpatches = instructions.policy.get("hotpatch", True) is not False
    return ineligible(about, missing, action.options, situation.machine, hotpatches)


def _against_baseline(
    instructions: Instructions, action: Action, content: Content, situation: Situation
) -> list[Finding]:
    package = content.about.package
    assert package is not None  # content.py: a baseline always has one
    if situation.machine.platform.startswith("windows"):
        # A file that runs cannot be replaced there, and a service has nobody before it to do that at the next start.
        why = "this agent puts no baselines in place on Windows; have the release installed as it always is there"
        return [Finding(Code.WRONG_PLATFORM, why)]
    if package.format == "file" and package.name not in situation.places:
        return [Finding(Code.NO_PLACE, f"agent.toml has no [server.files] entry {package.name!r}")]
    missing = 0 if content.sha256 in situation.fetched else content.length
    return no_room(missing * 2, situation.machine.disk_free)


def when(instructions: Instructions, action: Action, moment: Moment) -> Finding | None:
    """Why something may not begin now; None: it may. Where the time is not sure, every reading must allow it."""
    for now in moment.readings:
        reason = _when(instructions, action, now)
        if reason is not None:
            if not moment.sure:
                return Finding(Code.CLOCK_UNSURE, f"the clock was set; it shows {moment.now:%Y-%m-%d %H:%M} UTC")
            return reason
    return None


def _when(instructions: Instructions, action: Action, now: datetime) -> Finding | None:
    if action.not_before is not None and now < action.not_before:
        return Finding(Code.AWAITING_WINDOW, f"not before {action.not_before:%Y-%m-%d %H:%M} UTC")
    if action.options.get("any_time") is True or (action.deadline is not None and now >= action.deadline):
        return None
    if window_at(instructions, now) is not None:
        return None
    coming = next_window(instructions, now)
    if coming is None:
        return Finding(Code.NO_WINDOW, "no maintenance window is known to come")
    return Finding(Code.AWAITING_WINDOW, f"opens {coming.start:%Y-%m-%d %H:%M} UTC")


ALWAYS = Window(datetime.min, datetime.max)


def window_at(instructions: Instructions, now: datetime) -> Window | None:
    """The window that is open; ALWAYS where the policy has none at all."""
    if not instructions.windows and instructions.policy.get("any_time", True) is not False:
        return ALWAYS
    return next((window for window in instructions.windows if now in window), None)


def next_window(instructions: Instructions, now: datetime) -> Window | None:
    """The next one to open."""
    coming = [window for window in instructions.windows if window.start > now]
    return min(coming, key=lambda window: window.start, default=None)
