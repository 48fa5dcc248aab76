"""The entry point: finds the command, imports it alone, and turns every failure into one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from midflight import __version__
from midflight.errors import MidflightError

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

    from midflight.cli.output import Output

COMMANDS = {
    "assess": "tell whether a fix can be hotpatched, and what forbids it",
    "build": "make a signed hotpatch from a fix",
    "keygen": "make a key pair for signing hotpatches",
    "inspect": "show what a hotpatch changes, and who signed it",
    "apply": "put a hotpatch into running processes",
    "status": "show which hotpatches run in which processes",
    "check": "compare the code in memory with disk and ledger",
    "revert": "take a hotpatch out of running processes",
    "recover": "finish or undo what an interrupted run left behind",
    "agent": "keep a machine patched: the daemon, and what it knows",
    "scan": "list the processes that a hotpatch is meant for",
    "server": "run the control plane of a fleet",
    "repo": "make and sign the repository of content that a fleet gets",
    "mirror": "copy a repository, verified, to where there is no network",
}

EXIT_STATUS = """\
0  all done
1  some process failed or is unexplained
2  bad usage or bad input
3  refused by the forge: the change cannot be hotpatched safely
4  assess: a person must sign off first; 5  assess: unknown so far
130  interrupted"""

_ENVIRONMENT = """\
NO_COLOR          no colour, even on a terminal
MIDFLIGHT_DEBUG   set to 1 for full traces of errors
MIDFLIGHT_CONFIG  folder of this machine's keys (default: /etc/midflight for root, ~/.config/midflight otherwise)
MIDFLIGHT_STATE   folder of what the agent remembers (default: /var/lib/midflight for root)
MIDFLIGHT_RUN     folder of what an interrupted run leaves (default: /run/midflight for root)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if words[:1] in (["--version"], ["-V"]):
        print(f"midflight {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        return _help(words[1:])

    from midflight.cli.output import Output

    out = Output(json="--json" in words, quiet="--quiet" in words or "-q" in words)
    try:
        return _run(words, out)
    finally:
        out.finish()


def _run(words: list[str], out: Output) -> int:
    try:
        module = command(words[0])
        args = parser_of(words[0], module).parse_args(words[1:])
        out.json, out.quiet = args.json, args.quiet
        return int(module.run(args, out))
    except _UsageError as error:
        return _fail(out, error, str(error), "UsageError", 2)
    except MidflightError as error:
        return _fail(out, error, str(error), type(error).__name__, error.exit_status)
    except KeyboardInterrupt as error:
        return _fail(out, error, "interrupted", "Interrupted", 130)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _fail(out, error, f"{where}{error.strerror or error}", type(error).__name__, 2 if missing else 1)
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}; please report; full trace with MIDFLIGHT_DEBUG=1"
        return _fail(out, error, text, "InternalError", 1)


def _fail(out: Output, error: BaseException, message: str, kind: str, exit_status: int) -> int:
    if os.environ.get("MIDFLIGHT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    out.error(message, kind, exit_status)
    return exit_status


class _UsageError(Exception):
    """The command line makes no sense."""


def command(name: str) -> ModuleType:
    """The module of a command, imported now."""
    if name not in COMMANDS:
        if name.startswith("-"):
            raise _UsageError(f"the command comes first, options after it; see midflight --help (got {name})")
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else "see midflight --help"
        raise _UsageError(f"no command {name!r}; {hint}")
    import importlib

    return importlib.import_module(f"midflight.cli.{name}")


def parser_of(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command line, with its whole page of help."""
    import argparse

    from midflight.cli.helptext import filled

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise _UsageError(f"{name}: {message}; see midflight {name} --help")

        def format_help(self) -> str:
            if self.description is None:  # a subcommand has its own
                self.description = filled(module.HELP.strip())
            return super().format_help()

    sections = [
        ("examples", getattr(module, "EXAMPLES", "")),
        ("exit status", getattr(module, "EXIT_STATUS", EXIT_STATUS)),
        ("environment", _ENVIRONMENT),
    ]
    parser = Parser(
        prog=f"midflight {name}",
        epilog="\n\n".join(f"{title}:\n{_indented(text)}" for title, text in sections if text),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    common = parser.add_argument_group("output")
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    common.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.strip("\n").splitlines())


def _help(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return main([words[0], "--help"])
    lines = [
        "usage: midflight COMMAND [options]",
        "",
        "Repairs programs while they run: turns a security fix into a signed hotpatch, puts it into",
        "running processes without a restart, proves that it is there, and takes it out again.",
        "",
        "commands:",
        *(f"  {name:<10}{text}" for name, text in COMMANDS.items()),
        "",
        "options:",
        "  -h, --help     this text; midflight COMMAND --help for a command",
        "  -V, --version  the version",
        "",
        "exit status:",
        _indented(EXIT_STATUS),
        "",
        "environment:",
        _indented(_ENVIRONMENT),
    ]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
