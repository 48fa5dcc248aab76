"""midflight repo sign: sign what is staged."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Signs everything staged in which this key has a say. KEY is a private key file, a key on a token (hsm:2?label=TOKEN,
with the PKCS#11 module named by PYKCS11LIB and the PIN by MIDFLIGHT_HSM_PIN or asked for), or one of a key service
(awskms:, gcpkms:, azurekms:, hv:), with --public. Look at midflight repo status first: it shows what you vouch for.

Holders on other machines sign a copy of the folder. Bring their copies, or the files of staged/ in them, together
with --from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="KEY", help="private key file, or URI of a key on a token or in a service")
    what.add_argument("--from", metavar="COPY", type=Path, dest="copy", help="take signatures from a copy")
    parser.add_argument("--public", metavar="FILE", help="public key (PEM) of a key in a service")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.trust.signers import open_signer, public_key_of
    from midflight.trust.signing import merge, sign

    repository = shared.opened(args)
    if args.copy is not None:
        taken = merge(repository, args.copy)
        out.line(f"{taken} new signatures")
        out.result({"new": taken, "staged": shared.show_staged(repository, out)})
        return 0
    signer = open_signer(args.key, public_key_of(args.public) if args.public else None)
    roles = sign(repository, signer, args.key)
    if roles:
        out.line(f"signed  {' and '.join(roles)} with key {signer.public_key.keyid[:16]}…")
    else:
        out.line(f"key {signer.public_key.keyid[:16]}… has signed already")
    out.result(
        {"key_id": signer.public_key.keyid, "signed": list(roles), "staged": shared.show_staged(repository, out)}
    )
    return 0
