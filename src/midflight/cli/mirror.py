"""midflight mirror: copy a repository, verified, to where there is no network."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output

HELP = """\
Copies a repository to a folder, which can be carried to a network of its own: devices there take the folder as their
source, or a web server serves it. Everything is verified as a device would do it, and a later run fetches only what is
new. Nothing but plain files is written.

The first time, the root of trust is needed: the file 1.root.json of the repository, from somebody you trust."""

EXAMPLES = """\
midflight mirror https://patches.example /media/disk/repo --root 1.root.json
midflight mirror https://patches.example /media/disk/repo
midflight mirror /media/disk/repo /srv/repo --root 1.root.json"""

EXIT_STATUS = """\
0  the mirror has what the source has
1  the source is not believed or cannot be reached; the mirror stays as it was
2  bad usage, or the folder cannot be written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("source", metavar="SOURCE", help="base URL of a repository, or a folder with one")
    parser.add_argument("destination", metavar="DEST", type=Path, help="the mirror; made when missing")
    parser.add_argument("--root", metavar="FILE", type=Path, help="root metadata to trust; needed the first time")
    parser.add_argument("--proxy", metavar="URL", help="HTTP proxy, like http://proxy.example:3128")
    parser.add_argument(
        "--pin", metavar="PIN", action="append", default=[], help="key that the source may have; may be repeated"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.errors import InputError
    from midflight.trust.mirror import mirror
    from midflight.trust.pinning import parse_pin

    try:
        root = args.root.read_bytes() if args.root else None
    except OSError as error:
        raise InputError(f"cannot read {args.root}: {error.strerror}; check the path") from None
    pins = [parse_pin(text) for text in args.pin]
    done = mirror(args.source, args.destination, root, args.proxy, pins=pins, progress=out.progress)
    out.progress_done()
    out.line(f"{done.files} files, {done.size:,} bytes; {done.fetched} fetched now")
    out.line(f"version {done.catalog.version} of the targets, valid until {done.catalog.expires:%Y-%m-%d %H:%M} UTC")
    out.result(
        {
            "files": done.files,
            "fetched": done.fetched,
            "bytes": done.size,
            "version": done.catalog.version,
            "expires": done.catalog.expires.isoformat(),
        }
    )
    return 0
