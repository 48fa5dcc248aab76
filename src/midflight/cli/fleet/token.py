"""midflight server token: API tokens for programs, from the server's own machine."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

from midflight.cli.output import Output, Styled
from midflight.errors import InputError

HELP = """\
Makes, lists and revokes API tokens. A token acts in the name of an account, with the scopes it is given, as far as the
account still has them. The token is shown once; only its hash is kept. Approving and administering accounts is for
people at a login: no token can."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("verb", choices=("add", "list", "revoke"), help="what to do")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")
    parser.add_argument("user", metavar="USER", help="whose token")
    parser.add_argument("name", metavar="NAME", nargs="?", help="what it is for (add), or its id (revoke)")
    parser.add_argument(
        "--scope", metavar="SCOPE", action="append", default=[], help="what it may do (add), such as devices:read"
    )
    parser.add_argument("--days", metavar="N", type=int, default=90, help="how long it lives (default: %(default)s)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.cli.fleet.local import administering
    from midflight.server.access import accounts, apitokens

    if args.verb != "list" and not args.name:
        raise InputError(f"token {args.verb}: give the {'NAME' if args.verb == 'add' else 'id'} of the token")
    action = "" if args.verb == "list" else f"token {args.verb}"
    detail = {"name": args.name, "scopes": args.scope}
    with administering(args.folder, action, args.user, detail) as (session, now):
        account = accounts.by_name(session, args.user)
        if account is None:
            raise InputError(f"there is no account {args.user!r}; midflight server user list shows them")
        if args.verb == "add":
            made = apitokens.create(session, account, args.name, args.scope, timedelta(days=args.days), now)
            out.line("token    ", Styled(made.secret, "bold"), "  shown once")
            out.line("id       ", made.row.id)
            out.line("expires  ", f"{made.row.expires:%Y-%m-%d}")
            out.result({"id": made.row.id, "token": made.secret, "expires": made.row.expires.isoformat()})
            return 0
        tokens = apitokens.of_account(session, account)
        if args.verb == "revoke":
            row = next((token for token in tokens if token.id == args.name), None)
            if row is None:
                raise InputError(f"{account.name} has no token {args.name!r}; midflight server token list shows them")
            row.revoked = now
            out.line(f"{row.id} is revoked")
            out.result({"id": row.id})
            return 0
        rows = [(t.id, t.name, ", ".join(t.scopes), f"{t.expires:%Y-%m-%d}") for t in tokens]
        out.table(("ID", "NAME", "SCOPES", "EXPIRES"), rows)
        out.result({"tokens": [{"id": t.id, "name": t.name, "scopes": t.scopes} for t in tokens]})
    return 0
