"""What a device gets: the rules' decision, written down and made into instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from sqlalchemy.orm import Session

from midflight.server.checkin.standing import memberships_of
from midflight.server.domain import deadlines, fallbacks, memberships, offers, safeguards, windows
from midflight.server.domain import model as m
from midflight.server.domain.reasons import Reason
from midflight.server.domain.standing import standing
from midflight.server.store import convert, events
from midflight.server.store.base import to_micros
from midflight.server.store.bulk import Place
from midflight.server.store.fleet import Fleet
from midflight.server.store.policies import Membership
from midflight.trust.encoding import canonical
from midflight.trust.instructions import Action, Instructions, Window, encode_instructions

LIFETIME = timedelta(hours=24)
"""How long instructions are good for: how long a device that is cut off goes on by what it was told last."""
MARGIN = timedelta(hours=12)
"""They are signed anew so long before they end."""
AHEAD = timedelta(days=14)
"""Maintenance windows are sent for so long ahead."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = m.Interval(datetime(2099, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Decided:
    """What a device is to be told."""

    instructions: Instructions
    """With sequence 1: the caller numbers them."""
    digest: str
    """Of what they say, times of issue and expiry and the interval left out."""
    until: datetime
    """From then on the decision must be made anew."""
    active: bool
    """Something is on its way to the device."""
    interval_s: int


def decide(session: Session, place: Place, fleet: Fleet, now: datetime, lifted: Sequence[str] = ()) -> Decided:
    """Decide, and let the device's memberships follow. The caller holds the device's lock.

    Args:
        lifted: sha256 of content whose bar on the device a person lifted.
    """
    device, policy = place.device, place.governance.policy
    rows = memberships_of(session, device.id, fleet.live)
    lives = [fleet.live[id] for id in rows]
    held = safeguards.in_force(fleet.holds, now)
    of_mine = [(live.deployment, live.policy) for live in lives]
    stands = standing(
        device,
        place.groups,
        place.governance,
        {id: convert.membership_of(row) for id, row in rows.items()},
        of_mine,
        fleet.catalogue,
        held,
    )
    instead = fallbacks.instead(device, stands, of_mine, fleet.deployed, fleet.catalogue, held, now)
    stands = replace(stands, instead=instead)
    spans = windows.schedule(policy.windows, device.timezone, now) if policy else ()
    plans = offers.compile_plans(live.plan for live in lives)
    decision = offers.decide(stands, plans, spans, now)
    for id, verdict in decision.verdicts.items():
        _follow(session, rows[id], verdict, device.id, now)
    actions = tuple(_action(fleet, rows[action.deployment], action) for action in decision.actions)
    again = [moment for row in rows.values() if (moment := offers.offered_again(convert.membership_of(row)))]
    return _decided(place, spans, actions, decision.actions, held, lifted, again, now)


def _follow(session: Session, row: Membership, verdict: memberships.Verdict, device: str, now: datetime) -> None:
    after = memberships.follow(convert.membership_of(row), verdict, now)
    if after is None:
        return
    if row.state != after.state.value and after.state is m.DeviceState.OFFERED:
        data = {"deployment": row.deployment_id, "ring": row.ring}
        events.publish(session, "patch.offered", data, subject=device, at=now)
    row.state, row.reason, row.detail = after.state.value, after.reason.value, after.detail
    row.since, row.offered = after.since or now, after.offered


def _action(fleet: Fleet, row: Membership, action: offers.Action) -> Action:
    live, content = fleet.live[action.deployment], fleet.catalogue[action.content]
    if action.reason is Reason.FALLBACK:
        id = fallbacks.action_id(action.deployment, content.sha256)
    else:
        # A device that may try again after a failure was offered anew, and so gets a new action.
        id = f"{action.deployment}.{action.kind.value}.{to_micros(row.offered or live.deployment.created)}"
    options: dict[str, str | int] = {
        "reason": action.reason.value,
        "any_time": action.reason in _ANY_TIME or action.kind is offers.ActionKind.REVERT,
        **_requirements(content),
    }
    if action.restart_within is not None:
        options["restart_within_s"] = int(action.restart_within.total_seconds())
    return Action(
        id=id,
        kind=action.kind.value,
        deployment=action.deployment,
        target=content.path,
        sha256=content.sha256,
        length=content.length,
        deadline=action.deadline.replace(microsecond=0) if action.deadline else None,
        options=options,
    )


def _requirements(content: m.Content) -> dict[str, str | int]:
    """What the device is to look at itself, by facts that are newer than ours."""
    options: dict[str, str | int] = {"package": content.package}
    if content.platforms:
        options["platforms"] = ",".join(sorted(content.platforms))
    if content.min_kernel:
        options["min_kernel"] = content.min_kernel
    if content.min_agent:
        options["min_agent"] = content.min_agent
    if content.memory_mib:
        options["memory_mib"] = content.memory_mib
    return options


_ANY_TIME = frozenset({Reason.OFFERED_EXPEDITED, Reason.OFFERED_PAST_DEADLINE})


def _decided(
    place: Place,
    spans: Sequence[m.Interval],
    actions: tuple[Action, ...],
    decided: Sequence[offers.Action],
    held: Sequence[safeguards.Safeguard],
    lifted: Sequence[str],
    again: Sequence[datetime],
    now: datetime,
) -> Decided:
    device, policy = place.device, place.governance.policy
    issued = now.replace(microsecond=0)
    instructions = Instructions(
        device=device.id,
        issued=issued,
        expires=issued + LIFETIME,
        sequence=1,
        interval_s=policy.check_in_s if policy else 300,
        windows=_windows(policy, device.timezone, spans, now),
        actions=actions,
        policy=_settings(policy, place) | {"lift_bars": sorted(lifted)},
    )
    moments = [issued + LIFETIME - MARGIN, *again, *(hold.expires for hold in held if hold.expires)]
    if decided and spans:
        moments += [spans[0].start, spans[0].end]
    moments += [action.deadline for action in decided if action.deadline]
    if policy and policy.pause and policy.pause.until:
        moments.append(policy.pause.until)
    return Decided(
        instructions,
        _digest(instructions),
        min(moment for moment in moments if moment > now),
        active=any(action.begin_now for action in decided),
        interval_s=instructions.interval_s,
    )


def _windows(policy: m.Policy | None, timezone: str, spans: Sequence[m.Interval], now: datetime) -> tuple[Window, ...]:
    """The windows of the next days. Without any, a device may begin at any time: so a policy whose windows are
    further away sends the next one, and one whose windows never open again sends one that is out of reach.
    """
    if policy is None or not policy.windows:
        return ()
    near = [span for span in spans if span.start < now + AHEAD][:100]
    if not near:
        following = windows.next_opening(policy.windows, timezone, now)
        near = [following or _NEVER]
    return tuple(_whole(span) for span in near)


def _whole(span: m.Interval) -> Window:
    return Window(span.start.replace(microsecond=0), span.end.replace(microsecond=0))


def _settings(policy: m.Policy | None, place: Place) -> dict[str, object]:
    """What the agent needs to know of the policy."""
    if policy is None:
        return {"id": None, "reason": place.governance.reason.value if place.governance.reason else None}
    return {
        "id": policy.id,
        "name": policy.name,
        "hotpatch": policy.hotpatch,
        "restart": policy.restart.value,
        "deadline_s": None if policy.deadline is None else int(policy.deadline.total_seconds()),
        "grace_s": int(policy.grace.total_seconds()),
        "warnings_s": [int(warning.total_seconds()) for warning in deadlines.WARNINGS],
        "any_time": not policy.windows,
    }


def _digest(instructions: Instructions) -> str:
    """Windows are left out that open after the instructions have ended: they come into view because time goes on."""
    near = tuple(window for window in instructions.windows if window.start < instructions.expires)
    bare = replace(
        instructions,
        issued=_EPOCH,
        expires=_EPOCH + timedelta(days=1),
        sequence=1,
        windows=near or instructions.windows[:1],
    )
    return sha256(canonical(encode_instructions(bare).decode())).hexdigest()
