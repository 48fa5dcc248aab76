"""The truth of a device: hotpatched means every process, read from memory, and no tampering."""

from __future__ import annotations

import pytest

from midflight.server.domain.model import Device
from midflight.server.outputs.truth import Memory, of_device
from tests.server.outputs.facts import BASELINE, CVE, HOTPATCH, NEW, device


@pytest.mark.parametrize(
    ("subject", "memory"),
    [
        (device(), Memory.VULNERABLE),
        (device(patched=3), Memory.HOTPATCHED),
        (device(patched=2), Memory.PARTLY),
        (device(build_id=NEW, version="1:1.2.13.dfsg-2"), Memory.FIXED),
        (device(patched=3, integrity_violated=True), Memory.UNKNOWN),
        (device(patched=3, report_faulty=True), Memory.UNKNOWN),
    ],
)
def test_what_runs_is_told_as_read(subject: Device, memory: Memory) -> None:
    (finding,) = of_device(subject, [HOTPATCH, BASELINE]).findings
    assert (finding.memory, finding.cve) == (memory, CVE)
    assert finding.vulnerable_on_disk == (memory is not Memory.FIXED)
    assert finding.memory.safe == (memory in (Memory.HOTPATCHED, Memory.FIXED))


def test_a_device_without_the_image_has_no_finding() -> None:
    assert of_device(device(build_id="c" * 40), [HOTPATCH, BASELINE]).findings == ()
    assert of_device(Device(id="dev-new"), [HOTPATCH, BASELINE]).findings == ()
