"""OVAL 5.11.2 definitions and results for one device (oval.mitre.org); pure.

For every vulnerability two definitions of class *vulnerability* are given, and they may differ:

* *on disk*: tested live, against the dpkg database of the machine that a scanner runs on;
* *in memory*: what the device's agent last read from its processes, carried in a constant variable.

and one of class *miscellaneous*: a hotpatch closes the gap until the restart. A scanner that evaluates the document
needs nothing from us; one that does not can take the results document, which says the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from midflight import __version__
from midflight.server.outputs.truth import DeviceTruth, Finding, Memory

_OVAL = "http://oval.mitre.org/XMLSchema/"
DEF, COM, RES, SYS = (
    _OVAL + name for name in ("oval-definitions-5", "oval-common-5", "oval-results-5", "oval-system-characteristics-5")
)
DEF_IND, DEF_LIN = DEF + "#independent", DEF + "#linux"
SYS_IND, SYS_LIN = SYS + "#independent", SYS + "#linux"
SCHEMA = "5.11.2"
_SPACE = "oval:io.midflight"
_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

for _prefix, _uri in (
    ("oval", COM),
    ("oval-def", DEF),
    ("oval-res", RES),
    ("oval-sc", SYS),
    ("ind-def", DEF_IND),
    ("linux-def", DEF_LIN),
    ("ind-sys", SYS_IND),
    ("linux-sys", SYS_LIN),
):
    ET.register_namespace(_prefix, _uri)


@dataclass(frozen=True, slots=True)
class _Ids:
    """The numbers of one finding: the same in every document, so results of two days can be compared."""

    number: int

    @classmethod
    def of(cls, finding: Finding) -> _Ids:
        text = f"{finding.package}\0{finding.cve.id}".encode("utf-8", "surrogatepass")
        return cls(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"))

    def of_kind(self, kind: str, which: int) -> str:
        return f"{_SPACE}:{kind}:{self.number}{which}"


DISK, MEMORY, PATCHED = 1, 2, 3


def definitions(truth: DeviceTruth, now: datetime) -> bytes:
    """The definitions document of a device."""
    return _document(_definitions(truth, now))


def results(truth: DeviceTruth, now: datetime) -> bytes:
    """The results document of a device: the definitions, and how each came out by its last report."""
    root = ET.Element(f"{{{RES}}}oval_results")
    _generator(root, RES, now)
    directives = _sub(root, RES, "directives")
    for name in ("true", "false", "unknown", "error", "not_evaluated", "not_applicable"):
        _sub(directives, RES, f"definition_{name}", reported="true", content="full")
    root.append(_definitions(truth, now))
    system = _sub(_sub(root, RES, "results"), RES, "system")
    outcomes = _sub(system, RES, "definitions")
    tests = _sub(system, RES, "tests")
    for finding in truth.findings:
        _results_of(outcomes, tests, finding)
    _characteristics(system, truth, now)
    return _document(root)


# -- definitions


def _definitions(truth: DeviceTruth, now: datetime) -> ET.Element:
    root = ET.Element(f"{{{DEF}}}oval_definitions")
    _generator(root, DEF, now)
    parts = {
        name: ET.Element(f"{{{DEF}}}{name}") for name in ("definitions", "tests", "objects", "states", "variables")
    }
    for finding in truth.findings:
        _define(parts["definitions"], truth, finding)
        _memory_test(parts, truth, finding)
        if _on_dpkg(finding):
            _disk_test(parts, finding)
    if not truth.findings:
        # a document must hold something: that nothing was found
        name, comment = f"{_SPACE}:var:1", f"vulnerabilities known of {_host(truth)}, {_stamp(truth.at)}"
        nothing = _sub(
            parts["variables"], DEF, "constant_variable", id=name, version="1", datatype="int", comment=comment
        )
        _sub(nothing, DEF, "value", "0")
    root.extend(part for part in parts.values() if len(part))
    return root


def _define(parent: ET.Element, truth: DeviceTruth, finding: Finding) -> None:
    ids, cve, package = _Ids.of(finding), finding.cve.id, finding.package
    when = f"as read from the memory of {_host(truth)} at {_stamp(truth.at)}" if truth.at else "never reported"
    memory = {
        Memory.HOTPATCHED: f"no vulnerable code runs: hotpatch {finding.hotpatch}",
        Memory.PARTLY: f"hotpatch {finding.hotpatch} runs in some processes only; others run vulnerable code",
        Memory.VULNERABLE: "vulnerable code runs",
        Memory.FIXED: "no vulnerable code runs: the fixed version runs",
        Memory.UNKNOWN: "unknown: the code in memory is not what the report explains",
    }[finding.memory]
    shown = [(MEMORY, "vulnerability", f"{cve}: vulnerable code of {package} runs in memory", f"{memory} ({when})")]
    if _on_dpkg(finding):
        text = "tested on disk; a hotpatch does not change it, a restart into the baseline does"
        shown.insert(0, (DISK, "vulnerability", f"{cve}: vulnerable {package} on disk", text))
    text = f"hotpatch {finding.hotpatch or 'none'}; vulnerable on disk until the next restart into a baseline"
    shown.append((PATCHED, "miscellaneous", f"{cve}: {package} is hotpatched in memory", text))
    for which, kind, title, description in shown:
        definition = _sub(parent, DEF, "definition", id=ids.of_kind("def", which), version="1")
        definition.set("class", kind)
        metadata = _sub(definition, DEF, "metadata")
        _sub(metadata, DEF, "title", title)
        affected = _sub(metadata, DEF, "affected", family="unix")
        _sub(affected, DEF, "product", package)
        _sub(
            metadata,
            DEF,
            "reference",
            source="CVE",
            ref_id=cve,
            ref_url=f"https://www.cve.org/CVERecord?id={_url(cve)}",
        )
        _sub(metadata, DEF, "description", description)
        criteria = _sub(definition, DEF, "criteria")
        _sub(criteria, DEF, "criterion", test_ref=ids.of_kind("tst", which), comment=title)


def _memory_test(parts: dict[str, ET.Element], truth: DeviceTruth, finding: Finding) -> None:
    ids = _Ids.of(finding)
    about = f"{finding.cve.id} in {finding.package}"
    reference = ids.of_kind("obj", MEMORY)
    found = _sub(parts["objects"], DEF_IND, "variable_object", id=reference, version="1", comment=f"memory: {about}")
    _sub(found, DEF_IND, "var_ref", ids.of_kind("var", MEMORY))
    for which, pattern in ((MEMORY, f"^({Memory.VULNERABLE}|{Memory.PARTLY})$"), (PATCHED, f"^{Memory.HOTPATCHED}$")):
        comment = f"{about}: {'vulnerable code runs' if which == MEMORY else 'hotpatched'}"
        test = _sub(
            parts["tests"],
            DEF_IND,
            "variable_test",
            id=ids.of_kind("tst", which),
            version="1",
            comment=comment,
            check_existence="at_least_one_exists",
            check="at least one",
        )
        _sub(test, DEF_IND, "object", object_ref=reference)
        _sub(test, DEF_IND, "state", state_ref=ids.of_kind("ste", which))
        state = _sub(
            parts["states"], DEF_IND, "variable_state", id=ids.of_kind("ste", which), version="1", comment=comment
        )
        _sub(state, DEF_IND, "value", pattern, operation="pattern match")
    if finding.memory is Memory.UNKNOWN:
        # no value at all: the test comes out neither true nor false, as it must
        _sub(
            parts["variables"],
            DEF,
            "external_variable",
            id=ids.of_kind("var", MEMORY),
            version="1",
            datatype="string",
            comment=f"what runs in memory: {about}: unknown",
        )
        return
    variable = _sub(
        parts["variables"],
        DEF,
        "constant_variable",
        id=ids.of_kind("var", MEMORY),
        version="1",
        datatype="string",
        comment=f"what runs in memory: {about}, {_host(truth)}, {_stamp(truth.at)}",
    )
    _sub(variable, DEF, "value", finding.memory.value)


def _disk_test(parts: dict[str, ET.Element], finding: Finding) -> None:
    ids = _Ids.of(finding)
    comment = f"{finding.package} {', '.join(finding.versions)} is installed"
    test = _sub(
        parts["tests"],
        DEF_LIN,
        "dpkginfo_test",
        id=ids.of_kind("tst", DISK),
        version="1",
        comment=comment,
        check_existence="at_least_one_exists",
        check="at least one",
        state_operator="OR",
    )
    reference = ids.of_kind("obj", DISK)
    _sub(test, DEF_LIN, "object", object_ref=reference)
    found = _sub(parts["objects"], DEF_LIN, "dpkginfo_object", id=reference, version="1", comment=finding.package)
    _sub(found, DEF_LIN, "name", finding.package)
    for number, version in enumerate(finding.versions, start=1):
        name = ids.of_kind("ste", DISK) + str(number)
        _sub(test, DEF_LIN, "state", state_ref=name)
        state = _sub(parts["states"], DEF_LIN, "dpkginfo_state", id=name, version="1", comment=f"version {version}")
        _sub(state, DEF_LIN, "evr", _evr(version), datatype="debian_evr_string", operation="equals")


# -- results


def _results_of(outcomes: ET.Element, tests: ET.Element, finding: Finding) -> None:
    ids = _Ids.of(finding)
    unknown = finding.memory is Memory.UNKNOWN
    values = [(MEMORY, "unknown" if unknown else _word(not finding.memory.safe))]
    if _on_dpkg(finding):
        values.insert(0, (DISK, _word(finding.vulnerable_on_disk)))
    values.append((PATCHED, "unknown" if unknown else _word(finding.memory is Memory.HOTPATCHED)))
    for which, value in values:
        definition = _sub(
            outcomes, RES, "definition", definition_id=ids.of_kind("def", which), version="1", result=value
        )
        criteria = _sub(definition, RES, "criteria", operator="AND", result=value)
        test_id = ids.of_kind("tst", which)
        _sub(criteria, RES, "criterion", test_ref=test_id, version="1", variable_instance="1", result=value)
        test = _sub(
            tests,
            RES,
            "test",
            test_id=test_id,
            version="1",
            check_existence="at_least_one_exists",
            check="at least one",
            **({"state_operator": "OR"} if which == DISK else {}),
            variable_instance="1",
            result=value,
        )
        if not (unknown and which != DISK):
            _sub(test, RES, "tested_item", item_id=_item(ids, DISK if which == DISK else MEMORY), result=value)
            if which != DISK:
                name = ids.of_kind("var", MEMORY)
                _sub(test, RES, "tested_variable", finding.memory.value, variable_id=name)


def _characteristics(parent: ET.Element, truth: DeviceTruth, now: datetime) -> None:
    root = _sub(parent, SYS, "oval_system_characteristics")
    _generator(root, SYS, now)
    info = _sub(root, SYS, "system_info")
    _sub(info, SYS, "os_name", "Linux")
    _sub(info, SYS, "os_version", "unknown")
    _sub(info, SYS, "architecture", "unknown")
    _sub(info, SYS, "primary_host_name", _host(truth))
    _sub(info, SYS, "interfaces")
    collected = ET.Element(f"{{{SYS}}}collected_objects")
    data = ET.Element(f"{{{SYS}}}system_data")
    for finding in truth.findings:
        ids = _Ids.of(finding)
        unknown = finding.memory is Memory.UNKNOWN
        flag = "error" if unknown else "complete"
        found = _sub(
            collected, SYS, "object", id=ids.of_kind("obj", MEMORY), version="1", variable_instance="1", flag=flag
        )
        if not unknown:
            _sub(found, SYS, "variable_value", finding.memory.value, variable_id=ids.of_kind("var", MEMORY))
            _sub(found, SYS, "reference", item_ref=_item(ids, MEMORY))
            item = _sub(data, SYS_IND, "variable_item", id=_item(ids, MEMORY))
            _sub(item, SYS_IND, "var_ref", ids.of_kind("var", MEMORY))
            _sub(item, SYS_IND, "value", finding.memory.value)
        if _on_dpkg(finding):
            found = _sub(
                collected,
                SYS,
                "object",
                id=ids.of_kind("obj", DISK),
                version="1",
                variable_instance="1",
                flag="complete",
            )
            _sub(found, SYS, "reference", item_ref=_item(ids, DISK))
            item = _sub(data, SYS_LIN, "dpkginfo_item", id=_item(ids, DISK))
            _sub(item, SYS_LIN, "name", finding.package)
            _sub(item, SYS_LIN, "evr", _evr(finding.versions[0]), datatype="debian_evr_string")
    root.extend(part for part in (collected, data) if len(part))


def _item(ids: _Ids, which: int) -> str:
    return f"{ids.number}{which}"


# -- the small parts


def _on_dpkg(finding: Finding) -> bool:
    """Whether there is a vulnerable version for dpkg to have. The name is one that Debian's policy (5.6.7) allows."""
    named = re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", finding.package) is not None
    return named and finding.vulnerable_on_disk and bool(finding.versions)


def _evr(version: str) -> str:
    """Epoch, version and revision, all three, as ``debian_evr_string`` and the dpkginfo probe have them."""
    epoch, colon, rest = version.rpartition(":")
    upstream, dash, revision = rest.rpartition("-")
    return f"{epoch if colon else '0'}:{upstream if dash else rest}-{revision if dash else '0'}"


def _generator(root: ET.Element, space: str, now: datetime) -> None:
    generator = _sub(root, space, "generator")
    _sub(generator, COM, "product_name", "Midflight")
    _sub(generator, COM, "product_version", __version__)
    _sub(generator, COM, "schema_version", SCHEMA)
    _sub(generator, COM, "timestamp", _stamp(now))


def _sub(parent: ET.Element, space: str, name: str, text: str | None = None, /, **attributes: str) -> ET.Element:
    clean = {key: _XML.sub("\ufffd", value) for key, value in attributes.items()}
    element = ET.SubElement(parent, f"{{{space}}}{name}", clean)
    if text is not None:
        element.text = _XML.sub("\ufffd", text)
    return element


def _word(value: bool) -> str:
    return "true" if value else "false"


def _host(truth: DeviceTruth) -> str:
    return truth.hostname or truth.device


def _stamp(at: datetime | None) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") if at else "an unknown time"


def _url(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "", text)


def _document(root: ET.Element) -> bytes:
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="UTF-8", xml_declaration=True)) + b"\n"
