"""The verdict on a fix: can it be hotpatched on this binary, what forbids it, and what would allow it.

The document made here is what ``midflight assess --json`` prints; docs/reference/assessment-1.json is its schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from midflight.forge.model import FindingKind
from midflight.forge.refusals import REFUSALS
from midflight.forge.review import reviewnames
from midflight.forge.review.reviewing import combined
from midflight.forge.review.touched import Touched, TouchedFile

SCHEMA_VERSION = 1

Verdict = Literal["patchable", "sign-off", "refused", "unknown"]

KINDS: tuple[FindingKind, ...] = ("refusal", "sign-off", "warning", "note")

LIMITS = (
    "whether the fix itself is right: it is taken as it is",
    "what live objects hold: every object may be older than the hotpatch, and was made by the old code",
    "whether code has run for the last time, for instance before the first connection (only constructors and the "
    "straight-line code of main are seen to be behind a program)",
    "locks, reference counts and atomics that the compiler wrote into the code itself, without a call",
    "who owns, locks or orders in functions whose names do not say so",
)
"""What no assessment knows, in words for people."""


_FILES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Assessment:
    """The answer. ``findings`` are those of all images, as in the report of a build."""

    verdict: Verdict
    summary: str
    findings: tuple[Mapping[str, Any], ...]
    images: tuple[Mapping[str, Any], ...]
    preview: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str | None:
        """What would be signed off, over all images."""
        digests = [str(image["review"]["digest"]) for image in self.images if "review" in image]
        return combined(digests) if digests else None

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "schema": SCHEMA_VERSION,
            "verdict": self.verdict,
            "summary": self.summary,
            "digest": self.digest,
            "findings": [dict(item) for item in self.findings],
            "images": [dict(image) for image in self.images],
            "preview": None if self.preview is None else dict(self.preview),
            "cannot_know": list(LIMITS),
        }

    def standing(self, kind: FindingKind) -> list[Mapping[str, Any]]:
        """Findings of a kind that nobody has answered."""
        return [item for item in self.findings if item["kind"] == kind and item["overridden"] is None]


def grouped(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For people: the same finding in several files (a header's struct) once, with the files named together."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for item in findings:
        key = (item["code"], item["symbol"], item["reason"], str(item["overridden"]))
        known = found.setdefault(key, {**item, "files": []})
        if item["file"] and item["file"] not in known["files"]:
            known["files"].append(item["file"])
    for item in found.values():
        names = item.pop("files")
        more = f" and {len(names) - _FILES_SHOWN} more files" if len(names) > _FILES_SHOWN else ""
        item["file"] = ", ".join(names[:_FILES_SHOWN]) + more
    return list(found.values())


def assess(report: Mapping[str, Any]) -> Assessment:
    """The verdict that follows from the report of the forge, whether it refused or not."""
    images = tuple(report.get("images", [report]))
    unique = {tuple(sorted((k, str(v)) for k, v in f.items())): f for image in images for f in image["findings"]}
    findings = tuple(sorted(unique.values(), key=lambda f: (KINDS.index(f["kind"]), f["code"], f["symbol"])))
    verdict, summary = _verdict(findings)
    return Assessment(verdict, summary, findings, images)


def _verdict(findings: Sequence[Mapping[str, Any]]) -> tuple[Verdict, str]:
    standing = [item for item in findings if item["overridden"] is None]
    refusals = [item for item in standing if item["kind"] == "refusal"]
    signed = {(item["code"], item["symbol"]) for item in standing if item["kind"] == "sign-off"}
    if refusals:
        titles = dict.fromkeys(f"{item['code']} {REFUSALS[item['code']].title.lower()}" for item in refusals)
        return "refused", f"cannot be hotpatched: {', '.join(titles)}"
    if signed:
        count = "one finding" if len(signed) == 1 else f"{len(signed)} findings"
        return "sign-off", f"can be hotpatched after sign-off of {count}"
    return "patchable", "can be hotpatched"


def refused(message: str) -> Assessment:
    """The verdict when the forge refused before it had anything to report: nothing to patch, already fixed, LTO."""
    found = re.search(r"\b(MF\d{3}) (.*)", message, re.DOTALL)
    code = found[1] if found is not None and found[1] in REFUSALS else ""
    reason = message if found is None else found[2]
    title = REFUSALS[code].title.lower() if code else message.partition(":")[0]
    item = {
        "code": code,
        "kind": "refusal",
        "file": "",
        "symbol": "",
        "reason": reason,
        "remedy": REFUSALS[code].remedy if code else "",
        "overridable": False,
        "overridden": None,
    }
    return Assessment("refused", f"cannot be hotpatched: {code} {title}".replace(":  ", ": "), (item,), ())


def unknown(why: str) -> Assessment:
    """The honest answer while something is missing."""
    return Assessment("unknown", f"unknown: {why}", (), ())


# --- the first answer ----------------------------------------------------------------------------------------------


_CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_TYPE = re.compile(r"^\s*(?:typedef\s+)?(struct|union|class|enum)\s+(\w+)?[^;()=]*\{?\s*$")
_WHOLE_TYPE = re.compile(r"\b(struct|union|class|enum)\s+(\w+)?\s*\{.*\}")
_MEMBER = re.compile(r"^\s*(?:[A-Za-z_][\w:<>,*&\s]*[\s*&])\w+(?:\[[^]]*\])*(?:\s*:\s*\d+)?\s*;")
_STATIC = re.compile(r"^(?:static\s+|const\s+|extern\s+)*[A-Za-z_][\w\s*]*\b\w+(?:\[[^]]*\])*\s*=\s*[^=]")
_KEYWORDS = frozenset({"if", "while", "for", "switch", "return", "sizeof", "defined", "catch"})
_BACK = 400


def first_line(found: Mapping[str, Any]) -> str:
    """The first answer in one line."""
    lines = sum(item["added"] + item["removed"] for item in found["files"])
    files = "1 source file" if len(found["files"]) == 1 else f"{len(found['files'])} source files"
    hints = "; ".join(found["likely"][:3]) or "nothing in its text speaks against it"
    return f"first answer: {files}, {lines} lines: {hints}"


def preview(touched: Touched) -> dict[str, Any]:
    """What the text of a fix alone tells, before anything is built: likely reasons to refuse or to look closer."""
    likely: list[str] = []
    for path, file in sorted(touched.files.items()):
        lines = [(0, n) for n in sorted(file.removed)] + [(1, n) for n in sorted(file.added)]
        likely += dict.fromkeys(text for side, n in lines for text in _hints(path, file, side, n))
    files = [
        {"file": path, "added": len(file.added), "removed": len(file.removed)}
        for path, file in sorted(touched.files.items())
    ]
    return {"files": files, "likely": list(dict.fromkeys(likely))}


def _hints(path: str, file: TouchedFile, side: int, number: int) -> list[str]:
    line = file.line(side, number)
    if not line.strip() or line.lstrip().startswith(("//", "*", "/*")):
        return []
    found = []
    whole = _WHOLE_TYPE.search(line)
    kind = f"{whole[1]} {whole[2] or '(unnamed)'}" if whole is not None else _enclosing_type(file, side, number)
    if kind is not None and (whole is not None or _MEMBER.match(line) or kind.startswith("enum")):
        code = "MF150" if kind.startswith("enum") else "MF111"
        found.append(f"{code} {path}: {kind} may change")
    if not line[:1].isspace() and _STATIC.match(line):
        found.append(f"MF110 {path}: the initial value of a variable may change")
    for name in _CALL.findall(line):
        if name in _KEYWORDS:
            continue
        if reviewnames.owns(name):
            found.append(f"MF170 {path}: calls of {name}")
        elif reviewnames.locks(name) or reviewnames.unlocks(name):
            found.append(f"MF172 {path}: calls of {name}")
        elif reviewnames.calls_order(name):
            found.append(f"MF171 {path}: calls of {name}")
    return found


def _enclosing_type(file: TouchedFile, side: int, number: int) -> str | None:
    """The struct, union, class or enum inside of whose braces a line stands; None inside of functions."""
    depth = 0
    for at in range(number - 1, max(number - _BACK, 0), -1):
        line = file.line(side, at)
        depth += line.count("}") - line.count("{")
        if depth < 0:
            for head in (line, file.line(side, at - 1)):
                opened = _TYPE.match(head.split("//")[0].split("/*")[0].rstrip())
                if opened is not None:
                    return f"{opened[1]} {opened[2] or '(unnamed)'}"
            return None
    return None
