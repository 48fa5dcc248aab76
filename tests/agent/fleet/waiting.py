"""Waiting for what can be seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.commands import PATIENCE


def until(what: Callable[[], Any], wanted: str | Callable[[], str]) -> Any:
    """Wait for something to be true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        text = wanted if isinstance(wanted, str) else wanted()
        assert time.monotonic() < deadline, f"not {text}"
        time.sleep(0.02)
    return found
