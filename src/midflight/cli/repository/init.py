"""midflight repo init: make a repository, and say whose keys count."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Makes a repository in a new folder. Its first metadata is staged: it is signed and published like every later change.

KEY is a public key file (Ed25519 from midflight keygen; ECDSA or RSA in PEM for a key service), or a key on a token,
like hsm:2?label=TOKEN. Give at least three holders where you can: with a threshold of two, one key may be lost or be
stolen.

The online key is made in the folder, unless one is given. The server needs it; nobody else does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the new folder")
    parser.add_argument(
        "--root-key",
        metavar="KEY",
        action="append",
        required=True,
        help="a key that decides about keys; give one for each holder",
    )
    parser.add_argument("--root-threshold", metavar="N", type=int, help="how many must sign; default: more than half")
    parser.add_argument(
        "--targets-key", metavar="KEY", action="append", help="a key that decides about content; default: the root keys"
    )
    parser.add_argument("--targets-threshold", metavar="N", type=int, help="default: more than half")
    parser.add_argument("--online-key", metavar="KEY", help="private key file or URI for snapshot and timestamp")
    for role, days in (("root", 365), ("targets", 90), ("snapshot", 7), ("timestamp", 1)):
        parser.add_argument(
            f"--{role}-days", metavar="N", type=int, default=days, help=f"how long {role} lasts; default: %(default)s"
        )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.errors import InputError
    from midflight.trust.keys import create_key_pair
    from midflight.trust.repository import Repository
    from midflight.trust.repositoryfolder import Lifetimes
    from midflight.trust.signers import public_key_of

    root = [public_key_of(key) for key in args.root_key]
    targets = [public_key_of(key) for key in args.targets_key or args.root_key]
    online = args.online_key
    if args.folder.exists() and any(args.folder.iterdir()):
        raise InputError(f"{args.folder} is not empty; give a new folder")
    if online is None:
        online = "online.key"
        args.folder.mkdir(parents=True, exist_ok=True)
        create_key_pair(args.folder / online, args.folder / "online.pub")
    elif ":" not in online:
        online = str(Path(online).absolute())
    days = (args.root_days, args.targets_days, args.snapshot_days, args.timestamp_days)
    made = Repository.create(
        args.folder,
        root,
        args.root_threshold or len(root) // 2 + 1,
        targets,
        args.targets_threshold or len(targets) // 2 + 1,
        online,
        shared.now(),
        Lifetimes(*(timedelta(days=number) for number in days)),
    )
    out.line(f"repository  {args.folder}")
    out.line(f"online key  {online}")
    out.result({"folder": str(args.folder), "online_key": online, "staged": shared.show_staged(made, out)})
    return 0
