"""midflight server enroll-token: make a token with which devices enroll."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output, Styled
from midflight.errors import InputError

HELP = """\
Makes an enrollment token, on the server's own machine (elsewhere: POST /api/v1/enrollment-tokens). It is shown once and
works once, or as often as --uses says. Prints what a device needs beside it (the server's URL and TLS pin, the
fingerprint of the repository's root), and the command to run there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the server's folder")
    parser.add_argument("--uses", metavar="N", type=int, default=1, help="devices that may use it (default: 1)")
    parser.add_argument("--hours", metavar="H", type=float, default=24, help="how long it is good for (default: 24)")
    parser.add_argument("--label", metavar="TEXT", default="", help="for people")
    parser.add_argument(
        "--tag", metavar="KEY=VALUE", action="append", default=[], help="tag of the devices; may be repeated"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from datetime import UTC, datetime, timedelta
    from hashlib import sha256

    from midflight.server import enrollment
    from midflight.server.keys import tls_pin
    from midflight.server.repository import newest_root
    from midflight.server.settings import Settings
    from midflight.server.store import tables  # noqa: F401 - all tables, before the first session
    from midflight.server.store.database import Database
    from midflight.server.store.migrate import require_newest

    tags = dict(tag.partition("=")[::2] for tag in args.tag)
    if not all(key and value for key, value in tags.items()):
        raise InputError("--tag takes KEY=VALUE, both with at least one character")
    if args.uses < 1 or not 0 < args.hours <= 24 * 90:
        raise InputError("--uses is at least 1, and --hours more than 0 and at most 2160 (90 days)")
    settings = Settings.load(args.folder)
    database = Database(settings.database_url)
    try:
        require_newest(database)
        with database.write() as session:
            row, token = enrollment.invite(
                session,
                "command line",
                datetime.now(UTC),
                lifetime=timedelta(hours=args.hours),
                uses=args.uses,
                label=args.label,
                tags=tags,
            )
    finally:
        database.close()
    pin, root = str(tls_pin(settings) or ""), sha256(newest_root(settings).encode()).hexdigest()
    out.line("token        ", Styled(token, "bold"), "  shown once")
    out.line("good until   ", f"{row.expires:%Y-%m-%d %H:%M} UTC")
    out.line("server       ", settings.public_url)
    out.line("TLS pin      ", pin or "the proxy's")
    out.line("root sha256  ", root)
    words = ["midflight agent enroll", "--server", settings.public_url, "--token", token, "--root-sha256", root]
    command = " ".join(words + (["--pin", pin] if pin else []))
    out.line("")
    out.line("On the device, as root, then midflight agent install:")
    out.line(command)
    out.result(
        {"token": token, "id": row.id, "expires": row.expires.isoformat(), "server": settings.public_url}
        | {"pin": pin, "root": root, "command": command}
    )
    return 0
