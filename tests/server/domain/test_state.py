"""Where devices stand: eligibility, standing, safeguards, compliance, the calendar and what was gained."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.server.domain import compliance, coverage, offers, safeguards
from midflight.server.domain.audience import Governance
from midflight.server.domain.calendar import Calendar, CalendarError, off_track
from midflight.server.domain.catalogue import Catalogue
from midflight.server.domain.compliance import Requirement, evaluate
from midflight.server.domain.eligibility import ineligible
from midflight.server.domain.model import (
    Audience,
    ComplianceRule,
    ComplianceState,
    ContentKind,
    Device,
    Effective,
    Image,
    Membership,
    Revocation,
    RunningPatch,
    Severity,
)
from midflight.server.domain.reasons import Reason
from midflight.server.domain.safeguards import Outcome, Safeguard, SafeguardError
from midflight.server.domain.standing import runs, standing
from tests.server.domain.things import BASELINE, DAY, HOUR, NOW, content, deployment, device, policy

FIX = content(2)
FIX3 = content(3, images=frozenset({"b1"}))
BASE4 = content(4, ContentKind.BASELINE)
OFF5 = content(5, ContentKind.BASELINE, on_track=False)
CATALOGUE = Catalogue([BASELINE, FIX, FIX3, BASE4])
P1 = policy()
FAR = datetime(9999, 1, 1, tzinfo=UTC)
GOVERNED = Governance(P1)


@pytest.mark.parametrize(
    ("facts", "asks", "reason"),
    [
        ({}, {}, None),
        ({"images": None}, {}, Reason.NO_INVENTORY),
        ({}, {"platforms": frozenset({"linux-aarch64"})}, Reason.WRONG_PLATFORM),
        ({"images": ()}, {}, Reason.NOT_AFFECTED),
        ({"build_id": "bx"}, {}, Reason.BASELINE_NOT_CURRENT),
        ({"build_id": "b4"}, {}, Reason.NOT_AFFECTED),
        ({}, {"min_kernel": "6.10"}, Reason.KERNEL_TOO_OLD),
        ({"kernel": ""}, {"min_kernel": "6.1"}, Reason.KERNEL_TOO_OLD),
        ({}, {"min_agent": "1.3"}, Reason.AGENT_TOO_OLD),
        ({"memory_free_mib": 10}, {"memory_mib": 16}, Reason.MEMORY_LOW),
        ({"memory_free_mib": None}, {"memory_mib": 16}, None),
    ],
)
def test_each_reason_of_ineligibility(facts: dict[str, object], asks: dict[str, object], reason: Reason | None) -> None:
    finding = ineligible(device(**facts), replace(FIX, **asks), P1, CATALOGUE)  # type: ignore[arg-type]
    assert (finding.reason if finding else None) is reason


def test_whoever_is_on_no_baseline_of_a_hotpatch_cannot_have_it() -> None:
    other = ineligible(device(build_id="bx"), FIX, P1, CATALOGUE)
    assert other is not None and other.reason is Reason.BASELINE_NOT_CURRENT
    disabled = ineligible(device(), FIX, policy(hotpatch=False), CATALOGUE)
    assert disabled is not None and disabled.reason is Reason.HOTPATCH_DISABLED
    later = content(6, images=frozenset({"b4"}))
    off = ineligible(device(build_id="b5"), later, P1, Catalogue([BASELINE, BASE4, OFF5, later]))
    assert off is not None and off.reason is Reason.BASELINE_OFF_TRACK
    assert ineligible(device(build_id="b1"), BASE4, policy(hotpatch=False), CATALOGUE) is None


def test_a_fix_counts_in_memory_and_on_disk_and_only_when_complete() -> None:
    assert CATALOGUE.fixed_by(device(), FIX) is None
    assert CATALOGUE.fixed_by(device(patches=("hotpatch-2",)), FIX) is FIX
    assert CATALOGUE.fixed_by(device(patches=("hotpatch-3",)), FIX) is FIX3
    assert CATALOGUE.fixed_by(device(build_id="b4"), FIX) is BASE4
    half = device(patches=("hotpatch-2",))
    half = replace(half, patches=tuple(replace(p, complete=False) for p in half.patches))
    assert CATALOGUE.fixed_by(half, FIX) is None and not runs(half, FIX)
    assert CATALOGUE.fixed_by(device(patches=("hotpatch-2",)), FIX3) is None
    assert CATALOGUE.fixed_by(device(patches=("hotpatch-9",)), FIX) is None


def test_a_program_that_is_in_no_database_of_packages_is_known_by_its_image() -> None:
    alien = device(images=(Image("b1", "/opt/ssl/libssl.so.3"),))
    assert evaluate(alien, GOVERNED, REQUIRED, CATALOGUE, NOW + 7 * DAY - HOUR).state is ComplianceState.IN_GRACE
    assert ineligible(alien, BASE4, P1, CATALOGUE) is None
    restarted = replace(alien, images=(Image("b4", "/opt/ssl/libssl.so.3"),))
    found = evaluate(restarted, GOVERNED, REQUIRED, CATALOGUE, NOW)
    assert (found.state, found.reason) == (ComplianceState.COMPLIANT, Reason.UP_TO_DATE_RESTARTED)
    assert not CATALOGUE.concerns(replace(alien, images=(Image("zz", "/usr/bin/other"),)), "openssl")


def test_a_standing_gathers_all_that_is_slow() -> None:
    live = [
        (deployment(id="a", content=FIX.id), P1),
        (deployment(id="b", content=FIX3.id), P1),
        (deployment(id="c", content=BASE4.id, audience=Audience(frozenset({"lab"}))), P1),
    ]
    hold = Safeguard("sg", "breaks", NOW, content=BASE4.id, kernel="6.1.*")
    members = {"a": Membership(0), "b": Membership(0), "c": Membership(0)}
    mine = standing(device(patches=("hotpatch-3",)), frozenset({"all"}), GOVERNED, members, live, CATALOGUE, [hold])
    assert mine.running == {FIX3.id} and mine.fixed == {FIX.id}
    assert mine.held == {BASE4.id: "sg"} and mine.outside == {"c": Reason.NOT_IN_AUDIENCE}
    moved = standing(device(), frozenset({"all"}), Governance(policy(id="p2")), members, live, CATALOGUE)
    assert set(moved.outside) == {"a", "b", "c"}
    excluding = policy(audience=Audience(frozenset({"all"}), frozenset({"frozen"})))
    out = standing(device(), frozenset({"all", "frozen"}), GOVERNED, members, [(live[0][0], excluding)], CATALOGUE)
    assert out.outside == {"a": Reason.EXCLUDED}


def test_a_safeguard_holds_what_fits_it_entirely() -> None:
    mine = device()
    for fields, expected in (
        ({"content": FIX.id}, True),
        ({"content": FIX.id, "kernel": "6.1.0-18*"}, True),
        ({"content": FIX.id, "kernel": "5.*"}, False),
        ({"package": "openssl", "version": "3.0.*"}, True),
        ({"package": "openssl", "version": "1.*"}, False),
        ({"package": "nginx"}, False),
        ({"baseline": "b1"}, True),
        ({"baseline": "b4"}, False),
        ({"platform": "windows-x86_64"}, False),
        ({"agent": "1.2.?"}, True),
    ):
        assert safeguards.holds(Safeguard("sg", "", NOW, **fields), mine, FIX) is expected, fields  # type: ignore[arg-type]
    until = Safeguard("sg", "", NOW, package="openssl", expires=NOW + DAY)
    lifted = replace(until, lifted=NOW + HOUR)
    assert safeguards.in_force([until, lifted], NOW + HOUR) == [until]
    assert safeguards.in_force([until], NOW + DAY) == []
    for faulty in (
        Safeguard("s", "", NOW),
        Safeguard("s", "", NOW, platform="x", version="1"),
        replace(until, expires=NOW),
    ):
        with pytest.raises(SafeguardError):
            safeguards.validate(faulty)
    safeguards.validate(until)


_hours = st.integers(-100, 100).map(lambda hours: NOW + hours * HOUR)
_holds = st.lists(
    st.builds(
        Safeguard, st.text("xyz", min_size=1, max_size=3), st.just(""), st.just(NOW - 200 * HOUR),
        content=st.sampled_from(["", FIX.id, FIX3.id]), kernel=st.sampled_from(["", "6.1.*", "5.*"]),
        source=st.sampled_from(safeguards.Source), expires=st.none() | _hours, lifted=st.none() | _hours,
    ).filter(lambda hold: bool(hold.content or hold.kernel)),
    max_size=5,
)  # fmt: skip


@given(_holds, _hours)
def test_a_hold_keeps_a_content_away_until_it_expires_or_is_lifted(holds: list[Safeguard], now: datetime) -> None:
    """From the hold to the offer: what is held is not offered, and what is not held is."""
    ends = {id(hold): min(hold.expires or FAR, hold.lifted or FAR) for hold in holds}
    plan = offers.compile_plan(
        deployment(id="a", content=FIX.id, effective=Effective.OFFERING, reason=Reason.OFFERING_RING), P1, FIX
    )
    mine = standing(
        device(), frozenset({"all"}), GOVERNED, {"a": Membership(0)}, [(deployment(id="a", content=FIX.id), P1)],
        CATALOGUE, safeguards.in_force(holds, now),
    )  # fmt: skip
    fitting = [h for h in holds if h.content in ("", FIX.id) and h.kernel in ("", "6.1.*")]
    held = any(now < ends[id(hold)] for hold in fitting)
    decision = offers.decide(mine, [plan], (), now)
    assert bool(decision.actions) is not held
    assert (decision.verdicts["a"].reason is Reason.HELD_BY_SAFEGUARD) is held


def test_outcomes_suggest_the_combination_that_fails_and_not_the_innocent() -> None:
    old, new = ("kernel", "5.10"), ("kernel", "6.1")
    outcomes = [Outcome("h", n < 6, (old, ("platform", "linux"))) for n in range(10)]
    outcomes += [Outcome("h", n < 1, (new, ("platform", "linux"))) for n in range(200)]
    found = safeguards.suggest(outcomes)
    assert [(s.field, s.value, s.failed, s.tried) for s in found] == [("kernel", "5.10", 6, 10)]
    hold = found[0].safeguard("sg", NOW)
    assert hold.kernel == "5.10" and hold.content == "h" and hold.expires == NOW + safeguards.EXPIRY
    assert "6 of 10 devices with kernel 5.10 failed, 1 of 200 others" in hold.reason
    everywhere = [Outcome("h", n % 2 == 0, ((old, new)[n % 4 // 2],)) for n in range(200)]
    assert safeguards.suggest(everywhere) == []
    # Fisher's tea tasting: 3 of 4 right, and 1 of 4
    assert safeguards.fisher(3, 4, 1, 4) == pytest.approx(17 / 70)


@given(st.integers(1, 8), st.data())
def test_chances_are_chances(tried: int, data: st.DataObject) -> None:
    others = data.draw(st.integers(1, 8))
    failed, others_failed = data.draw(st.integers(0, tried)), data.draw(st.integers(0, others))
    chance = safeguards.fisher(failed, tried, others_failed, others)
    assert 0 < chance <= 1
    if failed == 0:
        assert chance == 1


REQUIRED = [Requirement(FIX, NOW)]


def test_each_state_of_compliance() -> None:
    week = 7 * DAY
    cases = [
        (device(patches=("hotpatch-2",)), GOVERNED, NOW, ComplianceState.COMPLIANT, Reason.UP_TO_DATE_HOTPATCHED),
        (device(build_id="b4"), GOVERNED, NOW, ComplianceState.COMPLIANT, Reason.UP_TO_DATE_RESTARTED),
        (device(), GOVERNED, NOW, ComplianceState.IN_GRACE, Reason.IN_GRACE),
        (device(last_seen=NOW + week), GOVERNED, NOW + week, ComplianceState.NONCOMPLIANT, Reason.FIX_MISSING),
        (device(build_id="b4"), GOVERNED, NOW + week, ComplianceState.STALE, Reason.STALE),
        (device(images=None), GOVERNED, NOW, ComplianceState.UNKNOWN, Reason.NEVER_REPORTED),
        (device(build_id="b4", integrity_violated=True), GOVERNED, NOW, ComplianceState.NONCOMPLIANT,
        Reason.INTEGRITY_VIOLATED), (device(build_id="b4", report_faulty=True), GOVERNED, NOW, ComplianceState.ERROR,
        Reason.REPORT_FAULTY), (device(build_id="b4", disabled=True), GOVERNED, NOW, ComplianceState.NONCOMPLIANT,
        Reason.DEVICE_DISABLED), (device(build_id="b4"), Governance(None, Reason.UNASSIGNED), NOW,
        ComplianceState.UNASSIGNED, Reason.UNASSIGNED), (device(), Governance(None, Reason.POLICY_CONFLICT), NOW,
        ComplianceState.CONFLICT, Reason.POLICY_CONFLICT),
    ]  # fmt: skip
    for mine, governance, now, state, reason in cases:
        found = evaluate(mine, governance, REQUIRED, CATALOGUE, now)
        assert (found.state, found.reason) == (state, reason)
        assert found.admitted is (state in (ComplianceState.COMPLIANT, ComplianceState.IN_GRACE))
    assert evaluate(device(images=()), GOVERNED, REQUIRED, CATALOGUE, NOW).state is ComplianceState.COMPLIANT
    newcomer = device(enrolled=NOW + 5 * DAY, last_seen=NOW + 8 * DAY)
    assert evaluate(newcomer, GOVERNED, REQUIRED, CATALOGUE, NOW + 8 * DAY).state is ComplianceState.IN_GRACE


@given(
    st.integers(0, 60), st.integers(1, 40), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([GOVERNED, Governance(None, Reason.UNASSIGNED), Governance(None, Reason.POLICY_CONFLICT)]),
)  # fmt: skip
def test_stale_unassigned_or_violated_is_never_compliant(
    age: int, validity: int, fixed: bool, violated: bool, disabled: bool, governance: Governance
) -> None:
    if governance.policy:
        governance = Governance(replace(P1, compliance=ComplianceRule(timedelta(days=validity))))
    patches = ("hotpatch-2",) if fixed else ()
    mine = device(patches=patches, last_seen=NOW - age * DAY, integrity_violated=violated, disabled=disabled)
    found = evaluate(mine, governance, REQUIRED, CATALOGUE, NOW)
    if age >= validity or violated or disabled or governance.policy is None:
        assert not found.admitted
    if found.state is ComplianceState.COMPLIANT:
        assert fixed and found.until is not None and found.until > NOW
        # and time alone ends it exactly then
        assert not evaluate(mine, governance, REQUIRED, CATALOGUE, found.until).admitted


def test_revoked_and_minor_content_is_not_required() -> None:
    strict = policy(compliance=ComplianceRule(min_severity=Severity.CRITICAL))
    gone = content(7, revoked=Revocation(NOW, "bad"))
    assert compliance.required(P1, [(FIX, NOW), (gone, NOW)]) == REQUIRED
    assert compliance.required(strict, [(FIX, NOW)]) == []


def test_history_grows_only_when_something_changes() -> None:
    first = evaluate(device(), GOVERNED, REQUIRED, CATALOGUE, NOW)
    spans = compliance.history((), first, NOW)
    assert spans is not None and compliance.history(spans, first, NOW + HOUR) is None
    then = evaluate(device(patches=("hotpatch-2",)), GOVERNED, REQUIRED, CATALOGUE, NOW + DAY)
    spans = compliance.history(spans, then, NOW + DAY)
    assert spans is not None
    assert [(s.state, s.begin, s.end) for s in spans] == [
        (ComplianceState.IN_GRACE, NOW, NOW + DAY),
        (ComplianceState.COMPLIANT, NOW + DAY, None),
    ]
    seen = compliance.overview([first, then, evaluate(device(build_id="b4"), GOVERNED, REQUIRED, CATALOGUE, NOW)])
    assert (seen.hotpatched, seen.restarted) == (1, 1) and seen.share == pytest.approx(2 / 3)
    assert compliance.overview([]).share == 0


def test_the_calendar_of_a_year() -> None:
    calendar = Calendar(unplanned=frozenset({date(2026, 5, 1)}))
    year = calendar.year(2026)
    assert [m.release for m in year[:3]] == [date(2026, 1, 13), date(2026, 2, 10), date(2026, 3, 10)]
    baselines = [n for n, month in enumerate(year, 1) if month.kind is ContentKind.BASELINE]
    assert baselines == [1, 4, 5, 7, 10] and year[4].planned is ContentKind.HOTPATCH
    assert calendar.next_planned_baseline(date(2026, 10, 13)) == date(2027, 1, 12)
    with pytest.raises(CalendarError, match="baseline month"):
        Calendar(baseline_months=frozenset())
    with pytest.raises(CalendarError, match="baseline month"):
        Calendar(baseline_months=frozenset({13}))
    with pytest.raises(CalendarError, match="1st to 4th"):
        Calendar(nth=5)


def test_before_publishing_it_says_whom_it_takes_off_the_track() -> None:
    fleet = [
        (device("on"), P1),
        (device("restarting"), policy(hotpatch=False)),
        (device("free"), None),
        (device("newer", build_id="b6"), P1),
        (device("without", images=()), P1),
    ]
    catalogue = Catalogue([BASELINE, content(6, ContentKind.BASELINE)])
    found = off_track(OFF5, fleet, Calendar(), catalogue, date(2026, 5, 12))
    assert found.devices == {"on"} and found.restarts == 2
    assert str(found) == "this takes 1 device off the hotpatch track until 2026-07-14"
    planned = off_track(content(5, ContentKind.BASELINE), fleet, Calendar(), catalogue, date(2026, 7, 14))
    assert str(planned) == "this takes no device off the hotpatch track" and planned.restarts == 2


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(0, 20))
def test_milestones_are_never_earlier_than_the_devices(hours: list[int], open: int) -> None:
    population = len(hours) + open
    found = coverage.milestones(NOW, coverage.in_order(NOW + h * HOUR for h in hours), population)
    for percent, taken in found.items():
        if taken is None:
            assert not population or len(hours) * 100 < percent * population
        else:
            assert sum(h * HOUR <= taken for h in hours) * 100 >= percent * population


def test_what_was_saved() -> None:
    found = coverage.saved(
        [coverage.Hotpatching(NOW, NOW + 10 * HOUR, 0.5), coverage.Hotpatching(NOW, None, 0.25)], NOW + DAY
    )
    assert (found.exposure_hours, found.restarts, found.stopped_ms) == (34, 2, 0.75)


def test_a_patch_from_elsewhere_is_no_fix() -> None:
    odd = Device("x", images=device().images, patches=(RunningPatch("unknown", 9, "b1"),), last_seen=NOW)
    assert CATALOGUE.fixed_by(odd, FIX) is None
    assert deployment().effective is Effective.SCHEDULED
