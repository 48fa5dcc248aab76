"""midflight server user: accounts of people, from the server's own machine."""

from __future__ import annotations

import argparse
import getpass
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from midflight.cli.output import Output, Styled
from midflight.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from midflight.server.access.tables import Account

HELP = """\
Makes, lists and changes the accounts of people. Needs no login: who can read the server's folder administers it. What
is done here stands in the audit log like everything else.

A password is asked for on a terminal, read from the first line of standard input otherwise, or made up and shown once
with --generate."""

PASSWORD_LENGTH = 24
_ROLES = ("reader", "operator", "approver", "admin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("verb", choices=("add", "list", "password", "roles", "disable", "enable"), help="what to do")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")
    parser.add_argument("name", metavar="NAME", nargs="?", help="whose account (all but list)")
    parser.add_argument(
        "--role", action="append", default=[], choices=_ROLES, help="give this role (add, roles); repeat for more"
    )
    parser.add_argument("--full-name", metavar="TEXT", default="", help="the person's name (add)")
    parser.add_argument("--generate", action="store_true", help="make up a password and show it (add, password)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.cli.fleet.local import administering

    if args.verb == "list":
        with administering(args.folder) as (session, _):
            return _list(session, out)
    if not args.name:
        raise InputError(f"user {args.verb}: give the NAME of the account")
    if args.verb in ("add", "roles") and not args.role:
        raise InputError(f"user {args.verb}: give at least one --role; there are {', '.join(_ROLES)}")
    password = _password(args) if args.verb in ("add", "password") else None
    detail = {"roles": args.role} if args.role else {}
    with administering(args.folder, f"user {args.verb}", args.name, detail) as (session, now):
        account = _change(session, args, password, now)
        document = {"id": account.id, "name": account.name, "roles": account.roles}
    out.line(f"{account.name}: {', '.join(account.roles)}")
    if args.generate and password:
        out.line("password  ", Styled(password, "bold"), "  shown once")
        document["password"] = password
    out.result(document)
    return 0


def _change(session: Session, args: argparse.Namespace, password: str | None, now: datetime) -> Account:
    from midflight.server.access import accounts
    from midflight.server.api.deps import drop_bootstrap_token

    if args.verb == "add":
        account = accounts.create(session, args.name, args.role, now, password=password, full_name=args.full_name)
        if "admin" in args.role:
            drop_bootstrap_token(session)
        return account
    found = accounts.by_name(session, args.name)
    if found is None:
        raise InputError(f"there is no account {args.name!r}; midflight server user list shows them")
    if args.verb == "password":
        assert password is not None
        accounts.set_password(session, found, password, now)
    elif args.verb == "roles":
        accounts.set_roles(session, found, args.role)
    elif args.verb == "disable":
        accounts.disable(session, found, now)
    else:
        accounts.enable(found)
    return found


def _list(session: Session, out: Output) -> int:
    from sqlalchemy import select

    from midflight.server.access.tables import Account

    rows = list(session.scalars(select(Account).order_by(Account.name)))
    cells = [
        (
            row.name,
            ", ".join(row.roles),
            row.issuer or "local",
            f"{row.last_login:%Y-%m-%d %H:%M}" if row.last_login else "never",
            Styled("disabled", "warn") if row.disabled else "",
        )
        for row in rows
    ]
    out.table(("NAME", "ROLES", "SIGNS IN AT", "LAST LOGIN", ""), cells)
    out.result(
        {
            "accounts": [
                {"id": row.id, "name": row.name, "roles": row.roles, "disabled": row.disabled is not None}
                for row in rows
            ]
        }
    )
    return 0


def _password(args: argparse.Namespace) -> str:
    if args.generate:
        import secrets

        return secrets.token_urlsafe(PASSWORD_LENGTH)[:PASSWORD_LENGTH]
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != first:
        raise InputError("the two passwords differ; try again")
    return first
