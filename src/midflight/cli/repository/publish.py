"""midflight repo publish: make what is staged visible, in one step."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Verifies what is staged the way a device does, signs a new snapshot and timestamp with the online key, and makes all of
it visible in one step: whoever reads, sees the repository before or after, also when this is killed. With nothing
staged, it only makes snapshot and timestamp anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.trust.publishing import publish

    repository = shared.opened(args)
    publish(repository, shared.now())
    catalog = repository.catalog(staged=False)
    out.line(f"published  version {catalog.version}, {len(catalog.contents)} pieces of content, in {repository.public}")
    out.result({"version": catalog.version, "contents": sorted(catalog.contents), "public": str(repository.public)})
    return 0
