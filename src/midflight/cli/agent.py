"""midflight agent: the daemon of this machine, and what it knows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli import agent_server
from midflight.cli.output import Output, Styled, Text

if TYPE_CHECKING:
    from midflight.agent.agent import Agent, ServiceManager
    from midflight.agent.notices import Tell
    from midflight.agent.settings import Settings
    from midflight.agent.winservice import Control

HELP = """\
The agent keeps every process of this machine patched with the hotpatches of a folder: those that run when it starts,
those that start later (told by the kernel on Linux, found by looking ten times a second on Windows), and those that
load an image later (found by looking at everything once a minute). It verifies the signature of each file; of several
with one name the latest sequence counts, for each image by itself. Files that appear are noticed. What disappears
from the folder stays in the processes that have it, unless "removed" says otherwise: taking a fix out must be meant.

A process that crashes soon after an apply, or a probe that fails 1, 5 or 15 minutes after it, takes the hotpatch out
of all processes again and bars it on this machine until somebody has looked (midflight agent unbar). A hotpatch that
stays in the folder with an earlier sequence takes its place.

A device can have a server instead of a folder (enroll): then hotpatches and baselines come from the server's
repository, the server says when, and the device does only what keys bear out that the server does not have. Baselines
lie ready until a restart; swap-baseline puts one in its place before it (for a drop-in of systemd, or by hand).

Settings are in agent.toml in the folder of settings (/etc/midflight, %ProgramData%\\Midflight\\config); options of
the command line count more. When the agent stops, what is in force stays in force.

run        work in the foreground, until it is told to stop
status     what is in force, in how many processes, and what could not be done
bars       what is barred on this machine, and why
bar        bar a hotpatch here, and take it out of all processes
unbar      let it be applied again
install    run it as a service from now on (systemd, or a service of Windows); again after an upgrade, with systemd
uninstall  stop that service and remove it
enroll     become a device of a server
baselines  what lies ready, or replaced something
swap-baseline      put it in its place now
rollback-baseline  put back what it replaced"""

EXAMPLES = """\
midflight agent run --folder /srv/hotpatches --trust release.pub
midflight agent install
midflight agent status --json
midflight agent unbar nginx:3
midflight agent enroll --server https://midflight.example:8443 --token mfe_… --pin sha256/…
midflight agent rollback-baseline nginx"""

EXIT_STATUS = """\
0  done; status: the agent runs, and every process has what it should have
1  status: the agent does not run, or something could not be done; the text says what
2  bad usage, or settings that are not understood"""

ACTIONS = {
    "run": "work in the foreground",
    "status": "show what is in force, and where",
    "bars": "show what is barred on this machine",
    "bar": "bar a hotpatch on this machine",
    "unbar": "let it be applied again",
    "install": "run it as a service from now on",
    "uninstall": "remove that service",
    **agent_server.ACTIONS,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("action", metavar="ACTION", choices=list(ACTIONS), help=", ".join(ACTIONS))
    parser.add_argument(
        "name", nargs="?", metavar="NAME[:SEQUENCE]", help="bar, unbar: which hotpatch; else which baseline"
    )
    parser.add_argument("--reason", metavar="TEXT", help="bar: why (default: by hand)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="run, install: the hotpatches to keep in force")
    parser.add_argument(
        "--trust", metavar="KEY.pub", action="append", default=[],
        help="run, install: trust this public key alone; may be repeated (default: the keys in trust.d)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="run, install: these settings (default: agent.toml)"
    )
    parser.add_argument("--service", action="store_true", help="run: for the service manager alone")
    parser.add_argument("--no-start", action="store_true", help="install: do not start it now")
    parser.add_argument("--print", action="store_true", help="install: show what would be installed, and do nothing")
    parser.add_argument("--baselines", action="store_true", help="install: let the service put baselines in place")
    agent_server.add_arguments(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    from midflight.errors import InputError

    if args.name and args.action not in ("bar", "unbar", "swap-baseline", "rollback-baseline"):
        raise InputError(f"agent {args.action} takes no name (got {args.name})")
    actions = {"run": _run, "status": _status, "bars": _bars, "bar": _bar, "unbar": _unbar}
    if args.action in actions:
        return actions[args.action](args, out)
    if args.action in agent_server.ACTIONS:
        from midflight.agent.settings import read_settings

        return agent_server.run(args, out, read_settings(args.config))
    return _service(args, out)


# -- run -------------------------------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    from dataclasses import replace

    from midflight.agent.settings import read_settings

    found = read_settings(args.config)
    if args.folder:
        found = replace(found, folder=args.folder.absolute())
    if args.trust:
        found = replace(found, trust=tuple(str(Path(key).absolute()) for key in args.trust))
    return found


def _run(args: argparse.Namespace, out: Output) -> int:
    if args.service and sys.platform == "win32":
        from midflight.agent.winservice import serve

        serve(lambda control: _serve(args, control))
        return 0
    from midflight.agent.systemd import Systemd

    manager = None if sys.platform == "win32" else Systemd()
    _work(_settings(args), _sinks(service=False), manager, None, args.folder is not None)
    return 0


def _serve(args: argparse.Namespace, control: Control) -> None:
    """Be a service of Windows: there is no standard error, so why it fails goes to its logs."""
    from midflight.agent.notices import Notice

    tell = _sinks(service=True)
    try:
        _work(_settings(args), tell, control, control, args.folder is not None)
    except BaseException as error:
        tell(Notice("failed", f"the agent ends: {type(error).__name__}: {error}"))
        raise


def _work(
    settings: Settings, tell: Tell, manager: ServiceManager | None, control: Control | None, folder: bool
) -> None:
    """Be the agent until told to stop: by signals, or by the service manager of Windows.

    Args:
        folder: take orders from a folder, also where there is a server.
    """
    from midflight.agent import clocks
    from midflight.agent.agent import Agent
    from midflight.agent.folder import HotpatchFolder
    from midflight.agent.state import State
    from midflight.machine.places import state_folder
    from midflight.process.events import open_events

    enrolled = None if folder else agent_server.enrolled_here()
    _prepare(settings, needs_folder=enrolled is None)
    state = State(state_folder(), clocks.boot())
    events = open_events()
    if enrolled is None:
        agent = Agent(settings, HotpatchFolder(settings.folder, settings.trust), events, state, tell, manager)
        _until_stopped(agent, control)
        return
    sync, orders = agent_server.make_sync(enrolled, settings, tell)
    agent = Agent(settings, orders, events, state, tell, manager)
    orders.wake = agent.hurry
    sync.start()
    try:
        _until_stopped(agent, control)
    finally:
        sync.stop()


def _prepare(settings: Settings, needs_folder: bool) -> None:
    """Have the folders that the agent needs."""
    from midflight.errors import InputError
    from midflight.machine.ownership import make_closed_folder
    from midflight.machine.places import hotpatch_folder, state_folder

    try:
        make_closed_folder(state_folder())
        if settings.folder == hotpatch_folder():
            make_closed_folder(settings.folder)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be used: {error.strerror}") from None
    if needs_folder and not settings.folder.is_dir():
        raise InputError(f"there is no folder {settings.folder}; make it, or name another with --folder")


def _until_stopped(agent: Agent, control: Control | None) -> None:
    import signal

    if control is not None:
        control.stop = agent.stop
        if control.asked_to_stop:
            agent.stop()
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: agent.stop())
    agent.run()


def _to_stderr() -> Tell:
    """To standard error, or with all that is known to the journal of systemd where that reads it."""
    from midflight.agent import notices

    if sys.platform != "win32":
        from midflight.agent import systemd

        if systemd.under_journal():
            return systemd.to_journal(otherwise=notices.to_stream())
    return notices.to_stream()


def _sinks(service: bool) -> Tell:
    from midflight.agent import notices
    from midflight.machine.ownership import make_closed_folder
    from midflight.machine.places import log_folder

    sinks = [] if service else [_to_stderr()]
    folder = log_folder()
    if service and folder is not None:
        from midflight.agent.eventlog import to_event_log

        make_closed_folder(folder)
        sinks += [notices.to_file(folder / "agent.log"), to_event_log()]
    return notices.to_all(sinks)


# -- looking ---------------------------------------------------------------------------------------------------------


def _status(args: argparse.Namespace, out: Output) -> int:
    from midflight.agent import clocks
    from midflight.agent.state import look
    from midflight.machine.places import state_folder

    known = look(state_folder(), clocks.boot())
    in_force: dict[tuple[str, int], int] = dict.fromkeys(map(tuple, known.facts.get("wanted", [])), 0)
    failed = [one for one in known.applications if one.outcome == "failed"]
    for one in known.applications:
        if one.outcome in ("applied", "already"):
            in_force[one.name, one.sequence] = in_force.get((one.name, one.sequence), 0) + 1
    problems = [(str(what), str(why)) for what, why in known.facts.get("problems", [])]
    server = agent_server.status()
    out.result(
        {
            "running": known.running,
            "server": server and {**server, "last_heard": _when(server["last_heard"])},
            "source": known.facts.get("source"),
            "events": known.facts.get("events"),
            "started": _when(known.facts.get("started")),
            "hotpatches": [{"name": k[0], "sequence": k[1], "processes": count} for k, count in in_force.items()],
            "failed": [
                {"pid": o.pid, "command": o.command, "name": o.name, "sequence": o.sequence, "reason": o.reason}
                for o in failed
            ],
            "problems": [{"what": what, "why": why} for what, why in problems],
            "bars": [_plain(bar) for bar in known.bars],
        }
    )
    state = Styled("runs", "good") if known.running else Styled("does not run", "bad")
    out.line("the agent ", state, f"  {known.facts.get('source', '')}")
    out.line(f"new processes are noticed by {known.facts.get('events', '')}")
    if server is not None:
        heard = _when(server["last_heard"]) or "never"
        told = f"instructions {server['instructions'] or 'none'}, {server['unheard_outcomes']} outcomes not yet told"
        out.line(f"device {server['device']}: the server last answered {heard}; {told}")
    rows: list[list[Text]] = [[f"{name}", str(number), str(count)] for (name, number), count in in_force.items()]
    if rows:
        out.table(["HOTPATCH", "SEQUENCE", "PROCESSES"], rows)
    for one in failed:
        out.line(Styled("failed  ", "bad"), f"{one.name} {one.sequence} in {one.pid} ({one.command}): {one.reason}")
    for what, why in problems:
        out.line(Styled("problem  ", "warn"), f"{what}: {why}")
    for bar in known.bars:
        out.line(Styled("barred  ", "bad"), f"{bar.name} {bar.sequence}: {bar.reason}")
    return 0 if known.running and not failed and not problems else 1


def _when(seconds: Any) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if isinstance(seconds, int | float) else None


def _plain(bar: Any) -> dict[str, Any]:
    return {"name": bar.name, "sequence": bar.sequence, "reason": bar.reason, "since": _when(bar.since)}


def _bars(args: argparse.Namespace, out: Output) -> int:
    from midflight.agent import clocks
    from midflight.agent.state import look
    from midflight.machine.places import state_folder

    bars = look(state_folder(), clocks.boot()).bars
    out.result({"bars": [_plain(bar) for bar in bars]})
    if not bars:
        out.line("nothing is barred")
    else:
        rows = [[bar.name, str(bar.sequence), _when(bar.since) or "", bar.reason] for bar in bars]
        out.table(["HOTPATCH", "SEQUENCE", "SINCE", "REASON"], rows)
    return 0


def _named(args: argparse.Namespace) -> tuple[str, int | None]:
    from midflight.errors import InputError

    name, colon, number = (args.name or "").partition(":")
    if not name or (colon and not number.isdigit()):
        raise InputError(f"agent {args.action} needs NAME or NAME:SEQUENCE, as midflight agent status shows them")
    return name, int(number) if colon else None


def _bar(args: argparse.Namespace, out: Output) -> int:
    from midflight.agent import clocks
    from midflight.agent.state import Bar, look, set_bar
    from midflight.errors import InputError
    from midflight.machine.places import state_folder

    name, number = _named(args)
    if number is None:
        known = [int(n) for found, n in look(state_folder(), clocks.boot()).facts.get("wanted", []) if found == name]
        if not known:
            raise InputError(f"{name} is not in force here: name its sequence as well ({name}:1)")
        number = max(known)
    bar = Bar(name, number, args.reason or "by hand", time.time())
    set_bar(state_folder(), bar)
    out.result({"bars": [_plain(bar)]})
    out.line(f"{name} {number} is barred on this machine; a running agent takes it out of all processes now")
    return 0


def _unbar(args: argparse.Namespace, out: Output) -> int:
    from midflight.agent.state import take_bar
    from midflight.errors import InputError
    from midflight.machine.places import state_folder

    name, number = _named(args)
    taken = take_bar(state_folder(), name, number)
    if not taken:
        raise InputError(f"{args.name} is not barred on this machine (midflight agent bars)")
    out.result({"unbarred": [{"name": name, "sequence": number} for name, number in taken]})
    for name, number in taken:
        out.line(f"{name} {number} may be applied again")
    return 0


# -- the service -----------------------------------------------------------------------------------------------------


def _service(args: argparse.Namespace, out: Output) -> int:
    windows = sys.platform == "win32"
    if args.action == "install":
        command = _command(args)
        if args.print:
            for line in _shown(command).splitlines():
                out.line(line)
            out.result({"command": command})
            return 0
        _check_ownership()
        where = (
            _install_windows(command, not args.no_start)
            if windows
            else _install_unit(command, not args.no_start, args.baselines)
        )
        out.result({"installed": where})
        out.line(f"installed: {where}")
        return 0
    if windows:
        from midflight.agent import eventlog, winservice

        winservice.uninstall()
        eventlog.unregister_source()
        where = f"the service {winservice.NAME}"
    else:
        from midflight.agent import systemd

        where = str(systemd.uninstall())
    out.result({"removed": where})
    out.line(f"removed: {where}; what is in force stays so until its processes end (midflight revert --every --all)")
    return 0


_AGENT = (sys.executable, "-m", "midflight", "agent")


def _command(args: argparse.Namespace) -> list[str]:
    settings = _settings(args)
    command = [*_AGENT, "run", "--service"]
    if args.folder:
        command += ["--folder", str(settings.folder)]
    for key in settings.trust if args.trust else ():
        command += ["--trust", key]
    if args.config:
        command += ["--config", str(args.config.absolute())]
    return command


def _shown(command: list[str]) -> str:
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline(command)
    from midflight.agent.systemd import unit

    return unit(command)


def _check_ownership() -> None:
    """A service runs as the machine itself: nobody else may be able to change what it runs."""
    import midflight
    from midflight.errors import InputError
    from midflight.machine.ownership import changeable_by

    for path in (Path(sys.executable), Path(midflight.__file__).parent):
        other = changeable_by(path)
        if other is not None:
            raise InputError(f"{path} can be changed by others ({other}): put it where only root can write")


def _install_unit(command: list[str], start: bool, baselines: bool) -> str:
    from midflight.agent import systemd
    from midflight.machine import units

    path = str(systemd.install(command, (*_AGENT, "swap-baseline"), start, baselines))
    return path if units.runs() else f"{path} (systemd does not run here: it starts with the machine if enabled)"


def _install_windows(command: list[str], start: bool) -> str:
    from midflight.agent import eventlog, winservice
    from midflight.machine.ownership import make_closed_folder
    from midflight.machine.places import config_folder, hotpatch_folder, run_folder, state_folder

    for folder in (config_folder(), config_folder() / "trust.d", state_folder(), hotpatch_folder(), run_folder()):
        make_closed_folder(folder)
    winservice.install(_shown(command))
    eventlog.register_source()
    if start:
        winservice.start()
    return f"the service {winservice.NAME} ({_shown(command)})"
