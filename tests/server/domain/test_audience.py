"""Groups, their rules, audiences and the policy that governs: exclusion wins, and the language has no surprises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.server.domain import audience, versions
from midflight.server.domain.audience import Group, Groups, RuleError, governing, outside, parse
from midflight.server.domain.model import Audience, Device, Image
from midflight.server.domain.reasons import Reason
from tests.server.domain.things import policy

BERLIN = Device(
    "d1",
    "web-1",
    {"site": "berlin", "note": 'a "quoted" word'},
    "linux-x86_64",
    "6.1.0-18-amd64",
    "1.10.0",
    images=(Image("b1", package="openssl", version="3.0.11-1~deb12u2"),),
)
ids = st.frozensets(st.sampled_from("abcdef"))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ('tag.site == "berlin" and kernel >= "6.1"', True),
        ('kernel < "6.2" and kernel >= "6.1.0-17"', True),
        ('kernel >= "6.10"', False),
        ('agent > "1.9.9"', True),
        ('package.openssl < "3.0.11-1"', True),
        ('package.openssl == "3.0.11-1~deb12u2"', True),
        ('package.nginx >= "0"', False),
        ('not package.nginx >= "0"', True),
        ('tag.absent == ""', True),
        ('tag.absent != "x"', True),
        ('hostname like "web-*" and not hostname like "web-??"', True),
        ('tag.site in ["paris", "berlin"]', True),
        ('tag.note == "a \\"quoted\\" word"', True),
        ('tag.site == "paris" or tag.site == "berlin" and platform == "windows"', False),
        ('(tag.site == "paris" or tag.site == "berlin") and platform == "linux-x86_64"', True),
        ('not (hostname == "web-1")', False),
        ('hostname == "WEB-1"', False),
    ],
)
def test_a_rule_says_what_it_seems_to_say(rule: str, expected: bool) -> None:
    assert parse(rule)(BERLIN) is expected


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("", "expected a fact"),
        ("tag.site", "expected an operator"),
        ('tag.site = "x"', "'= \"x\"' is no part of the language"),
        ("tag.site == berlin", "expected a text in double quotes"),
        ('tag.site == "x" tag.site == "y"', "expected 'and', 'or' or the end"),
        ('hostname > "a"', "is a text, which has no order"),
        ('__class__ == "x"', "no part of the language"),
        ('images == "x"', "expected a fact"),
        ('tag == "x"', "expected a fact"),
        ('kernel in ["6.1"', "expected ]"),
        ('(kernel > "6"', "expected )"),
        ('hostname like "*a*b*c*d*"', "at most three"),
        ('kernel == "6.1', "no part of the language"),
        ("(" * 30 + 'kernel > "6"' + ")" * 30, "levels deep"),
        (" or ".join(['id == "a"'] * 101), "more than 100 comparisons"),
        ('id == "' + "a" * 2000 + '"', "characters"),
    ],
)
def test_a_rule_that_cannot_be_read_says_where(rule: str, complaint: str) -> None:
    with pytest.raises(RuleError, match="the rule") as raised:
        parse(rule)
    assert complaint in str(raised.value)


_facts = st.sampled_from(["tag.a", "tag.b", "hostname"])
_words = st.sampled_from(["", "x", "y"])
_comparison = st.tuples(_facts, st.sampled_from(["==", "!="]), _words)
_trees = st.recursive(
    _comparison,
    lambda inner: st.one_of(st.tuples(st.just("not"), inner), st.tuples(st.sampled_from(["and", "or"]), inner, inner)),
    max_leaves=12,
)


def _written(tree: tuple) -> str:  # type: ignore[type-arg]
    if tree[0] == "not":
        return f"not ({_written(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({_written(tree[1])}) {tree[0]} ({_written(tree[2])})"
    return f'{tree[0]} {tree[1]} "{tree[2]}"'


def _meant(tree: tuple, facts: dict[str, str]) -> bool:  # type: ignore[type-arg]
    if tree[0] == "not":
        return not _meant(tree[1], facts)
    if tree[0] == "and":
        return _meant(tree[1], facts) and _meant(tree[2], facts)
    if tree[0] == "or":
        return _meant(tree[1], facts) or _meant(tree[2], facts)
    return (facts[tree[0]] == tree[2]) is (tree[1] == "==")


@given(_trees, _words, _words, _words)
def test_and_or_not_mean_what_they_mean(tree: tuple, a: str, b: str, hostname: str) -> None:  # type: ignore[type-arg]
    device = Device("d", hostname, {"a": a, "b": b})
    assert parse(_written(tree))(device) is _meant(tree, {"tag.a": a, "tag.b": b, "hostname": hostname})


@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_an_error_and_nothing_else(text: str) -> None:
    try:
        test = parse(text)
    except RuleError:
        return
    assert test(BERLIN) in (True, False)


@given(ids, ids, ids)
def test_exclusion_wins(groups: frozenset[str], excluded: frozenset[str], device: frozenset[str]) -> None:
    reason = outside(Audience(groups, excluded), device)
    if excluded & device:
        assert reason is Reason.EXCLUDED
    else:
        assert (reason is None) is bool(groups & device)
    chosen = audience.audiences({"d": device}, Audience(groups, excluded))
    assert chosen == (frozenset({"d"}) if reason is None else frozenset())


def test_groups_are_found_by_list_and_by_rule() -> None:
    groups = Groups(
        [Group("listed", members=frozenset({"d1", "d2"})), Group("ruled", rule='tag.site == "berlin"'), Group("empty")]
    )
    assert groups.of(BERLIN) == {"listed", "ruled"}
    assert groups.of(Device("d2")) == {"listed"}
    assert groups.of(Device("d3")) == frozenset()


def test_the_highest_priority_governs_and_a_tie_is_a_conflict() -> None:
    everyone, mine = Audience(frozenset({"all"})), Audience(frozenset({"web"}), frozenset({"frozen"}))
    default, special = policy(id="default", audience=everyone), policy(id="special", audience=mine, priority=5)
    rival = policy(id="rival", audience=mine, priority=5)
    both = frozenset({"all", "web"})
    assert governing([default, special], both).policy is special
    assert governing([default, special], both | {"frozen"}).policy is default
    tie = governing([rival, default, special], both)
    assert tie.policy is None and tie.reason is Reason.POLICY_CONFLICT and tie.detail == "rival, special"
    assert governing([default], frozenset()).reason is Reason.UNASSIGNED


@pytest.mark.parametrize(
    "ascending",
    [
        ["1.0~rc1", "1.0", "1.0a", "1.0+b", "1.0.1", "1.1", "1.10", "1:0.1"],
        ["3.0.11-1~deb12u1", "3.0.11-1~deb12u2", "3.0.11-1", "3.0.11-1+b1", "3.0.11-2"],
        ["5.10.0-30-amd64", "6.1", "6.1.0-9-amd64", "6.1.0-18-amd64", "6.2"],
    ],
)
def test_versions_compare_as_debian_says(ascending: list[str]) -> None:
    backwards = list(reversed(ascending))
    assert sorted(backwards, key=versions.key) == ascending
    assert not versions.at_least("", "0")


def test_a_version_of_endless_digits_costs_nothing() -> None:
    assert versions.at_least("9" * 100_000, "1")
