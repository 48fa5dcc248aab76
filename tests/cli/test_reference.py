"""The published reference is what the commands say of themselves."""

from __future__ import annotations

from scripts.cli_reference import TARGET, reference


def test_the_command_line_reference_is_current() -> None:
    assert TARGET.read_text() == reference(), "the commands changed: run make reference"
