"""What the commands that work on distribution packages share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from midflight.cli.output import Output
from midflight.errors import InputError

if TYPE_CHECKING:
    from midflight.forge.packages.forging import PackageRequest
    from midflight.forge.packages.model import PackageSource, Shipped
    from midflight.forge.wholebuild import Running


def package_source(args: argparse.Namespace, work: Path, out: Output) -> PackageSource:
    """The package format of this machine, with its cache below the work folder."""
    from midflight.forge.packages.debian import Debian

    return Debian(work / "packages", out.progress, build_root=args.build_root and args.build_root.absolute())


def package_request(args: argparse.Namespace) -> PackageRequest:
    """What --debian and the options that go with it ask for.

    Raises:
        InputError: --debian is no name with an optional version.
    """
    from midflight.forge.packages.forging import PackageRequest

    name, equals, version = args.debian.partition("=")
    if not name or (equals and not version):
        raise InputError(f"--debian {args.debian!r} is not PKG or PKG=VERSION, as in expat=2.5.0-1+deb12u1")
    return PackageRequest(name, version or None, args.fix, args.running, tuple(args.image), _mapped)


def _mapped(files: Sequence[Shipped]) -> Sequence[Running]:
    """Older builds of shipped files that processes still have mapped, though the files are gone."""
    return ()
