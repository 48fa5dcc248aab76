"""How findings are shown to people, by all commands that have some."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from midflight.cli.output import Output, Style, Styled, clean


def show_finding(item: Mapping[str, Any], style: Style, out: Output) -> None:
    """One finding, as the forge's report has it: code, place, reason and remedy (or why it was overridden)."""
    place = f"{item['file']}: " if item["file"] else ""
    out.line(Styled(item["code"] or "-", style), "  ", Styled(place, "dim"), item["symbol"])
    texts = [item["reason"], item["remedy"]] if item["kind"] != "note" else [item["reason"]]
    if item["overridden"]:
        texts = [item["reason"], f"overridden: {item['overridden']}"]
    for text in texts:
        wrapped(text[:1].upper() + text[1:], "       ", out)


def wrapped(text: str, indent: str, out: Output) -> None:
    """A text over several lines, which all begin at the same column."""
    space = " " * len(indent)
    for number, line in enumerate(textwrap.wrap(clean(text), out.width - len(indent), break_on_hyphens=False)):
        out.line(f"{space if number else indent}{line}")
