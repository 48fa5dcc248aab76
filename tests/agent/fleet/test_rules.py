"""What a device decides by itself: windows and deadlines, eligibility, clocks, pace, restarts, what is news."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.agent.fleet import pace, restarts
from midflight.agent.fleet.decisions import Situation, decide
from midflight.agent.fleet.eligibility import Machine, at_least, ineligible
from midflight.agent.fleet.moments import Anchor, Moment, moment
from midflight.agent.fleet.reasons import Code
from midflight.agent.fleet.report import Told, plain, tell_inventory, tell_state
from midflight.server.domain.reasons import Reason
from midflight.trust.agreement import Agreed
from midflight.trust.checkin import CheckIn as Message
from midflight.trust.checkin import (
    ImageReport,
    PatchReport,
    State,
    decode_check_in,
    digest_of,
    encode_check_in,
    state_document,
)
from midflight.trust.checkin import Outcome as Told_
from midflight.trust.content import Content, Description, Package
from midflight.trust.instructions import Action, ActionKind, Instructions, Window

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
IMAGE = "ab" * 20
ABOUT = Description("hotpatch", "nginx", 3, (IMAGE,), (), "security", "high", None, "")
CONTENT = Content("nginx/3.hotpatch", "cd" * 32, 1000, ABOUT)
MACHINE = Machine("linux-x86_64", "6.1.0-18-amd64", "1.4.0", 4096, 1 << 30, frozenset({IMAGE}), {"nginx": "1.22"})
NIGHT = Window(NOON + 10 * HOUR, NOON + 14 * HOUR)


def action(kind: ActionKind = "apply", content: Content = CONTENT, **values: Any) -> Action:
    return Action("a-1", kind, "d-1", content.path, content.sha256, content.length, **values)


def told(*actions: Action, windows: tuple[Window, ...] = (), **policy: object) -> Instructions:
    return Instructions("dev-1", NOON, NOON + 24 * HOUR, 7, 300, windows, actions, {"any_time": not windows, **policy})


def decision(instructions: Instructions, situation: Situation, content: Content = CONTENT) -> tuple[str, str]:
    agreed = [Agreed(one, content if one.target else None) for one in instructions.actions]
    (found,) = decide(instructions, agreed, situation)
    return found.step, found.code


def at(now: datetime, **values: Any) -> Situation:
    return Situation(MACHINE, Moment(now), **values)


def test_nothing_begins_outside_of_a_window_but_what_may() -> None:
    waiting = told(action(), windows=(NIGHT,))
    assert decision(waiting, at(NOON)) == ("wait", "awaiting_window")
    assert decision(waiting, at(NIGHT.start)) == ("begin", "")
    assert decision(waiting, at(NIGHT.end)) == ("wait", "no_window"), "the end is not included"
    assert decision(told(action(options={"any_time": True}), windows=(NIGHT,)), at(NOON)) == ("begin", "")
    late = told(action(deadline=NOON - HOUR), windows=(NIGHT,))
    assert decision(late, at(NOON)) == ("begin", "")
    early = told(action(not_before=NOON + HOUR))
    assert decision(early, at(NOON)) == ("wait", "awaiting_window")
    assert decision(told(action(), any_time=False), at(NOON)) == ("wait", "no_window")
    assert decision(told(action()), at(NOON)) == ("begin", "")


def test_a_revert_waits_for_nothing_and_a_hold_stops_what_is_new() -> None:
    force = {CONTENT.sha256: ("nginx", 3)}
    out = told(action("revert"), windows=(NIGHT,))
    assert decision(out, at(NOON, in_force=force)) == ("begin", "")
    assert decision(out, at(NOON)) == ("confirm", "")
    everything = Action("h-1", "hold")
    assert decision(told(action(), everything), at(NOON)) == ("wait", "held_by_safeguard")
    assert decision(told(action(), everything), at(NOON, in_force=force)) == ("confirm", "")
    other = Action("h-2", "hold", None, "nginx/4.hotpatch", "ef" * 32, 9)
    assert decision(told(action(), other), at(NOON)) == ("begin", "")


def test_the_clock_must_be_sure_or_every_reading_inside_the_window() -> None:
    waiting = told(action(), windows=(NIGHT,))
    assert decision(waiting, Situation(MACHINE, Moment(NIGHT.start, NOON))) == ("wait", "clock_unsure")
    assert decision(waiting, Situation(MACHINE, Moment(NIGHT.start, NIGHT.start + HOUR))) == ("begin", "")


@given(st.datetimes(datetime(2026, 6, 1), datetime(2026, 6, 3)), st.booleans(), st.integers(-30, 30))
def test_whatever_the_time_nothing_begins_outside_without_a_reason(now: datetime, any_time: bool, hours: int) -> None:
    deadline = NOON + timedelta(hours=hours)
    instructions = told(action(deadline=deadline, options={"any_time": any_time}), windows=(NIGHT,))
    moment_ = now.replace(tzinfo=UTC)
    step, _ = decision(instructions, at(moment_))
    assert (step == "begin") == (any_time or moment_ >= deadline or moment_ in NIGHT)


def test_each_reason_against_a_hotpatch_has_its_word() -> None:
    def codes(options: dict[str, Any] | None = None, about: Description = ABOUT, **changes: Any) -> list[str]:
        found = ineligible(about, 1000, options or {}, replace(MACHINE, **changes), changes == {} or True)
        return [finding.code.value for finding in found]

    assert codes() == []
    assert codes({"platforms": "linux-aarch64,windows-x86_64"}) == ["wrong_platform"]
    assert codes({"platforms": "linux-aarch64,linux-x86_64"}) == []
    assert codes({"min_kernel": "6.10"}) == ["kernel_too_old"]
    assert codes({"min_agent": "1.5"}) == ["agent_too_old"]
    assert codes(images=frozenset()) == ["not_affected"]
    assert codes({"package": "nginx"}, images=frozenset()) == ["baseline_not_current"]
    assert codes(memory_free_mib=10) == ["memory_low"]
    assert codes({"memory_mib": 8192}) == ["memory_low"]
    assert codes(disk_free=1 << 20) == ["disk_low"]
    assert codes({"min_kernel": "7"}, images=frozenset(), disk_free=0) == [
        "kernel_too_old", "not_affected", "disk_low",
    ]  # fmt: skip
    assert [f.code for f in ineligible(ABOUT, 0, {}, MACHINE, hotpatches=False)] == [Code.HOTPATCH_DISABLED]
    assert decision(told(action(), hotpatch=False), at(NOON)) == ("refuse", "hotpatch_disabled")
    assert decision(told(action()), at(NOON, barred=frozenset({("nginx", 3)}))) == ("refuse", "barred")
    assert decision(told(action()), at(NOON, in_force={"ee" * 32: ("nginx", 4)})) == ("refuse", "superseded")


def test_words_that_the_server_knows_are_its_words() -> None:
    """Server: `given = reason_of(report.reason) if known`: what it does not know, it shows as its own reason."""
    ours = {code.value for code in Code}
    both = ours & set(Reason._value2member_map_)
    only_here = ours - both
    assert only_here == {
        "disk_low", "no_place", "unknown_content", "content_mismatch", "clock_unsure", "content_unavailable",
        "staging_failed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("have", "wanted", "enough"),
    [
        ("6.1.0-18-amd64", "6.1", True), ("6.1.0", "6.10", False), ("6.10.2", "6.2", True), ("", "1", False),
        ("5.15.0", "6", False), ("6", "6.0", False),
    ],
)  # fmt: skip
def test_versions(have: str, wanted: str, enough: bool) -> None:
    assert at_least(have, wanted) is enough


def test_baselines_need_a_place_and_room() -> None:
    about = replace(ABOUT, kind="baseline", package=Package("file", "nginx", "1.23", "amd64"))
    content = Content("nginx/b", CONTENT.sha256, 1000, about)
    order = told(action("baseline", content), windows=(NIGHT,))
    assert decision(order, at(NOON), content) == ("refuse", "no_place")
    assert decision(order, at(NOON, places=frozenset({"nginx"})), content) == ("begin", ""), "it changes nothing yet"
    small = Situation(replace(MACHINE, disk_free=0), Moment(NOON), places=frozenset({"nginx"}))
    assert decision(order, small, content) == ("refuse", "disk_low")
    windows = Situation(replace(MACHINE, platform="windows-x86_64"), Moment(NOON), places=frozenset({"nginx"}))
    assert decision(order, windows, content) == ("refuse", "wrong_platform")


def test_what_the_server_said_counts_and_not_the_wall_clock() -> None:
    anchor = Anchor("boot", 100.0, NOON, True)
    right = NOON.timestamp()
    assert moment(right + 60, 160.0, "boot", anchor, None) == Moment(NOON + timedelta(minutes=1))
    jumped = moment(right + 86400, 160.0, "boot", anchor, None)
    assert jumped.now == NOON + timedelta(minutes=1) and jumped.sure and jumped.off > 23 * HOUR
    alone = Anchor("boot", 100.0, NOON, False)
    unsure = moment(right + 86400, 160.0, "boot", alone, None)
    assert not unsure.sure and len(unsure.readings) == 2
    assert moment(right + 90, 160.0, "boot", alone, None).sure, "NTP may correct a little"
    assert not moment(right - 86400, 5.0, "next boot", anchor, NOON).sure, "the battery of the clock is dead"
    assert moment(right + 600, 5.0, "next boot", anchor, NOON).sure


def test_no_server_makes_a_device_hurry_or_fall_silent() -> None:
    assert pace.after_answer(0) == 1 and pace.after_answer(300) == 300 and pace.after_answer(10**9) == 86400
    assert pace.after_refusal("120", 1, 300, lambda: 0.5) == 120
    assert pace.after_refusal("99999999999", 1, 300, lambda: 0.5) == 3600
    assert pace.after_refusal("Thu, 01 Jan 2026", 1, 300, lambda: 0.5) == pace.after_failure(1, 300, lambda: 0.5)


@given(st.integers(1, 1000), st.integers(1, 86400), st.floats(0, 1, allow_nan=False))
def test_waits_grow_and_end(failures: int, interval: int, drawn: float) -> None:
    assert 1 <= pace.after_failure(failures, interval, lambda: drawn) <= pace.CAP
    longest = pace.after_failure(failures, interval, lambda: 1.0)
    assert longest >= pace.after_failure(max(1, failures - 1), interval, lambda: 1.0)


def test_restarts_are_the_policys() -> None:
    def plan(
        now: datetime, deadline: datetime | None = None, back: datetime = NOON - 100 * HOUR, **policy: object
    ) -> Any:
        windows = (NIGHT,) if policy.pop("windows", False) else ()
        return restarts.plan(told(windows=windows, **policy), NOON, deadline, back, Moment(now))

    day = NOON + 24 * HOUR
    assert plan(day + 100 * HOUR, day) == restarts.NEVER, "no policy, no restart"
    assert plan(day + 100 * HOUR, day, restart="never") == restarts.NEVER
    late = plan(day + 5 * HOUR, day, restart="at_deadline", grace_s=4 * 3600)
    assert late.now and late.machine and late.forced == day + 4 * HOUR
    soon = plan(day, day, restart="at_deadline", grace_s=4 * 3600, warnings_s=[86400, 14400, 3600, 900])
    assert not soon.now and soon.warnings == 2
    assert not plan(day + 5 * HOUR, day, back=day + 4 * HOUR, restart="at_deadline", grace_s=4 * 3600).now, "was away"
    assert not plan(NOON, None, restart="in_window", windows=True).now
    assert plan(NIGHT.start, None, restart="in_window", windows=True).now
    services = plan(NIGHT.start, None, restart="services", windows=True)
    assert services.now and not services.machine
    assert plan(NIGHT.start, day, restart="at_deadline", windows=True).now, "in a window nobody need be asked"
    assert not plan(NOON, day, restart="at_deadline").now, "without windows there is only the deadline"


def test_who_restarts_what() -> None:
    units = {10: "nginx.service", 11: "nginx.service", 12: "other.service"}
    found = restarts.means("nginx", {10, 11, 12, 13}, {}, units)
    assert found == restarts.Means(("systemctl restart nginx.service", "systemctl restart other.service"), (13,))
    assert restarts.means("nginx", {10, 13}, {"nginx": "rc-service nginx restart"}, units).left == ()


STATE = State(
    "web-1", "linux-x86_64", "6.1", "1", "UTC", "boot", 2048, (PatchReport("n", 1, "cd" * 32, IMAGE, 10, 0, 150),)
)


def test_numbers_that_move_a_little_are_no_news() -> None:
    told_ = Told(STATE, (), 0.0, 0.0)
    little = replace(STATE, memory_free_mib=2304, patches=(replace(STATE.patches[0], processes=12, stopped_us=160),))
    assert tell_state(little, told_, 10.0) == STATE
    assert tell_state(little, told_, 10_000.0) == little
    for news in (
        replace(STATE, memory_free_mib=512),
        replace(STATE, patches=(replace(STATE.patches[0], missing=1),)),
        replace(STATE, patches=(replace(STATE.patches[0], processes=100),)),
        replace(STATE, patches=()),
    ):
        assert tell_state(news, told_, 10.0) == news
    image = ImageReport(IMAGE, "/bin/x", "x", "1", 3)
    inventory = Told(STATE, (image,), 0.0, 0.0)
    assert tell_inventory((replace(image, processes=5),), inventory, 60.0) == (image,)
    newer = (replace(image, version="2"),)
    assert tell_inventory(newer, inventory, 5.0) == (image,), "not at every moment"
    assert tell_inventory(newer, inventory, 5.0, pressing=True) == newer, "but with an outcome"
    assert tell_inventory((replace(image, version="2"),), inventory, 60.0)[0].version == "2"


@given(st.text(max_size=3000))
def test_any_text_can_be_told(words: str) -> None:
    outcome = Told_("a-1", None, "failed", NOON, "apply_failed", plain(words))
    digest = digest_of(state_document(STATE))
    message = Message(NOON, 0, digest, "", None, None, (outcome,))
    assert decode_check_in(encode_check_in(message)).outcomes == (outcome,)
