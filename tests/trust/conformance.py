#!/usr/bin/env python3
"""Our client under theupdateframework's conformance suite: the command line that tuf-conformance calls.

How to run the suite is in docs/user-guide.md ("Conformance"). It is no part of this repository.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

from midflight.errors import MidflightError
from midflight.trust.client import METADATA, ROOT, ContentClient
from midflight.trust.fetching import Source


def main() -> int:
    """Carry out one command of the protocol; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    args = parser.parse_args()

    # The suite looks into its metadata folder, which is our client's; the rest of the client's folder is beside it.
    folder = args.metadata_dir.with_name(args.metadata_dir.name + ".client")
    if args.command == "init":
        folder.mkdir()
        (folder / METADATA).symlink_to(args.metadata_dir.absolute())
        shutil.copyfile(args.root, folder / ROOT)
        shutil.copyfile(args.root, args.metadata_dir / ROOT)
        return 0
    metadata = args.metadata_url.rstrip("/") + "/"
    targets = (args.target_base_url or args.metadata_url).rstrip("/") + "/"
    try:
        client = ContentClient(folder, Source(metadata, targets))
        client.refresh()
        for name in args.target_name if args.command == "download" else ():
            client.download_target(client.find(name), args.target_dir / quote(name, safe=""))
    except MidflightError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
