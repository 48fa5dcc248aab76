"""midflight agent: what concerns a device that has a server (enrolling, its baselines), for cli/agent.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli.output import Output, Styled

if TYPE_CHECKING:
    from midflight.agent.fleet.enrollment import Enrolled
    from midflight.agent.fleet.records import Baseline, Records
    from midflight.agent.fleet.source import FleetOrders
    from midflight.agent.fleet.staging import Staging
    from midflight.agent.fleet.sync import Sync
    from midflight.agent.notices import Tell
    from midflight.agent.settings import Settings

TOKEN = "MIDFLIGHT_ENROLL_TOKEN"
ACTIONS = {
    "enroll": "become a device of a server",
    "baselines": "show the baselines that lie ready or are in place",
    "swap-baseline": "put a baseline that lies ready in its place now",
    "rollback-baseline": "put back what a baseline replaced",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options for a device that has a server."""
    server = parser.add_argument_group("a device that has a server (enroll)")
    server.add_argument("--server", metavar="URL", help="the server, https://HOST[:PORT]")
    server.add_argument("--token", metavar="T", help=f"its invitation; - reads it from a line of input (or ${TOKEN})")
    server.add_argument(
        "--pin", metavar="PIN", action="append", default=[],
        help="a key of the server, sha256/BASE64; may be repeated (default: the key of a certificate that this system "
        "trusts)",
    )  # fmt: skip
    server.add_argument(
        "--root", type=Path, metavar="FILE", help="root metadata to trust (default: what the server says)"
    )
    server.add_argument("--root-sha256", metavar="HEX", help="what the root metadata must be")
    server.add_argument("--label", metavar="K=V", action="append", default=[], help="tell the server; may be repeated")
    server.add_argument("--again", action="store_true", help="enroll a device that is enrolled, with a new key")
    server.add_argument("--forget", action="store_true", help="forget the server, its repository and its orders first")
    server.add_argument("--mirror", type=Path, metavar="DIR", help="no network: take content from this folder")
    server.add_argument("--device", metavar="ID", help="no network: the id of this device")


def run(args: argparse.Namespace, out: Output, settings: Settings) -> int:
    """Carry out one of the actions."""
    actions: dict[str, Callable[[argparse.Namespace, Output, Settings], int]] = {
        "enroll": _enroll,
        "baselines": _baselines,
        "swap-baseline": _swap,
        "rollback-baseline": _rollback,
    }
    return actions[args.action](args, out, settings)


def enrolled_here() -> Enrolled | None:
    """The server of this device, if it has one."""
    from midflight.agent.fleet import FOLDER
    from midflight.machine.places import state_folder

    if not (state_folder() / FOLDER).exists():
        return None
    from midflight.agent.fleet.enrollment import load

    return load(state_folder())


def make_sync(enrolled: Enrolled, settings: Settings, tell: Tell) -> tuple[Sync, FleetOrders]:
    """The thread that speaks with the server, and the orders that it hands to the agent's loop."""
    from midflight.agent.fleet.place import Place
    from midflight.agent.fleet.settings import server_settings
    from midflight.agent.fleet.source import FleetOrders
    from midflight.agent.fleet.sync import Sync
    from midflight.machine.places import state_folder
    from midflight.trust.keys import load_public_key

    server = server_settings(settings.server)
    place = Place(
        state_folder(), enrolled, settings, server, tuple(load_public_key(Path(key)) for key in settings.trust)
    )
    who = enrolled.urls[0] if enrolled.urls else "instructions that are carried here"
    orders = FleetOrders(f"{who}, as device {enrolled.device}")
    return Sync(place, orders, tell), orders


# -- enroll ----------------------------------------------------------------------------------------------------------


def _enroll(args: argparse.Namespace, out: Output, settings: Settings) -> int:
    from midflight.agent.fleet import FOLDER
    from midflight.agent.fleet.enrollment import enroll, enroll_by_hand, forget
    from midflight.errors import InputError
    from midflight.machine.ownership import make_closed_folder
    from midflight.machine.places import state_folder

    state = state_folder()
    try:
        make_closed_folder(state)
        make_closed_folder(state / FOLDER)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be used: {error.strerror}") from None
    root = _read(args.root) if args.root else None
    if args.forget:
        forget(state)
    if args.mirror:
        if root is None or not args.device:
            raise InputError("a device without a network needs --device ID and --root FILE besides --mirror")
        found = enroll_by_hand(state, args.device, args.mirror, root, args.again)
    else:
        from midflight.agent.fleet.settings import server_settings

        found = enroll(state, _invitation(args, root, server_settings(settings.server).proxy), _now(), again=args.again)
    out.result({"device": found.device, "server": list(found.urls), "pins": [str(pin) for pin in found.pins]})
    out.line(
        "this device is enrolled as ", Styled(found.device, "good"), "; a running agent takes it up when it starts"
    )
    return 0


def _invitation(args: argparse.Namespace, root: bytes | None, proxy: str | None) -> Any:
    from midflight.agent.fleet.enrollment import Invitation
    from midflight.errors import InputError
    from midflight.trust.pinning import parse_pin

    token = args.token or os.environ.get(TOKEN, "")
    if token == "-":
        token = sys.stdin.readline().strip()
    if not args.server or not token:
        raise InputError("agent enroll needs --server URL and --token T, as the server's administrator gives them")
    labels = dict(_label(text) for text in args.label)
    pins = tuple(parse_pin(pin) for pin in args.pin)
    return Invitation(args.server, token, pins, root, args.root_sha256, labels, proxy)


def _label(text: str) -> tuple[str, str]:
    from midflight.errors import InputError

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"--label {text}: give it as KEY=VALUE")
    return key, value


def _read(path: Path) -> bytes:
    from midflight.errors import InputError

    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


# -- baselines -------------------------------------------------------------------------------------------------------


@contextmanager
def _opened() -> Iterator[tuple[Records, Staging]]:
    from midflight.agent import clocks
    from midflight.agent.fleet.records import FILE, Records
    from midflight.agent.fleet.staging import Staging
    from midflight.errors import InputError
    from midflight.machine.places import state_folder

    if not (state_folder() / FILE).exists():
        raise InputError(f"no agent of a server has run here: there is no {state_folder() / FILE}")
    records = Records(state_folder())
    try:
        yield records, Staging(state_folder(), records, clocks.boot())
    finally:
        records.close()


def _plain(one: Baseline) -> dict[str, Any]:
    return {
        "name": one.name,
        "sequence": one.sequence,
        "state": one.state,
        "format": one.format,
        "place": one.place,
        "kept": one.kept,
        "images": list(one.images),
        "replaced": list(one.replaced),
        "detail": one.detail,
    }


def _baselines(args: argparse.Namespace, out: Output, settings: Settings) -> int:
    with _opened() as (records, _):
        found = records.baselines()
    out.result({"baselines": [_plain(one) for one in found]})
    if not found:
        out.line("no baseline lies ready or is in place")
    else:
        out.table(
            ["BASELINE", "SEQUENCE", "STATE", "PLACE"], [[o.name, str(o.sequence), o.state, o.place] for o in found]
        )
    return 0


def _swap(args: argparse.Namespace, out: Output, settings: Settings) -> int:
    from midflight.agent.fleet.staging import StagingError, find

    done, failed = [], []
    with _opened() as (records, staging):
        waiting = [one for one in records.baselines() if one.state in ("staged", "swapping")]
        for one in [find(waiting, args.name)] if args.name else waiting:
            try:
                done.append(staging.swap(one))
            except StagingError as error:
                failed.append({"name": one.name, "sequence": one.sequence, "reason": str(error)})
    out.result({"baselines": [_plain(one) for one in done], "failed": failed})
    for one in done:
        out.line(
            f"{one.name} {one.sequence} is in its place ({one.place}); what runs there now gets it when it restarts"
        )
    for other in failed:
        out.line(Styled(str(other["reason"]), "bad"))
    if not done and not failed:
        out.line("nothing lies ready")
    return 1 if failed else 0


def _rollback(args: argparse.Namespace, out: Output, settings: Settings) -> int:
    from midflight.agent.fleet.staging import find
    from midflight.errors import InputError

    with _opened() as (records, staging):
        there = [one for one in records.baselines() if one.state != "returned"]
        if not args.name:
            raise InputError("agent rollback-baseline needs a NAME, as midflight agent baselines shows it")
        done = staging.take_back(find(there, args.name))
    out.result({"baselines": [_plain(done)]})
    out.line(
        f"{done.place} is as it was before {done.name} {done.sequence}; what runs there now gets it when it restarts"
    )
    return 0


# -- status ----------------------------------------------------------------------------------------------------------


def status() -> dict[str, Any] | None:
    """What is known of the server; None: this device has none."""
    from midflight.agent.fleet.records import read_facts
    from midflight.machine.places import state_folder

    enrolled = enrolled_here()
    if enrolled is None:
        return None
    facts = read_facts(state_folder()) or {}
    sequence = facts.get("sequence") or {}
    return {
        "device": enrolled.device,
        "urls": list(enrolled.urls),
        "revoked": facts.get("revoked"),
        "instructions": sequence.get("sequence"),
        "last_heard": facts.get("last_heard"),
        "unheard_outcomes": facts.get("unheard", 0),
        "baselines": [_plain(one) for one in facts.get("baselines", [])],
        "violations": len(facts.get("violations") or []),
    }
