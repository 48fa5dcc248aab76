"""OVAL, judged by OpenSCAP: valid against the schemas, and evaluated on this machine's own dpkg database."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from midflight.server.domain.model import Device, Image
from midflight.server.outputs.oval import RES, definitions, results
from midflight.server.outputs.truth import of_device
from tests.server.outputs.facts import BASELINE, CVE, HOTPATCH, NEW, NOW, OLD, device


def oscap(*words: str) -> str:
    done = subprocess.run(["oscap", "oval", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(package: str) -> str:
    words = ["dpkg-query", "-W", "-f", "${Version}", package]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def outcomes(results_file: Path) -> dict[str, str]:
    """Results by the kind of definition (the last digit of its id)."""
    found = ET.parse(results_file).iterfind(
        f".//{{{RES}}}results/{{{RES}}}system/{{{RES}}}definitions/{{{RES}}}definition"
    )
    return {element.attrib["definition_id"][-1]: element.attrib["result"] for element in found}


CASES = {
    "vulnerable": (device(), {"1": "false", "2": "true", "3": "false"}),
    "hotpatched": (device(patched=3), {"1": "false", "2": "false", "3": "true"}),
    "restarted": (device(build_id=NEW), {"2": "false", "3": "false"}),
}


@pytest.mark.parametrize("name", CASES)
def test_definitions_are_valid_and_a_scanner_gets_the_memory_s_truth(name: str, tmp_path: Path) -> None:
    """The zlib of the example is of no version that this machine has, so its disk definition is false here."""
    subject, expected = CASES[name]
    source, found = tmp_path / "definitions.xml", tmp_path / "results.xml"
    source.write_bytes(definitions(of_device(subject, [HOTPATCH, BASELINE]), NOW))
    oscap("eval", "--results", str(found), str(source))
    assert outcomes(found) == expected


@pytest.mark.parametrize("package", ["apt"])
def test_on_disk_and_in_memory_may_differ_and_both_are_told(package: str, tmp_path: Path) -> None:
    """With this machine's own version of a package (of one without a Debian revision, the harder kind)."""
    image = Image(OLD, "/usr/lib/x", package, installed(package), 3)
    subject = replace(device(patched=3), images=(image,))
    content = replace(HOTPATCH, package=package)
    source, found = tmp_path / "definitions.xml", tmp_path / "results.xml"
    source.write_bytes(definitions(of_device(subject, [content]), NOW))
    oscap("eval", "--results", str(found), str(source))
    assert outcomes(found) == {"1": "true", "2": "false", "3": "true"}


def test_tampered_memory_is_neither_vulnerable_nor_hotpatched(tmp_path: Path) -> None:
    subject = device(patched=3, integrity_violated=True)
    source, found = tmp_path / "definitions.xml", tmp_path / "results.xml"
    source.write_bytes(definitions(of_device(subject, [HOTPATCH]), NOW))
    oscap("validate", "--definitions", "--schematron", str(source))
    oscap("eval", "--results", str(found), str(source))
    assert outcomes(found)["2"] not in ("true", "false")
    assert outcomes(found)["3"] not in ("true", "false")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (device(), {"1": "true", "2": "true", "3": "false"}),
        (device(patched=3), {"1": "true", "2": "false", "3": "true"}),
        (device(build_id=NEW), {"2": "false", "3": "false"}),
        (device(patched=3, integrity_violated=True), {"1": "true", "2": "unknown", "3": "unknown"}),
    ],
)
def test_results_of_the_server_are_valid(subject: Device, expected: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "results.xml"
    path.write_bytes(results(of_device(subject, [HOTPATCH, BASELINE]), NOW))
    oscap("validate", "--results", "--schematron", str(path))
    assert outcomes(path) == expected


def test_a_device_without_findings_gives_a_valid_document(tmp_path: Path) -> None:
    path = tmp_path / "definitions.xml"
    path.write_bytes(definitions(of_device(Device(id="dev-new"), [HOTPATCH]), NOW))
    oscap("validate", "--definitions", str(path))


def test_hostile_names_stay_inside_their_place(tmp_path: Path) -> None:
    """What a device sends in names is text of the document, never markup, and never breaks it."""
    bad = '"><definition/>\x00\x1b[2J\ud800&'
    image = Image(OLD, bad, bad, bad, 3)
    subject = replace(device(), images=(image,), hostname=bad)
    content = replace(HOTPATCH, package=bad, name=bad)
    path = tmp_path / "definitions.xml"
    path.write_bytes(definitions(of_device(subject, [content]), NOW))
    oscap("validate", "--definitions", str(path))
    assert CVE.id in path.read_text()
