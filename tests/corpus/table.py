"""The table of the corpus: one row a case, footnotes, a sum; the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Literal

WIDTH = 80


@dataclass(slots=True)
class Row:
    """What became of one case; filled while it runs."""

    case: str
    running: str
    """plain: our build of the vulnerable source, stripped; +syms: not stripped; deb: Debian's own binary."""
    expected: Literal["patched", "refused", "no-op", "fixed"]
    verdict: str = "FAILED"
    proof: str = ""
    """live or call (see :class:`tests.corpus.model.Patched`), or the code of the first refusal."""
    functions: int | None = None
    """Replaced by the hotpatch."""
    matched: tuple[int, int] | None = None
    """Functions of the changed objects that were proven to be in the running binary, and those looked for."""
    build_seconds: float | None = None
    """Of ``midflight build``, both builds of the source included, where no earlier case of the package made them."""
    stopped_ms: float | None = None
    """The longest time that a process stood still for the apply."""
    requests: int | None = None
    failed: int | None = None
    """Requests of the load that went wrong."""
    accepted: bool = False
    """Whether a hotpatch was written."""
    reason: str = ""
    """Why it failed."""
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything was as expected."""
        return self.verdict == self.expected


_COLUMNS = ("CASE", "RUN", "VERDICT", "PROOF", "FN", "MATCH", "BUILD", "STOP", "LOAD")
_WIDTHS = (25, 5, 7, 5, 2, 6, 5, 6, 7)


def render(rows: Sequence[Row]) -> str:
    """The table, at most 80 columns wide."""
    lines = [_line(_COLUMNS)]
    footnotes: list[str] = []
    for row in rows:
        lines.append(_line(_cells(row)))
        footnotes += [f"{row.case}: {text}" for text in ([row.reason] if row.reason else []) + row.notes]
    lines.append("RUN: plain = our build, stripped; +syms = not stripped; deb = Debian's own binary.")
    lines.append("BUILD: seconds. STOP: ms, of the process that stood still longest. LOAD: requests/failed.")
    for text in footnotes:
        lines += wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
    return "\n".join([*(part for line in lines for part in wrap(line, WIDTH) or [""]), *summary(rows)])


def summary(rows: Sequence[Row]) -> list[str]:
    """The lines that count."""
    patchable = [row for row in rows if row.expected == "patched"]
    others = [row for row in rows if row.expected != "patched"]
    working = sum(row.good for row in patchable)
    share = f" ({working / len(patchable):.0%})" if patchable else ""
    answered = sum(row.good for row in others)
    return [
        f"{working} of {len(patchable)} hot-patchable cases work{share}, with no hand-written code.",
        f"{answered} of {len(others)} others are answered as they must be; "
        f"wrong acceptances: {sum(row.accepted for row in others)}.",
    ]


def write_json(rows: Sequence[Row], path: Path) -> None:
    """The rows for other programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"cases": [{**asdict(row), "good": row.good} for row in rows], "summary": summary(rows)}
    path.write_text(json.dumps(document, indent=1) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.case,
        row.running,
        row.verdict,
        row.proof,
        "" if row.functions is None else str(row.functions),
        "" if row.matched is None else _share(*row.matched),
        "" if row.build_seconds is None else f"{row.build_seconds:.0f}",
        "" if row.stopped_ms is None else f"{row.stopped_ms:.2f}",
        "" if row.requests is None else f"{row.requests}/{row.failed}",
    )


def _share(part: int, whole: int) -> str:
    """A percentage that says 100 % only when it is."""
    if part == whole:
        return "100%"
    return f"{min(99.9, 100 * part / whole):.1f}%"


def _line(cells: Sequence[str]) -> str:
    aligned = (
        cell.ljust(width) if number < 4 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    return " ".join(aligned).rstrip()
