"""midflight keygen: make a key pair for signing hotpatches."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output, Styled
from midflight.errors import InputError
from midflight.trust.keys import PASSPHRASE_VARIABLE, create_key_pair, find_passphrase

HELP = f"""\
Makes an Ed25519 key pair: NAME.key signs hotpatches (keep it secret, away from the machines that are patched),
NAME.pub is what those machines trust. Existing files are never overwritten.

The private key is encrypted when there is a passphrase: from the environment variable {PASSPHRASE_VARIABLE},
or asked for with --passphrase."""

EXAMPLES = """\
midflight keygen release               release.key and release.pub
midflight keygen --passphrase release  the same, the private key encrypted"""

EXIT_STATUS = """\
0  both files are written
2  bad usage, or a file exists or cannot be written; nothing is written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument(
        "name", metavar="NAME", help="name of the two files, without .key or .pub; may have a directory"
    )
    parser.add_argument("--passphrase", action="store_true", help="ask for a passphrase, and encrypt the private key")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    base = Path(args.name)
    if not base.name:
        raise InputError(f"{args.name!r} is not a name for a key; give one like release")
    passphrase = find_passphrase("Passphrase for the new key: ", ask=args.passphrase, twice=True)
    if args.passphrase and passphrase is None:
        raise InputError(f"there is no terminal to ask for a passphrase; set {PASSPHRASE_VARIABLE} instead")
    private, public = base.with_name(f"{base.name}.key"), base.with_name(f"{base.name}.pub")
    key = create_key_pair(private, public, passphrase)
    out.line("private key  ", str(private), Styled("  encrypted" if passphrase else "  not encrypted", "dim"))
    out.line("public key   ", str(public))
    out.line("key id       ", Styled(key.key_id, "bold"))
    out.result(
        {
            "key_id": key.key_id,
            "private_key": str(private),
            "public_key": str(public),
            "encrypted": passphrase is not None,
        }
    )
    return 0
