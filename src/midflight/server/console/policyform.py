"""A policy as a form: from the document of the API to fields, and back. Pure; what is allowed the API decides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from midflight.server.console.api import Refused
from midflight.server.console.display import as_duration
from midflight.server.console.times import in_unit, iso_duration
from midflight.server.console.web import Form

DAYS = (("MO", "Mon"), ("TU", "Tue"), ("WE", "Wed"), ("TH", "Thu"), ("FR", "Fri"), ("SA", "Sat"), ("SU", "Sun"))
STARTER: Mapping[str, Any] = {
    "audience": {"groups": [], "excluded": []},
    "hotpatch": True,
    "fallback": True,
    "approvals": [
        {
            "mode": "automatic",
            "kinds": ["hotpatch"],
            "classifications": ["security", "critical"],
            "min_severity": "none",
            "max_severity": "critical",
            "delay": "PT0S",
        }
    ],
    "rings": [
        {"name": "first", "kind": "first", "amount": 1, "group": "", "mode": "automatic", "gate": {
            "min_sample": 1, "max_failures": 0, "max_failure_percent": None, "silence_after": "PT24H",
            "silence_is_failure": True, "soak": "PT1H"}},
        {"name": "early", "kind": "percent", "amount": 10, "group": "", "mode": "automatic", "gate": {
            "min_sample": 5, "max_failures": None, "max_failure_percent": 5, "silence_after": "PT24H",
            "silence_is_failure": True, "soak": "PT24H"}},
        {"name": "everyone", "kind": "rest", "amount": 0, "group": "", "mode": "automatic", "gate": {
            "min_sample": 10, "max_failures": None, "max_failure_percent": 5, "silence_after": "PT24H",
            "silence_is_failure": True, "soak": "PT1H"}},
    ],
    "windows": [],
    "deadline": "P7D",
    "grace": "P2D",
    "restart": "at_deadline",
    "expedite_allowed": True,
    "revert_on_halt": True,
    "check_in_s": 300,
    "compliance": {"validity": "P7D", "grace": "P7D", "min_severity": "none"},
}  # fmt: skip
"""What a new policy begins with: security hotpatches by themselves, one device first, a tenth, then all."""
_WEEKLY = re.compile(
    r"FREQ=WEEKLY;BYDAY=(?P<days>(?:MO|TU|WE|TH|FR|SA|SU)(?:,(?:MO|TU|WE|TH|FR|SA|SU))*)"
    r";BYHOUR=(?P<hour>\d{1,2});BYMINUTE=(?P<minute>\d{1,2})"
)


def rows_of(form: Form) -> Mapping[str, Any]:
    """A document with as many rings, rules and windows as were sent; what was typed into them the form shows itself."""
    window = {"rrule": "", "start": "", "duration": "PT4H", "timezone": None}
    return {
        **STARTER,
        "rings": list(STARTER["rings"][-1:]) * len(_rows(form, "ring")),
        "approvals": list(STARTER["approvals"]) * len(_rows(form, "rule")),
        "windows": [window] * len(_rows(form, "window")),
    }


def fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """A policy's document with what the form shows instead of durations and recurrences."""
    gates = [{**ring["gate"], "soak_h": in_unit(ring["gate"]["soak"], "hours"),
              "silence_h": in_unit(ring["gate"]["silence_after"], "hours")} for ring in document["rings"]]  # fmt: skip
    return {
        **document,
        "rings": [{**ring, "gate": gate} for ring, gate in zip(document["rings"], gates, strict=True)],
        "approvals": [{**rule, "delay_h": in_unit(rule["delay"], "hours")} for rule in document["approvals"]],
        "windows": [_window_fields(window) for window in document["windows"]],
        "deadline_d": in_unit(document["deadline"], "days"),
        "grace_d": in_unit(document["grace"], "days"),
        "compliance": {
            **document["compliance"],
            "validity_d": in_unit(document["compliance"]["validity"], "days"),
            "grace_d": in_unit(document["compliance"]["grace"], "days"),
        },
    }


def _window_fields(window: Mapping[str, Any]) -> dict[str, Any]:
    weekly = _WEEKLY.fullmatch(window["rrule"])
    return {
        **window,
        "days": weekly["days"].split(",") if weekly else [],
        "time": f"{int(weekly['hour']):02d}:{int(weekly['minute']):02d}" if weekly else "",
        "hours": in_unit(window["duration"], "hours"),
        "raw": "" if weekly else window["rrule"],
    }


def window_text(window: Mapping[str, Any]) -> str:
    """A window in words: ``Sat, Sun from 02:00 for 4 h, in the own time of each device``."""
    shown = _window_fields(window)
    names = dict(DAYS)
    when = f"{', '.join(names[day] for day in shown['days'])} from {shown['time']}" if shown["days"] else shown["raw"]
    length = as_duration(window["duration"])
    hours = f"{length.total_seconds() / 3600:g} h" if length else "?"
    return f"{when} for {hours}, {window['timezone'] or 'in the own time of each device'}"


def document(form: Form, today: date) -> dict[str, Any]:
    """The document that was typed.

    Raises:
        Refused: a field is no number, or a window has neither days nor a recurrence.
    """
    return {
        "audience": {"groups": form.all("groups"), "excluded": form.all("excluded")},
        "hotpatch": form.has("hotpatch"),
        "fallback": form.has("fallback"),
        "approvals": [_rule(form, f"rule-{n}-") for n in _rows(form, "rule")],
        "rings": [_ring(form, f"ring-{n}-") for n in _rows(form, "ring")],
        "windows": [_window(form, f"window-{n}-", today) for n in _rows(form, "window")],
        "deadline": iso_duration(form.number("deadline_d"), "days"),
        "grace": iso_duration(form.number("grace_d") or 0, "days"),
        "restart": form.one("restart", "at_deadline"),
        "expedite_allowed": form.has("expedite_allowed"),
        "revert_on_halt": form.has("revert_on_halt"),
        "check_in_s": form.number("check_in_s") or 300,
        "compliance": {
            "validity": iso_duration(form.number("validity_d") or 7, "days"),
            "grace": iso_duration(form.number("compliance_grace_d") or 0, "days"),
            "min_severity": form.one("required_severity", "none"),
        },
    }


def _rows(form: Form, name: str) -> Sequence[int]:
    """The numbers of the rows of a list that were sent, in the order of the page."""
    found = [int(match[1]) for key, _ in form.pairs if (match := re.fullmatch(rf"{name}-(\d{{1,3}})-here", key))]
    return list(dict.fromkeys(found))


def _rule(form: Form, at: str) -> dict[str, Any]:
    return {
        "mode": form.one(at + "mode", "manual"),
        "kinds": form.all(at + "kinds"),
        "classifications": form.all(at + "classifications"),
        "min_severity": form.one(at + "min", "none"),
        "max_severity": form.one(at + "max", "critical"),
        "delay": iso_duration(form.number(at + "delay_h") or 0, "hours"),
    }


def _ring(form: Form, at: str) -> dict[str, Any]:
    kind = form.one(at + "kind", "rest")
    return {
        "name": form.one(at + "name"),
        "kind": kind,
        "amount": 0 if kind in ("rest", "group") else form.number(at + "amount") or 0,
        "group": form.one(at + "group") if kind == "group" else "",
        "mode": form.one(at + "mode", "automatic"),
        "gate": {
            "min_sample": form.number(at + "sample") or 1,
            "max_failures": form.number(at + "failures"),
            "max_failure_percent": form.number(at + "percent"),
            "silence_after": iso_duration(form.number(at + "silence_h") or 24, "hours"),
            "silence_is_failure": form.has(at + "silence"),
            "soak": iso_duration(form.number(at + "soak_h") or 0, "hours"),
        },
    }


def _window(form: Form, at: str, today: date) -> dict[str, Any]:
    raw, days, time = form.one(at + "raw"), form.all(at + "days"), form.one(at + "time")
    if not raw:
        found = re.fullmatch(r"(\d{1,2}):(\d{2})", time)
        if not days or not found:
            raise Refused(422, "invalid", "a maintenance window needs days and the time at which it opens")
        raw = f"FREQ=WEEKLY;BYDAY={','.join(days)};BYHOUR={int(found[1])};BYMINUTE={int(found[2])}"
    return {
        "rrule": raw,
        "start": form.one(at + "start") or f"{today:%Y-%m-%d}T00:00:00",
        "duration": iso_duration(form.number(at + "hours") or 4, "hours"),
        "timezone": form.one(at + "timezone") or None,
    }
