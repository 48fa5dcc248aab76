"""midflight server audit-verify: prove that the audit log is the one that was written."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output, Styled
from midflight.errors import InputError

HELP = """\
Recomputes the hash chain of the audit log and reports the first entry that was changed, removed or put in between.

A chain proves nothing about its own end: whoever owns the database can cut it off, or write the whole log anew. So
export its head now and then with --export, keep it on another machine, and give it with --head later: the log must
contain it."""

EXIT_STATUS = """\
0  the log is whole
1  it is not, or its database does not answer
2  bad usage, or a head that this server did not sign"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")
    parser.add_argument(
        "--head", metavar="FILE", type=Path, action="append", default=[], help="a head exported before; may be repeated"
    )
    parser.add_argument("--export", metavar="FILE", type=Path, help="write the signed head there")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.cli.fleet.local import administering
    from midflight.server.access import audit, audithead
    from midflight.server.outputs import keys
    from midflight.server.outputs.jwtkeys import TokenRefused
    from midflight.server.settings import Settings

    settings = Settings.load(args.folder)
    issuer = settings.public_url.rstrip("/")
    signer = keys.load(settings).jwt
    with administering(args.folder) as (session, now):
        known = []
        for path in args.head:
            try:
                known.append(audithead.read(signer, path.read_text(errors="replace"), issuer, now))
            except TokenRefused as error:
                raise InputError(f"{path}: {error}") from None
        head = audit.check(session, known)
        if args.export:
            args.export.write_text(audithead.signed(signer, head, issuer, now) + "\n")
    out.line("entries  ", str(head.sequence))
    out.line("head     ", head.hash)
    out.line("chain    ", Styled("whole", "good"), f", {len(known)} exported heads are in it" if known else "")
    out.result({"entries": head.sequence, "head": head.hash, "heads_checked": len(known), "whole": True})
    return 0
