"""Who belongs where: groups by list or by rule, audiences, and the one policy that governs a device.

A rule is an expression over what a device reports and how it is tagged::

    tag.site == "berlin" and kernel >= "6.1" and not hostname like "test-*"

Operators, loosest first: ``or``, ``and``, ``not``, then ``== != < <= > >= like in``. Facts: ``id hostname platform
kernel agent timezone``, ``tag.NAME`` and ``package.NAME`` (the installed version). ``kernel``, ``agent`` and
``package.*`` compare as versions (deb-version(7)), the others as text, which has no order. ``like`` takes ``*`` and
``?``. A fact that a device does not have is the empty text; it is below nothing and above nothing. Nothing else is in
the language, and it always ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate

from midflight.errors import InputError
from midflight.server.domain import versions
from midflight.server.domain.model import Audience, Device, Policy
from midflight.server.domain.reasons import Reason

MAX_LENGTH = 2000
MAX_DEPTH = 20
MAX_COMPARISONS = 100

Test = Callable[[Device], bool]
_PLAIN = ("id", "hostname", "platform", "kernel", "agent", "timezone")
_VERSIONS = ("kernel", "agent")
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\["\\])*")|(?P<op>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)"""
    r"""|(?P<word>[A-Za-z][A-Za-z0-9_-]*(?:\.[A-Za-z0-9][A-Za-z0-9_.+:-]*)?))"""
)
_ORDERED: dict[str, Callable[[versions.Key, versions.Key], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class RuleError(InputError):
    """A group's rule cannot be read; the message says where."""


@dataclass(frozen=True, slots=True)
class Group:
    """Devices by list or by rule; with both, either is enough."""

    id: str
    name: str = ""
    members: frozenset[str] = frozenset()
    rule: str = ""


def parse(rule: str) -> Test:
    """The test that a rule stands for.

    Raises:
        RuleError: not an expression of this language, or too long or too deep.
    """
    return _Parser(rule).whole()


class Groups:
    """All groups of a fleet with their rules read, to find those of a device (at enrolment and when its facts
    change)."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._listed: dict[str, list[str]] = {}
        self._rules: list[tuple[str, Test]] = []
        for group in groups:
            for member in group.members:
                self._listed.setdefault(member, []).append(group.id)
            if group.rule:
                self._rules.append((group.id, parse(group.rule)))

    def of(self, device: Device) -> frozenset[str]:
        """The ids of the groups that a device belongs to."""
        ruled = (group for group, test in self._rules if test(device))
        return frozenset((*self._listed.get(device.id, ()), *ruled))


def outside(audience: Audience, groups: frozenset[str]) -> Reason | None:
    """Why a device with these groups does not belong to an audience; None if it does. Exclusion wins."""
    if not audience.excluded.isdisjoint(groups):
        return Reason.EXCLUDED
    return Reason.NOT_IN_AUDIENCE if audience.groups.isdisjoint(groups) else None


@dataclass(frozen=True, slots=True)
class Governance:
    """The policy that governs a device, or why there is none."""

    policy: Policy | None
    reason: Reason | None = None
    detail: str = ""


def governing(policies: Iterable[Policy], groups: frozenset[str]) -> Governance:
    """The policy of the highest priority whose audience has the device.

    Two of equal priority are a conflict, which a person resolves: no rule guesses which restart an administrator meant.
    """
    fitting = [policy for policy in policies if outside(policy.audience, groups) is None]
    if not fitting:
        return Governance(None, Reason.UNASSIGNED)
    highest = max(policy.priority for policy in fitting)
    best = [policy for policy in fitting if policy.priority == highest]
    if len(best) > 1:
        return Governance(None, Reason.POLICY_CONFLICT, ", ".join(sorted(policy.id for policy in best)))
    return Governance(best[0])


def _fact(name: str) -> Callable[[Device], str]:
    kind, dot, key = name.partition(".")
    if kind == "tag" and dot:
        return lambda device: device.tags.get(key, "")
    if kind == "package" and dot:
        return lambda device: next((i.version for i in device.images or () if i.package == key), "")
    return lambda device: str(getattr(device, name))


class _Parser:
    """Recursive descent over tokens; ``peek`` is the next one."""

    def __init__(self, rule: str) -> None:
        if len(rule) > MAX_LENGTH:
            raise RuleError(f"the rule has {len(rule)} characters, more than {MAX_LENGTH}; make groups of its parts")
        self._rule, self._at, self._comparisons = rule, 0, 0
        self.peek = ""
        self._next()

    def whole(self) -> Test:
        test = self._or(0)
        if self.peek:
            raise self._error("expected 'and', 'or' or the end")
        return test

    def _error(self, what: str) -> RuleError:
        found = f"found {self.peek}" if self.peek else "it ends there"
        return RuleError(f"the rule cannot be read at character {self._begin + 1}: {what}, but {found}")

    def _next(self) -> str:
        taken, rest = self.peek, self._rule[self._at :]
        self._begin = self._at + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.peek = ""
            return taken
        match = _TOKEN.match(self._rule, self._at)
        if match is None:
            found = repr(rest.lstrip()[:12])
            raise RuleError(
                f"the rule cannot be read at character {self._begin + 1}: {found} is no part of the language"
            )
        self.peek, self._at = match.group().strip(), match.end()
        return taken

    def _or(self, depth: int) -> Test:
        tests = [self._and(depth)]
        while self.peek == "or":
            self._next()
            tests.append(self._and(depth))
        return tests[0] if len(tests) == 1 else lambda device: any(test(device) for test in tests)

    def _and(self, depth: int) -> Test:
        tests = [self._not(depth)]
        while self.peek == "and":
            self._next()
            tests.append(self._not(depth))
        return tests[0] if len(tests) == 1 else lambda device: all(test(device) for test in tests)

    def _not(self, depth: int) -> Test:
        if depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} levels deep; make groups of its parts")
        if self.peek == "not":
            self._next()
            inner = self._not(depth + 1)
            return lambda device: not inner(device)
        if self.peek == "(":
            self._next()
            inner = self._or(depth + 1)
            self._take(")")
            return inner
        return self._comparison()

    def _take(self, token: str) -> None:
        if self.peek != token:
            raise self._error(f"expected {token}")
        self._next()

    def _text(self) -> str:
        if not self.peek.startswith('"'):
            raise self._error("expected a text in double quotes")
        return re.sub(r"\\(.)", r"\1", self._next()[1:-1])

    def _comparison(self) -> Test:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise self._error(f"more than {MAX_COMPARISONS} comparisons; make groups of its parts")
        name = self.peek
        kind, dot, _ = name.partition(".")
        if not (name in _PLAIN or (kind in ("tag", "package") and dot)):
            raise self._error(f"expected a fact ({', '.join(_PLAIN)}, tag.NAME, package.NAME)")
        self._next()
        versioned = name in _VERSIONS or kind == "package"
        fact, op = _fact(name), self.peek
        if op == "in":
            self._next()
            return _among(fact, self._list())
        if op in ("==", "!="):
            self._next()
            return _equal(fact, self._text(), versioned, op == "==")
        if op == "like":
            self._next()
            fits = re.compile(translate(_bounded(self._text(), self._error))).match
            return lambda device: fits(fact(device)) is not None
        if op in _ORDERED:
            if not versioned:
                raise self._error(f"{name} is a text, which has no order; expected ==, !=, like or in")
            self._next()
            return _ordered(fact, op, self._text())
        raise self._error("expected an operator (== != < <= > >= like in)")

    def _list(self) -> frozenset[str]:
        self._take("[")
        texts = [self._text()]
        while self.peek == ",":
            self._next()
            texts.append(self._text())
        self._take("]")
        return frozenset(texts)


def _bounded(pattern: str, error: Callable[[str], RuleError]) -> str:
    # each * may try every length: a few are plenty, many would take time without end on a long hostname
    if pattern.count("*") > 3:
        raise error("a pattern has at most three *")
    return pattern


def _among(fact: Callable[[Device], str], texts: frozenset[str]) -> Test:
    return lambda device: fact(device) in texts


def _equal(fact: Callable[[Device], str], text: str, versioned: bool, wanted: bool) -> Test:
    if not versioned or not text:
        return lambda device: (fact(device) == text) is wanted
    key = versions.key(text)
    return lambda device: (bool(found := fact(device)) and versions.key(found) == key) is wanted


def _ordered(fact: Callable[[Device], str], op: str, text: str) -> Test:
    compare, key = _ORDERED[op], versions.key(text)
    return lambda device: bool(found := fact(device)) and compare(versions.key(found), key)


def audiences(groups_of: Mapping[str, frozenset[str]], audience: Audience) -> frozenset[str]:
    """Of devices with their groups, those in an audience."""
    return frozenset(device for device, groups in groups_of.items() if outside(audience, groups) is None)
