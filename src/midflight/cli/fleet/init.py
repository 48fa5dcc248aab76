"""midflight server init: make a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output, Styled

HELP = """\
Makes a server in a new or empty folder: its settings (server.toml), the database, its keys, and a bootstrap token
with which the first administrator signs in. The token is shown once; only its hash is kept.

Without --repository a TUF repository is made too, and published. Its offline keys, without which nothing can be
published, are put into DIR/offline-keys: good for a first look; otherwise move them to where the server cannot read
them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the server keeps everything; made when missing")
    parser.add_argument("--database", metavar="URL", help="postgresql://USER@HOST/NAME; default: SQLite in DIR")
    parser.add_argument("--repository", metavar="DIR", type=Path, help="an existing repository (midflight repo init)")
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8443", help="default: %(default)s")
    parser.add_argument("--public-url", metavar="URL", help="how devices reach the server; default: from --listen")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.server.install import install

    made = install(
        args.folder,
        database=args.database,
        listen=args.listen,
        public_url=args.public_url,
        repository=args.repository,
    )
    out.line("settings         ", str(made.settings.folder / "server.toml"))
    out.line("database         ", made.database)
    out.line("bootstrap token  ", Styled(made.bootstrap_token, "bold"), "  shown once")
    out.line("TLS pin          ", made.pin)
    out.line("root sha256      ", made.root)
    if made.offline_keys is not None:
        out.line("offline keys     ", str(made.offline_keys), Styled("  move them off this machine", "warn"))
    out.line("next             ", f"midflight server run {args.folder}")
    out.result(
        {
            "folder": str(made.settings.folder),
            "database": made.database,
            "bootstrap_token": made.bootstrap_token,
            "pin": made.pin,
            "root": made.root,
            "offline_keys": str(made.offline_keys) if made.offline_keys else None,
        }
    )
    return 0
