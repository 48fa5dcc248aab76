"""midflight repo server: stage by which keys devices know their server."""

from __future__ import annotations

import argparse
from pathlib import Path

from midflight.cli.output import Output
from midflight.cli.repository import shared

HELP = """\
Stages the server's record: where the server is, which TLS keys it may have, which keys sign its instructions, and whose
hotpatches devices accept. Devices take it from the repository, so these keys change like content does: signed offline.

Of what is not given, the record keeps what it has. A list that is given replaces the one before: to change a key, give
the old and the new one, publish, change it on the server, and later publish the new one alone.

A pin is sha256/BASE64 of a public key, or the file of a certificate (PEM). Two are needed: the key that the server has,
and a backup that is kept offline."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)
    parser.add_argument("--url", metavar="URL", action="append", help="https address of the server")
    parser.add_argument("--pin", metavar="PIN", action="append", help="a TLS key of the server; at least two")
    parser.add_argument("--instruction-key", metavar="KEY.pub", action="append", help="signs instructions to devices")
    parser.add_argument(
        "--hotpatch-key", metavar="KEY.pub", action="append", help="signs hotpatches that devices accept"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.trust.keys import load_public_key
    from midflight.trust.pinning import parse_pin, pin_of
    from midflight.trust.serverrecord import ServerRecord

    repository = shared.opened(args)
    old = repository.server_record() or ServerRecord((), (), ())
    record = ServerRecord(
        tuple(args.url) if args.url else old.urls,
        tuple(parse_pin(pin) if pin.startswith("sha256/") else pin_of(Path(pin).read_bytes()) for pin in args.pin)
        if args.pin
        else old.pins,
        tuple(map(load_public_key, args.instruction_key)) if args.instruction_key else old.instruction_keys,
        tuple(map(load_public_key, args.hotpatch_key)) if args.hotpatch_key else old.hotpatch_keys,
    )
    repository.set_server_record(record, shared.now())
    for url in record.urls:
        out.line(f"server           {url}")
    for pin in record.pins:
        out.line(f"pin              {pin}")
    for kind, keys in (("instruction key", record.instruction_keys), ("hotpatch key", record.hotpatch_keys)):
        for key in keys:
            out.line(f"{kind:<16} {key.key_id}")
    out.result(
        {
            "urls": list(record.urls),
            "pins": [str(pin) for pin in record.pins],
            "instruction_keys": [key.key_id for key in record.instruction_keys],
            "hotpatch_keys": [key.key_id for key in record.hotpatch_keys],
            "staged": shared.show_staged(repository, out),
        }
    )
    return 0
