"""Commands that are families: each subcommand is one file, with HELP, add_arguments and run."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from types import ModuleType

from midflight.cli.helptext import filled


def subcommand(package: str, name: str) -> ModuleType:
    """The module of a subcommand."""
    return importlib.import_module(f"midflight.cli.{package}.{name.replace('-', '_')}")


def add_subcommands(parser: argparse.ArgumentParser, package: str, subcommands: Mapping[str, str]) -> None:
    """Declare the subcommands of a command; what is chosen is in ``args.module``."""
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True, title="subcommands")
    for name, text in subcommands.items():
        module = subcommand(package, name)
        sub = subparsers.add_parser(
            name,
            help=text,
            description=filled(module.HELP.strip()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")
        sub.set_defaults(module=module)
