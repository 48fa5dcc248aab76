"""Writes docs/reference/cli.md from the commands themselves: ``make reference``. A test keeps the file current."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from midflight.cli.main import COMMANDS, EXIT_STATUS, command, parser_of
from midflight.cli.subcommands import subcommand

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
        if hasattr(module, "SUBCOMMANDS"):
            parts.append("| subcommand | meaning |\n|---|---|\n")
            parts += [f"| `{word}` | {_cell(text)} |\n" for word, text in module.SUBCOMMANDS.items()]
        else:
            parts.append(_arguments(parser_of(name, module)))
        for title, text in (("Examples", getattr(module, "EXAMPLES", "")), ("Exit status", _own_status(module))):
            if text:
                parts.append(f"\n{title}:\n\n{_block(text)}")
        for word in getattr(module, "SUBCOMMANDS", ()):
            part = subcommand(module.PACKAGE, word)
            parser = argparse.ArgumentParser()
            part.add_arguments(parser)
            parts.append(f"\n### midflight {name} {word}\n\n{part.HELP.strip()}\n\n{_arguments(parser)}")
    return "".join(parts)


def _arguments(parser: argparse.ArgumentParser) -> str:
    rows = "".join(
        f"| {_argument(action)} | {_cell((action.help or '') % {'default': action.default})} |\n"
        for action in parser._actions
        if not {"--help", "--json", "--quiet"} & set(action.option_strings)
    )
    return f"| argument | meaning |\n|---|---|\n{rows}" if rows else ""


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
