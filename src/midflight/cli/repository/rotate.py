"""midflight repo rotate: stage other keys, or another threshold."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from midflight.cli.output import Output
from midflight.cli.repository import shared

if TYPE_CHECKING:
    from midflight.trust.repository import Repository

HELP = """\
Stages another set of keys for a role. The new root is signed by as many of the old root keys as were needed so far, and
by as many of the new ones as will be needed. When keys of targets are removed, targets is staged too, for the keys that
stay to sign it.

With --online-key, the key for snapshot and timestamp is replaced. Do that at once when a server was stolen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)
    parser.add_argument("--role", choices=("root", "targets"), help="whose keys to change")
    parser.add_argument("--add", metavar="KEY", action="append", default=[], help="a public key that is to count")
    parser.add_argument(
        "--remove", metavar="KEY", action="append", default=[], help="a public key, or the first digits of a key id"
    )
    parser.add_argument("--threshold", metavar="N", type=int, help="how many must sign from now on")
    parser.add_argument("--online-key", metavar="KEY", help="private key file or URI that replaces the online key")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.errors import InputError
    from midflight.trust.signers import open_signer

    repository = shared.opened(args)
    if args.online_key is not None:
        if args.role or args.add or args.remove or args.threshold is not None:
            raise InputError("--online-key goes alone; change other roles in another step")
        reference = args.online_key if ":" in args.online_key else str(Path(args.online_key).absolute())
        key = open_signer(reference).public_key
        repository.change_keys("online", [key], repository.root().roles["timestamp"].keyids, None, shared.now())
        repository.use_online_key(reference)
    elif args.role and (args.add or args.remove or args.threshold is not None):
        _change(args, repository)
    else:
        raise InputError("nothing to change; give --role with --add, --remove or --threshold, or --online-key")
    out.result({"staged": shared.show_staged(repository, out)})
    return 0


def _change(args: argparse.Namespace, repository: Repository) -> None:
    from midflight.errors import InputError
    from midflight.trust.signers import public_key_of

    present = repository.root().roles[args.role].keyids
    remove = []
    for reference in args.remove:
        found = [keyid for keyid in present if len(reference) >= 8 and keyid.startswith(reference)]
        if len(found) > 1:
            raise InputError(f"several keys of {args.role} begin with {reference}; give more digits")
        remove.append(found[0] if found else public_key_of(reference).keyid)
    repository.change_keys(args.role, map(public_key_of, args.add), remove, args.threshold, shared.now())
    if args.role == "targets":
        repository.extend(["targets"], shared.now())
