"""Real fixes of real programs: the hole is seen from outside, closed in the live process, and opened again by revert.

``pytest -m 'corpus and quick'`` runs the packages that build in seconds, ``pytest -m corpus`` all, ``-k cjson`` one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus.building import Prepared, build_fixed, prepare
from tests.corpus.cases import CASES, Case, Patched, Refused
from tests.corpus.commands import build, midflight, on_processes
from tests.corpus.targets import Verdict

pytestmark = [pytest.mark.corpus, pytest.mark.timeout(1800)]


def _parameters(kind: type[Patched] | type[Refused]) -> list[object]:
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.quick] if case.quick else [])
        for case in CASES
        if isinstance(case.expected, kind)
    ]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key pair made by the command: (private, public)."""
    base = tmp_path_factory.mktemp("keys") / "corpus"
    report = midflight("keygen", base)
    assert report.status == 0, str(report)
    return base.with_suffix(".key"), base.with_suffix(".pub")


@pytest.fixture
def ready(case: Case) -> Iterator[Prepared]:
    """The case on disk; what runs as production must be the same file afterwards."""
    prepared = prepare(case)
    before = _digest(prepared.image)
    yield prepared
    assert _digest(prepared.image) == before, "the file on disk changed"


@pytest.mark.parametrize("case", _parameters(Patched))
def test_probe_tells_the_builds_apart(case: Case, ready: Prepared, tmp_path: Path) -> None:
    """Without any hotpatch: the probe sees the hole in the vulnerable build, and none in the fixed one."""
    assert isinstance(case.expected, Patched)
    seen = []
    for number, tree in enumerate((ready.tree, build_fixed(case, ready))):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        with case.expected.start(tree, scratch) as target:
            seen += [target.probe(), target.probe()]
    assert seen == [Verdict.VULNERABLE] * 2 + [Verdict.FIXED] * 2


@pytest.mark.parametrize("case", _parameters(Patched))
def test_live_process_is_fixed_and_unfixed(
    case: Case, ready: Prepared, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """VULNERABLE, apply, FIXED, revert, VULNERABLE: in one and the same process, its memory explained throughout."""
    assert isinstance(case.expected, Patched)
    private, public = keys
    hotpatch = tmp_path / "fix.hotpatch"
    built = build(case, ready, hotpatch, private)
    assert built.status == 0, str(built)
    assert _replaced(hotpatch, public) - case.expected.doubtful == case.expected.functions

    with case.expected.start(ready.tree, tmp_path) as target:
        pids = target.pids
        assert target.probe() is Verdict.VULNERABLE

        applied = midflight(*on_processes("apply", pids), hotpatch, "--trust", public)
        assert applied.status == 0, str(applied)
        assert target.probe() is Verdict.FIXED
        checked = midflight(*on_processes("check", pids))
        assert checked.status == 0, str(checked)

        reverted = midflight(*on_processes("revert", pids), hotpatch)
        assert reverted.status == 0, str(reverted)
        assert target.probe() is Verdict.VULNERABLE
        checked = midflight(*on_processes("check", pids))
        assert checked.status == 0, str(checked)

        assert target.alive() and target.pids == pids, target.said()


@pytest.mark.parametrize("case", _parameters(Refused))
def test_dangerous_fix_is_refused(case: Case, ready: Prepared, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """The forge says no, for the right reason, and leaves no hotpatch behind."""
    assert isinstance(case.expected, Refused)
    hotpatch = tmp_path / "fix.hotpatch"
    built = build(case, ready, hotpatch, keys[0])
    assert built.status == 3, str(built)
    assert not hotpatch.exists()
    everything = built.document["report"]["findings"]
    # for what the fix does, and not because something of the running image was not found (MF12x to MF14x)
    assert not [finding for finding in everything if re.match("MF1[234]", finding["code"])], str(built)
    findings = [finding for finding in everything if finding["code"] in case.expected.codes]
    assert {finding["code"] for finding in findings} == case.expected.codes, str(built)
    for name in case.expected.names:
        assert any(name in finding["symbol"] + finding["reason"] for finding in findings), str(built)


def _replaced(hotpatch: Path, public: Path) -> frozenset[str]:
    """Names of the functions that a hotpatch replaces; a compiler's clone counts as the function it was made from."""
    inspected = midflight("inspect", hotpatch, "--trust", public)
    assert inspected.status == 0, str(inspected)
    (target,) = inspected.document["manifest"]["targets"]
    names = (function["name"] for function in target["functions"])
    return frozenset(re.sub(r"\.(?:constprop|isra|part|cold)\b.*", "", name) for name in names)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
