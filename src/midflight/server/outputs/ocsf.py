"""Security events in the Open Cybersecurity Schema Framework, 1.6.0 (schema.ocsf.io); pure.

* a hotpatch applied or taken out: Remediation Activity (7001), *harden* or *restore*;
* code memory that is neither disk nor ledger: Detection Finding (2004), ATT&CK T1055;
* a device that became compliant or ceased to be: Compliance Finding (2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from midflight import __version__

SCHEMA = "1.6.0"

_SEVERITIES = {"none": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}
_INFORMATIONAL, _HIGH = 1, 4


@dataclass(frozen=True, slots=True)
class Host:
    """The device an event is about."""

    id: str
    hostname: str = ""
    platform: str = ""

    def document(self) -> dict[str, Any]:
        """As an OCSF device object."""
        kind = self.platform.partition("-")[0]
        system = {"linux": ("Linux", 200), "windows": ("Windows", 100)}.get(kind, ("Other", 99))
        document: dict[str, Any] = {
            "uid": self.id,
            "type_id": 1,
            "type": "Server",
            "os": {"name": system[0], "type_id": system[1]},
        }
        return document | ({"hostname": self.hostname} if self.hostname else {})


def patch_changed(
    event: str,
    at: datetime,
    host: Host,
    *,
    applied: bool,
    succeeded: bool,
    content: str,
    name: str,
    cves: Sequence[str] = (),
    processes: int = 0,
    stopped_ms: float = 0.0,
    detail: str = "",
) -> dict[str, Any]:
    """A hotpatch was put into, or taken out of, the processes of a device (or that was tried and failed)."""
    activity, label = (4, "Harden") if applied else (3, "Restore")
    status = (1, "Success") if succeeded else (2, "Failure")
    verb = ("put into" if applied else "taken out of") if succeeded else "not changed in"
    fixed = f" ({', '.join(cves)})" if cves else ""
    return _base(event, at, host, 7001, "Remediation Activity", activity, label, _INFORMATIONAL if succeeded else 3) | {
        "category_uid": 7,
        "category_name": "Remediation",
        "command_uid": content,
        "status_id": status[0],
        "status": status[1],
        "message": f"hotpatch {name}{fixed} {verb} {processes} processes" + (f": {detail}" if detail else ""),
        "countermeasures": [
            {"d3f_tactic": {"name": label}, "d3f_technique": {"name": "Software Update", "uid": "D3-SU"}},
        ],
        "remediation": {
            "desc": f"hotpatch {name}, in memory, without a restart",
            **({"references": [f"https://www.cve.org/CVERecord?id={cve}" for cve in cves]} if cves else {}),
        },
        "unmapped": {"processes": processes, "stopped_ms": stopped_ms, "cves": list(cves)},
    }


def integrity_violated(
    event: str, at: datetime, host: Host, *, image: str, pid: int | None, detail: str = ""
) -> dict[str, Any]:
    """Code in a process is neither what is on disk nor what the ledger says: somebody else changed it."""
    name = image.rpartition("/")[2] or image or "unknown"
    file = {"name": name, "type_id": 1, **({"path": image} if "/" in image else {})}
    process = {"name": name, "file": file} | ({"pid": pid} if pid is not None else {"uid": f"{host.id}:{name}"})
    text = f"code memory of {name} was changed"
    return _base(event, at, host, 2004, "Detection Finding", 1, "Create", _HIGH) | {
        "category_uid": 2,
        "category_name": "Findings",
        "status_id": 1,
        "status": "New",
        "message": text,
        "is_alert": True,
        "finding_info": {
            "uid": event,
            "title": "Code in memory is neither disk nor ledger",
            "desc": text + (f": {detail}" if detail else ""),
            "created_time": _millis(at),
            "analytic": {"name": "midflight integrity check", "type_id": 1, "type": "Rule"},
            "attacks": [
                {
                    "tactic": {"name": "Defense Evasion", "uid": "TA0005"},
                    "technique": {"name": "Process Injection", "uid": "T1055"},
                }
            ],
        },
        "evidences": [{"process": process}],
    }


def compliance_changed(
    event: str, at: datetime, host: Host, *, compliant: bool, state: str, previous: str, reason: str, text: str
) -> dict[str, Any]:
    """A device's compliance changed."""
    activity = (3, "Close") if compliant else (1, "Create")
    status = (4, "Resolved") if compliant else (1, "New")
    severity = _INFORMATIONAL if compliant else 3
    return _base(event, at, host, 2003, "Compliance Finding", activity[0], activity[1], severity) | {
        "category_uid": 2,
        "category_name": "Findings",
        "status_id": status[0],
        "status": status[1],
        "message": f"{previous or 'unknown'} became {state}: {text}",
        "finding_info": {"uid": f"{host.id}:compliance", "title": "Required security fixes run in memory"},
        "compliance": {
            "control": "required security fixes run in memory",
            "standards": ["midflight policy"],
            "status_id": 1 if compliant else 3,
            "status": "Pass" if compliant else "Fail",
            "status_code": reason,
            "status_detail": text,
        },
    }


def severity(name: str) -> int:
    """``severity_id`` of a CVSS rating."""
    return _SEVERITIES.get(name, 0)


def _base(
    event: str, at: datetime, host: Host, class_uid: int, class_name: str, activity: int, label: str, severity_id: int
) -> dict[str, Any]:
    return {
        "class_uid": class_uid,
        "class_name": class_name,
        "activity_id": activity,
        "activity_name": label,
        "type_uid": class_uid * 100 + activity,
        "type_name": f"{class_name}: {label}",
        "time": _millis(at),
        "severity_id": severity_id,
        "severity": {1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical"}[severity_id],
        "metadata": {
            "version": SCHEMA,
            "uid": event,
            "profiles": ["host"],
            "product": {"name": "Midflight", "vendor_name": "Midflight", "version": __version__},
        },
        "device": host.document(),
    }


def _millis(at: datetime) -> int:
    return int(at.timestamp() * 1000)
