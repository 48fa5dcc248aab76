"""What the subcommands of ``midflight repo`` have in common."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli.output import Output, Styled

if TYPE_CHECKING:
    from midflight.trust.repository import Repository


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The repository, which is always the first word."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the repository's folder")


def opened(args: argparse.Namespace) -> Repository:
    """The repository that the command is for."""
    from midflight.trust.repository import Repository

    return Repository(args.folder)


def now() -> datetime:
    """The time, to the second, as metadata has it."""
    return datetime.now(UTC).replace(microsecond=0)


def show_staged(repository: Repository, out: Output) -> dict[str, Any]:
    """Tell what is staged and how many must sign it; returns the same for --json."""
    from midflight.trust.repositoryfolder import OFFLINE

    document: dict[str, Any] = {}
    for role in OFFLINE:
        state = repository.signatures(role)
        if state is None:
            continue
        document[role] = {"signed": list(state.signed), "open": list(state.open), "missing": state.missing}
        rest = Styled("enough have signed", "good")
        if state.missing:
            rest = Styled(f"{state.missing} more must sign", "warn")
        out.line(f"staged  {role:<8} signed by {len(state.signed)}, ", rest)
    if document and not any(entry["missing"] for entry in document.values()):
        out.line(f"next    midflight repo publish {repository.folder}")
    elif document:
        out.line(f"next    midflight repo sign {repository.folder} --key KEY")
    return document
