"""Runs one case end to end, and fills its row of the table."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tests.corpus.building import Prepared, prepare
from tests.corpus.commands import Report, build, midflight, on_processes
from tests.corpus.load import Load
from tests.corpus.model import AnyCase, Case, Fixed, Nothing, Patched, Refused
from tests.corpus.shipped import prepare_shipped
from tests.corpus.table import Row
from tests.corpus.targets import Target, Verdict

_EXPECTED = {Patched: "patched", Refused: "refused", Nothing: "no-op", Fixed: "fixed"}


class Unexpected(Exception):
    """Something is not as the case says. The first line says what, the rest shows it."""


def new_row(case: AnyCase) -> Row:
    """The row of a case that has not run."""
    return Row(case.name, case.running, _EXPECTED[type(case.expected)], notes=[case.note] if case.note else [])  # type: ignore[arg-type]


def run(case: AnyCase, row: Row, keys: tuple[Path, Path], scratch: Path) -> None:
    """Run a case: afterwards the row says what was seen.

    Args:
        keys: (private, public).

    Raises:
        Unexpected: what was seen is not what the case expects; the row has what was known by then.
        BuildError, SourceError, ProbeError, OSError: it could not be run.
    """
    ready = prepare(case) if isinstance(case, Case) else prepare_shipped(case)
    if ready.instead:
        row.notes.append(f"{case.package.version} has left the mirror, {ready.instead} was taken")
    before = _digest(ready.subject.image)
    hotpatch = scratch / "fix.hotpatch"
    started = time.monotonic()
    built = build(case, ready, hotpatch, keys[0])
    row.build_seconds = time.monotonic() - started
    row.accepted = hotpatch.exists()
    report = built.document.get("report") or {}
    if "match" in report:
        row.matched = report["match"]["functions"], report["match"]["wanted"]
    match case.expected:
        case Patched() as expected:
            _built(expected, row, built, hotpatch, keys[1])
            _live(expected, row, ready, hotpatch, keys[1], scratch)
        case Refused() as expected:
            _refused(expected, row, built)
        case Nothing():
            _alone("MF160", row, built)
        case Fixed():
            _alone("MF163", row, built)
    _expect(_digest(ready.subject.image) == before, "the file on disk changed")
    row.verdict = row.expected


def _expect(condition: bool, what: str, report: object = "") -> None:
    if not condition:
        raise Unexpected(f"{what}\n{report}")


def _standing(report: Report) -> list[dict[str, str]]:
    """The findings that forbid the hotpatch: no notes, no warnings, nothing that was overridden."""
    findings = (report.document.get("report") or {}).get("findings", ())
    blocking = (finding for finding in findings if finding.get("kind", "refusal") in ("refusal", "sign-off"))
    return [finding for finding in blocking if not finding["overridden"]]


def _codes(report: Report) -> list[str]:
    """Two words for each finding that stands, for a message; each once."""
    return list(dict.fromkeys(f"{finding['code']} {finding['symbol']}" for finding in _standing(report)))


def _built(expected: Patched, row: Row, built: Report, hotpatch: Path, public: Path) -> None:
    """The hotpatch must be there, and replace what the fix changes."""
    why = ", ".join(_codes(built)[:4]) or built.errors.strip()[-300:]
    _expect(built.status == 0, f"midflight build ended with {built.status}: {why}", built)
    replaced = _replaced(hotpatch, public)
    row.functions = len(replaced)
    missing, extra = expected.functions - replaced, replaced - expected.functions
    _expect(not missing and not extra, f"the hotpatch replaces {sorted(extra)} besides, and not {sorted(missing)}")


def _live(expected: Patched, row: Row, ready: Prepared, hotpatch: Path, public: Path, scratch: Path) -> None:
    """VULNERABLE, apply, FIXED, revert, VULNERABLE: in the same processes, their memory explained throughout."""
    row.proof = expected.proof
    with expected.start(ready.subject, _folder(scratch, "live")) as target:
        if target.lethal:
            with expected.start(ready.subject, _folder(scratch, "first")) as first:
                _look(first, Verdict.VULNERABLE, "before the apply")
        else:
            _look(target, Verdict.VULNERABLE, "before the apply")
        pids = target.pids
        row.requests = row.failed = 0 if target.serves else None

        applied = _under_load(target, row, "apply", pids, hotpatch, "--trust", public)
        row.stopped_ms = max(process["stopped"] for process in applied.document["processes"]) * 1e3
        _look(target, Verdict.FIXED, "after the apply")
        _under_load(target, row, "check", pids)

        _under_load(target, row, "revert", pids, hotpatch)
        _under_load(target, row, "check", pids)
        _expect(target.alive() and target.pids == pids, f"a process has ended: {target.said()}")
        _look(target, Verdict.VULNERABLE, "after the revert")
        _expect(target.lethal or target.alive(), f"the process has ended: {target.said()}")


def _look(target: Target, verdict: Verdict, when: str) -> None:
    seen = target.probe()
    _expect(seen is verdict, f"{seen.value} {when}")


def _under_load(target: Target, row: Row, command: str, pids: Sequence[int], *words: str | Path) -> Report:
    """Run a command on the processes while clients ask; it must succeed, and each of them get its answer."""
    load = Load(target.request) if target.serves else None
    with load or nullcontext():
        report = midflight(*on_processes(command, pids), *words)
    if load is not None:
        row.requests = (row.requests or 0) + load.requests
        row.failed = (row.failed or 0) + len(load.failures)
    reasons = [process.get("reason") for process in report.document.get("processes", ())] if report.status else []
    _expect(report.status == 0, f"midflight {command} ended with {report.status}: {reasons}", report)
    if load is not None:
        _expect(not load.failures, f"{len(load.failures)} of {load.requests} requests failed: {load.failures[:1]}")
    return report


def _refused(expected: Refused, row: Row, built: Report) -> None:
    """The forge says no, for the right reason, and leaves no hotpatch behind."""
    _expect(built.status == 3, f"midflight build ended with {built.status}, and not with a refusal", built)
    _expect(not row.accepted, "a hotpatch was written all the same")
    everything = _standing(built)
    # for what the fix does, and not because something of the running image was not found (MF12x to MF14x); an address
    # that has one witness only (MF135) was found
    _expect(
        not [item for item in everything if re.match("MF1([24].|3[^5])", item["code"])], f"found {_codes(built)}", built
    )
    findings = [finding for finding in everything if finding["code"] in expected.codes]
    seen = {finding["code"] for finding in findings}
    _expect(seen == expected.codes, f"found {_codes(built)}, not {sorted(expected.codes - seen)}", built)
    row.proof = min(expected.codes)
    for name in expected.names:
        named = any(name in finding["symbol"] + finding["reason"] for finding in findings)
        _expect(named, f"no refusal names {name}", built)


def _alone(code: str, row: Row, built: Report) -> None:
    """The forge says that nothing needs to be applied, and says nothing else."""
    _expect(built.status == 3, f"midflight build ended with {built.status}, and not with {code}", built)
    if "report" in built.document:
        codes = [finding["code"] for finding in _standing(built)]
    else:  # found out before anything was compared
        codes = re.findall(r"\bMF\d{3}\b", built.document["error"]["message"])
    _expect(codes == [code] and not row.accepted, f"found {codes}, not {code} alone", built)
    row.proof = code


def _replaced(hotpatch: Path, public: Path) -> frozenset[str]:
    """Names of the functions that a hotpatch replaces; a compiler's clone counts as the function it was made from."""
    inspected = midflight("inspect", hotpatch, "--trust", public)
    _expect(inspected.status == 0, "midflight inspect fails", inspected)
    targets = inspected.document["manifest"]["targets"]
    names = (function["name"] for target in targets for function in target["functions"])
    return frozenset(re.sub(r"\.(?:constprop|isra|part|cold)\b.*", "", name) for name in names)


def _folder(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
