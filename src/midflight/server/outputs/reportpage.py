"""A report as JSON, CSV and a page to print; pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from midflight.server.domain.coverage import MILESTONES
from midflight.server.outputs.reports import Report

TABLES = ("cves", "failures", "devices")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def document(report: Report) -> dict[str, Any]:
    """As JSON."""
    return {
        "at": report.at,
        "since": report.since,
        "devices": {
            "total": report.standing.total,
            "compliant_hotpatched": report.standing.hotpatched,
            "compliant_restarted": report.standing.restarted,
            "in_grace": report.standing.in_grace,
            "others": report.standing.others,
        },
        "saved": {
            "exposure_hours": round(report.saved.exposure_hours, 2),
            "restarts_avoided": report.saved.restarts,
            "stopped_ms": round(report.saved.stopped_ms, 3),
        },
        "cves": [
            {
                "cve": line.cve.id,
                "cvss": line.cve.cvss,
                "severity": line.cve.severity,
                "exploited": line.cve.exploited,
                "package": line.package,
                "fix": line.fix,
                "published": line.published,
                "affected": line.affected,
                "hotpatched": line.hotpatched,
                "restarted": line.restarted,
                "open": line.open,
                "covered_percent": None if line.share is None else round(line.share * 100, 1),
                **{f"hours_to_{percent}_percent": _hours(line.times[percent]) for percent in MILESTONES},
            }
            for line in report.cves
        ],
        "failures": [
            {
                "content": line.content,
                "result": line.result,
                "reason": line.reason,
                "text": line.text,
                "devices": line.devices,
                "last": line.last,
            }
            for line in report.failures
        ],
    }


def table(report: Report, name: str) -> str:
    """One table as CSV (RFC 4180). What a spreadsheet would take for a formula is made text."""
    found = document(report)
    rows: Sequence[dict[str, Any]] = [found["devices"] | found["saved"]] if name == "devices" else found[name]
    columns = {
        "cves": [
            "cve", "cvss", "severity", "exploited", "package", "fix", "published", "affected", "hotpatched",
            "restarted", "open", "covered_percent", *(f"hours_to_{percent}_percent" for percent in MILESTONES),
        ],
        "failures": ["content", "result", "reason", "text", "devices", "last"],
        "devices": list(found["devices"] | found["saved"]),
    }[name]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    text = visible(str(value))
    return "'" + text if isinstance(value, str) and text.startswith(_FORMULA) else text


def visible(text: str) -> str:
    """Control characters and direction overrides as escapes: names and reasons come from devices."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _hours(time: timedelta | None) -> float | None:
    return None if time is None else round(time.total_seconds() / 3600, 2)


def page(report: Report, server: str) -> str:
    """A page that prints well: no scripts, no other files."""
    return _TEMPLATE.render(report=document(report), server=server, milestones=MILESTONES)


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_environment.filters["visible"] = lambda value: visible(str(value))
_environment.filters["number"] = lambda value: "-" if value is None else f"{value:,}"
_environment.filters["day"] = lambda value: f"{value:%Y-%m-%d %H:%M} UTC"

_TEMPLATE = _environment.get_template("report.html")
