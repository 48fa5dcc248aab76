"""Writes docs/reference/cli.md from the commands themselves: ``make reference``. A test keeps the file current."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from midflight.cli.main import COMMANDS, EXIT_STATUS, command, parser_of

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
HEAD = """\
# Command line reference

This page is made from the commands themselves (`make reference`). Each has the same as `midflight COMMAND --help`.

Every command takes `--json` (one JSON document on standard output, errors included), `--quiet` (no progress), `--help`.
Messages go to standard error, each in one line. `NO_COLOR` turns colour off; `MIDFLIGHT_DEBUG=1` shows full traces.

## Exit status

"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, _block(EXIT_STATUS)]
    for name, summary in COMMANDS.items():
        module = command(name)
        parts.append(f"\n## midflight {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n{module.HELP.strip()}\n\n")
        parts.append("| argument | meaning |\n|---|---|\n")
        for action in parser_of(name, module)._actions:
            if not {"--help", "--json", "--quiet"} & set(action.option_strings):
                parts.append(f"| {_argument(action)} | {_cell(action.help or '')} |\n")
        for title, text in (("Examples", getattr(module, "EXAMPLES", "")), ("Exit status", _own_status(module))):
            if text:
                parts.append(f"\n{title}:\n\n{_block(text)}")
    return "".join(parts)


def _own_status(module: object) -> str:
    text: str = getattr(module, "EXIT_STATUS", EXIT_STATUS)
    return "" if text == EXIT_STATUS else text


def _argument(action: argparse.Action) -> str:
    value = (
        ""
        if action.nargs == 0
        else str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))
    )
    names = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", "\\|")


def _block(text: str) -> str:
    return "```text\n" + text.strip("\n") + "\n```\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(reference())
    print(f"wrote {TARGET}", file=sys.stderr)
