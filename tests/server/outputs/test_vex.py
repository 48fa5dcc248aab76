"""CSAF VEX, judged by the JSON schema and the mandatory tests of the standard as csaf-lib has them."""

from __future__ import annotations

from typing import Any

import pytest
from csaf_lib.verification import Verifier

from midflight.server.domain.model import Device, Image
from midflight.server.outputs.truth import of_device
from midflight.server.outputs.vex import document
from tests.server.outputs.facts import BASELINE, HOTPATCH, NEW, NOW, device

PUBLISHER = "https://midflight.example.com"
CONTENTS = [HOTPATCH, BASELINE]


def vex(*devices: Device) -> dict[str, Any]:
    made = document([of_device(subject, CONTENTS) for subject in devices], "fleet", PUBLISHER, NOW)
    report = Verifier(made).run_all()
    assert report.passed, [(result.test_id, result.message) for result in report.failures]
    return made


FLEET = (
    device("a"),
    device("b", patched=3),
    device("c", build_id=NEW, version="1:1.2.13.dfsg-2"),
    device("d", patched=1),
)


@pytest.mark.parametrize("devices", [FLEET, FLEET[:1], FLEET[1:2], FLEET[2:3], FLEET[3:]])
def test_documents_are_valid(devices: tuple[Device, ...]) -> None:
    vex(*devices)


def test_the_hotpatched_is_fixed_in_memory_and_affected_on_disk() -> None:
    (found,) = vex(FLEET[1])["vulnerabilities"]
    assert found["product_status"] == {
        "fixed": ["zlib1g:1:1.2.13.dfsg-0+zlib-1.2.13-hp1"],
        "known_affected": ["zlib1g:1:1.2.13.dfsg-0"],
    }
    assert "no vulnerable code runs" in found["remediations"][0]["details"]


def test_partly_patched_is_affected_and_nothing_of_it_fixed() -> None:
    (found,) = vex(FLEET[3])["vulnerabilities"]
    assert found["product_status"] == {"known_affected": ["zlib1g:1:1.2.13.dfsg-0"]}


def test_tampered_memory_is_never_called_fixed() -> None:
    (found,) = vex(device(patched=3, integrity_violated=True))["vulnerabilities"]
    assert "fixed" not in found["product_status"]


def test_without_findings_it_says_so_and_claims_nothing() -> None:
    made = document([of_device(Device(id="dev-new"), CONTENTS)], "dev-new", PUBLISHER, NOW)
    assert made["document"]["category"] == "csaf_base"
    assert "vulnerabilities" not in made


def test_names_with_control_characters_come_out_clean() -> None:
    image = Image("a" * 40, "/x", "zlib1g", "1\x1b[2J", 3)
    made = vex(Device(id="dev-x", images=(image,), last_seen=NOW))
    assert "\x1b" not in str(made)
