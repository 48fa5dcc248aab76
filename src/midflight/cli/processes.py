"""What the commands that work on processes share: which processes, how long to try, and how an outcome is shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from midflight.cli.output import Output, Styled, Text
from midflight.errors import InputError, ProcessGone

if TYPE_CHECKING:
    from midflight.engine.transaction import Limits, Outcome
    from midflight.patch.hotpatch import Hotpatch
    from midflight.process.live import LiveProcess

# PID_MAX_LIMIT of Linux; a process id of Windows is any 32-bit number
_PIDS = 1 << 32 if sys.platform == "win32" else 1 << 22
_STYLE = {
    "applied": "good",
    "already": "good",
    "reverted": "good",
    "recovered": "good",
    "failed": "bad",
    "skipped": "warn",
}


def add_selection(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--pid and --all."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument(
        "--pid", type=_pid, action="append", metavar="N", help="this process; may be given several times"
    )
    group.add_argument("--all", action="store_true", help="every process, in containers too")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """--timeout and --dry-run."""
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for threads that are in the way, per process (default 5)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and touch nothing")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """--trust."""
    parser.add_argument(
        "--trust",
        metavar="KEY.pub",
        action="append",
        default=[],
        help="trust this public key alone; may be given several times, one signature is enough (default: the keys in "
        "/etc/midflight/trust.d, or ~/.config/midflight/trust.d for other users than root)",
    )


def _pid(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < _PIDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds between 0 and 3600")
    return value


def limits(args: argparse.Namespace) -> Limits:
    """The engine's limits for these options."""
    from midflight.engine.transaction import Limits

    return Limits(busy=args.timeout)


def read_trusted(path: str, keys: Sequence[str]) -> Hotpatch:
    """A hotpatch that one of the keys signed; without keys, one of those that this machine trusts.

    Raises:
        InputError: no key is named, and the machine trusts none.
        PatchFileError: none of them signed it, or the file is malformed.
    """
    from midflight.patch.hotpatch import read_hotpatch
    from midflight.trust.keys import load_public_key
    from midflight.trust.store import folder, trusted_keys

    trusted = [load_public_key(key) for key in keys] if keys else list(trusted_keys())
    if not trusted:
        raise InputError(
            f"no key is trusted on this machine ({folder()}/trust.d has none); give the author's with --trust KEY.pub"
        )
    return read_hotpatch(path, trusted)


def chosen(pids: Sequence[int] | None) -> list[LiveProcess]:
    """The processes named, or all; the oldest first, so that parents come before their children.

    Raises:
        InputError: a named process does not exist.
    """
    from midflight.process.live import all_processes, open_process

    if not pids:
        return all_processes()
    found: list[LiveProcess] = []
    for pid in dict.fromkeys(pids):
        try:
            found.append(open_process(pid))
        except ProcessGone as error:
            raise InputError(f"there is no process {pid}") from error
    return found


def command_name(pid: int) -> str:
    """The short name of a process, for people."""
    from midflight.process import live

    return live.command_name(pid)


def milliseconds(seconds: float) -> str:
    """A short time for a table."""
    return f"{seconds * 1e3:.2f}" if seconds else "-"


def kib(size: int) -> str:
    """A small amount of memory for a table."""
    return f"{-(-size // 1024)}" if size else "-"


def plain(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Outcomes for --json."""
    return [{"command": command_name(o.pid), **asdict(o)} for o in outcomes]


def show(out: Output, outcomes: Sequence[Outcome]) -> None:
    """One row a process, then every reason in full."""
    rows: list[list[Text]] = [
        [
            str(o.pid),
            command_name(o.pid),
            Styled(o.outcome, _STYLE.get(o.outcome, "dim")),  # type: ignore[arg-type]
            str(len(o.functions)) if o.functions else "-",
            milliseconds(o.stopped),
            str(o.attempts or "-"),
            kib(o.memory),
        ]
        for o in outcomes
    ]
    out.table(["PID", "COMMAND", "OUTCOME", "FUNCTIONS", "STOPPED MS", "STOPS", "KIB"], rows)
    for o in outcomes:
        if o.reason and o.outcome not in ("applied", "already"):
            out.line(f"{o.pid}: {o.reason}")
        for note in o.notes:
            out.line(f"{o.pid}: {note}")
