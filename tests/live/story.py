"""The course of a scenario: questions to a running program before a fix, with it, and when it was taken out again.

One program holds many scenarios, so that one build and one transaction serve them all; each scenario has a question of
its own and a test of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import PATIENCE
from tests.live.harness import Fix, Target, check

SOURCES = Path(__file__).parent / "sources"
_FIX = re.compile(r"@\{(.*?)@\|(.*?)@\}", re.DOTALL)


def versions(text: str) -> tuple[str, str]:
    """A source without and with its fix; ``@{old@|new@}`` marks what the fix changes."""
    return _FIX.sub(lambda m: m[1], text), _FIX.sub(lambda m: m[2], text)


def source(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """A file of the folder ``sources`` as {path: text}, without and with the fix."""
    before, after = versions((SOURCES / name).read_text())
    return {name: before}, {name: after}


@dataclass(frozen=True)
class Story:
    """What a program said."""

    before: Mapping[str, str]
    after: Mapping[str, str]
    reverted: Mapping[str, str]
    built: Any
    """What ``midflight build`` reported."""
    applied: Any
    """What ``midflight apply`` reported."""
    status: int
    """The exit status of the program, which ended by itself after all this."""

    def says(self, question: str) -> tuple[str, str]:
        """The answers without and with the fix; when it is taken out, the first one must be back."""
        assert self.reverted[question] == self.before[question]
        return self.before[question], self.after[question]

    @property
    def functions(self) -> set[str]:
        """Names of the functions that were replaced."""
        return {item["name"] for item in self.built["report"]["functions"]}


def tell(
    fixes: Fix | Sequence[Fix], questions: Sequence[str], program: Path | None = None, *arguments: str, **options: Any
) -> Story:
    """Start the program, and ask before, with, and after all of ``fixes``; memory must be explained each time."""
    fixes = [fixes] if isinstance(fixes, Fix) else list(fixes)
    with Target.start(program or fixes[0].image, *arguments, **options) as target:
        before = {question: target.ask(question) for question in questions}
        applied = [fix.apply(target.pid) for fix in fixes]
        after = {question: target.ask(question) for question in questions}
        assert check(target.pid)["processes"][0]["clean"]
        for fix in reversed(fixes):
            fix.revert(target.pid)
        reverted = {question: target.ask(question) for question in questions}
        assert check(target.pid)["processes"][0]["clean"]
        status = finish(target)
    return Story(before, after, reverted, fixes[0].built.json, applied, status)


def finish(target: Target) -> int:
    """End a program by the end of its input; returns its exit status."""
    assert target.process.stdin is not None
    target.process.stdin.close()
    return target.process.wait(PATIENCE)
