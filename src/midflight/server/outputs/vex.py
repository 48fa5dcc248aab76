"""CSAF 2.0 documents of the profile VEX (docs.oasis-open.org/csaf, section 4.5) for a device or the fleet; pure.

A package on disk and the same package with a hotpatch in memory are two products, the second a relationship of the
hotpatch with the first. A vulnerability's status is given for each: on disk *known_affected*, with the restart as its
remediation; in memory *fixed*. A scanner that knows only packages sees the first and the way to the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from midflight import __version__
from midflight.server.outputs.truth import DeviceTruth, Finding, Memory

_CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,}")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@dataclass(slots=True)
class _Products:
    """The product tree as it grows: every product once, with an identifier that says what it is."""

    packages: dict[str, dict[str, str]] = field(default_factory=dict)
    """Version branches by package: version to product id."""
    hotpatches: dict[str, str] = field(default_factory=dict)
    combined: dict[tuple[str, str], str] = field(default_factory=dict)

    def on_disk(self, package: str, version: str) -> str:
        name = f"{package}:{version}"
        self.packages.setdefault(package, {})[version] = name
        return name

    def in_memory(self, package: str, version: str, hotpatch: str) -> str:
        disk = self.on_disk(package, version)
        self.hotpatches[hotpatch] = f"hotpatch:{hotpatch}"
        name = f"{disk}+{hotpatch}"
        self.combined[(disk, hotpatch)] = name
        return name

    def document(self) -> dict[str, Any]:
        vendor = [self._package(name, versions) for name, versions in sorted(self.packages.items())]
        branches = [{"category": "vendor", "name": "Debian", "branches": vendor}] if vendor else []
        if self.hotpatches:
            own = [
                {
                    "category": "product_name",
                    "name": name,
                    "product": {"name": f"Hotpatch {name}", "product_id": product},
                }
                for name, product in sorted(self.hotpatches.items())
            ]
            branches.append({"category": "vendor", "name": "Midflight", "branches": own})
        tree: dict[str, Any] = {"branches": branches}
        if self.combined:
            tree["relationships"] = [
                {
                    "category": "installed_with",
                    "product_reference": self.hotpatches[hotpatch],
                    "relates_to_product_reference": disk,
                    "full_product_name": {
                        "name": f"{disk.replace(':', ' ', 1)} running with hotpatch {hotpatch}",
                        "product_id": name,
                    },
                }
                for (disk, hotpatch), name in sorted(self.combined.items())
            ]
        return tree

    @staticmethod
    def _package(package: str, versions: dict[str, str]) -> dict[str, Any]:
        def leaf(version: str, product: str) -> dict[str, Any]:
            full: dict[str, Any] = {"name": f"{package} {version}", "product_id": product}
            if re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", package) and version != "unknown":
                full["product_identification_helper"] = {
                    "purl": f"pkg:deb/debian/{quote(package, safe='.-')}@{quote(version, safe='.-~')}"
                }
            return {"category": "product_version", "name": version, "product": full}

        return {
            "category": "product_name",
            "name": package,
            "branches": [leaf(version, product) for version, product in sorted(versions.items())],
        }


@dataclass(slots=True)
class _Status:
    """Who stands how to one vulnerability: product ids, and how many devices stand behind each."""

    fixed: dict[str, int] = field(default_factory=dict)
    affected: dict[str, int] = field(default_factory=dict)
    investigated: dict[str, int] = field(default_factory=dict)
    restart: set[str] = field(default_factory=set)
    """Those affected on disk whose running code is fixed: the remediation is the planned restart."""
    fixes: dict[str, str] = field(default_factory=dict)
    """For those affected: the name of the content that fixes them."""


def document(truths: Iterable[DeviceTruth], name: str, publisher: str, now: datetime) -> dict[str, Any]:
    """The VEX document over the devices given.

    Args:
        name: what it is about, for its title and identifier: a device, or the fleet.
        publisher: the server's URL, the namespace of the document.
    """
    products, statuses, known = _Products(), dict[str, _Status](), dict[str, Finding]()
    reported: list[datetime] = []
    for truth in truths:
        reported += [truth.at] if truth.at else []
        for finding in truth.findings:
            known.setdefault(finding.cve.id, finding)
            _add(products, statuses.setdefault(finding.cve.id, _Status()), finding)
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = _clean(name)
    version = now.astimezone(UTC).strftime("%Y%m%d%H%M%S")
    result: dict[str, Any] = {
        "document": {
            "category": "csaf_vex",
            "csaf_version": "2.0",
            "lang": "en",
            "title": f"What runs in memory: {about}",
            "notes": [
                {
                    "category": "general",
                    "title": "Source",
                    "text": "Read from the memory of processes by the agents of Midflight, not from versions on disk. "
                    + (f"The oldest report is of {min(reported).astimezone(UTC).isoformat()}." if reported else ""),
                }
            ],
            "publisher": {"category": "user", "name": "Midflight", "namespace": publisher},
            "tracking": {
                "id": re.sub(r"[^a-z0-9._-]", "-", f"midflight-vex-{about}".lower()),
                "status": "final",
                "version": version,
                "initial_release_date": stamp,
                "current_release_date": stamp,
                "generator": {"date": stamp, "engine": {"name": "Midflight", "version": __version__}},
                "revision_history": [{"date": stamp, "number": version, "summary": "As of this moment"}],
            },
            "distribution": {"tlp": {"label": "AMBER"}},
        },
        "product_tree": products.document(),
        "vulnerabilities": [_vulnerability(known[cve], statuses[cve]) for cve in sorted(statuses)],
    }
    if not statuses:
        # the profile demands a product and a vulnerability; without any there is nothing but to say so
        result["document"]["category"] = "csaf_base"
        del result["product_tree"], result["vulnerabilities"]
    return result


def _add(products: _Products, status: _Status, finding: Finding) -> None:
    package = _clean(finding.package)
    for raw in finding.versions or ("unknown",):
        version = _clean(raw)
        disk = products.on_disk(package, version)
        if finding.memory is Memory.FIXED:
            status.fixed[disk] = status.fixed.get(disk, 0) + 1
            continue
        status.affected[disk] = status.affected.get(disk, 0) + 1
        status.fixes[disk] = _clean(finding.fix)
        if finding.memory is Memory.HOTPATCHED:
            memory = products.in_memory(package, version, _clean(finding.hotpatch))
            status.fixed[memory] = status.fixed.get(memory, 0) + 1
            status.restart.add(disk)


def _vulnerability(finding: Finding, status: _Status) -> dict[str, Any]:
    # a baseline's version that is vulnerable elsewhere can be the same product only by a contradiction in the reports
    both = status.fixed.keys() & status.affected.keys()
    status.investigated = {product: status.affected[product] for product in both}
    fixed = {product: count for product, count in status.fixed.items() if product not in both}
    affected = {product: count for product, count in status.affected.items() if product not in both}
    groups = {
        "fixed": sorted(fixed),
        "known_affected": sorted(affected),
        "under_investigation": sorted(status.investigated),
    }
    cve = _clean(finding.cve.id)
    result: dict[str, Any] = {
        "notes": [
            {"category": "description", "title": "Vulnerability", "text": _summary(cve, finding, fixed, affected)}
        ],
        "product_status": {name: products for name, products in groups.items() if products},
    }
    if _CVE.fullmatch(cve):
        result["cve"] = cve
    else:
        result["ids"] = [{"system_name": "Midflight catalogue", "text": cve}]
    if affected:
        result["remediations"] = _remediations(status, sorted(affected))
    return result


def _remediations(status: _Status, affected: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for product in affected:
        text = f"Apply {status.fixes[product]} in memory, or restart into its baseline."
        if product in status.restart:
            text = (
                f"Where {status.fixes[product]} runs in memory no vulnerable code runs. "
                "The file on disk is replaced at the next restart into the baseline. " + text
            )
        found.append({"category": "vendor_fix", "details": text, "product_ids": [product]})
    return found


def _summary(cve: str, finding: Finding, fixed: dict[str, int], affected: dict[str, int]) -> str:
    memory = sum(fixed.values())
    disk = sum(affected.values())
    return (
        f"{cve} (CVSS {finding.cve.cvss if finding.cve.cvss is not None else 'unknown'}, {finding.cve.severity}): "
        f"on {memory} devices no vulnerable code runs; on {disk} devices the file on disk is a vulnerable one."
    )


def _clean(text: str) -> str:
    """Without control characters, and never empty: names come from devices."""
    return _UNSEEN.sub("\ufffd", text).strip() or "unknown"
