"""The command line as people and programs meet it: help, usage errors, failures, exit statuses."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from midflight import __version__
from midflight.cli.main import COMMANDS, main
from midflight.errors import EngineError, InputError, Refused

MIDFLIGHT = Path(sys.executable).with_name("midflight")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MIDFLIGHT, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=60
    )


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"midflight {__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for name, text in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_of_help(name: str) -> None:
    done = run(name, "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: midflight {name} ")
    for section in ("examples:", "exit status:", "environment:", "--json"):
        assert section in done.stdout
    assert run("help", name, COLUMNS="80").stdout == done.stdout


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("aply",), "did you mean apply?"),
        (("frobnicate",), "see midflight --help"),
        (("--json", "status"), "the command comes first"),
        (("inspect",), "see midflight inspect --help"),
        (("inspect", "x", "--no-such-option"), "see midflight inspect --help"),
        (("inspect", "x", "--js"), "see midflight inspect --help"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(words: tuple[str, ...], hint: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("midflight: ")
    assert done.stderr.count("\n") == 1
    assert hint in done.stderr


def test_bad_usage_reaches_programs_as_json() -> None:
    done = run("inspect", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "UsageError"


def test_a_missing_file_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = run("inspect", str(tmp_path / "absent.hotpatch"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "absent.hotpatch" in done.stderr


class Failing:
    """Stands in for a command's module, to fail in every way that a command can."""

    HELP = "Fails."

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        pass

    def run(self, args: argparse.Namespace, out: object) -> int:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "status", "said"),
    [
        (InputError("no such key"), 2, "midflight: no such key\n"),
        (EngineError("process 7: busy"), 1, "midflight: process 7: busy\n"),
        (Refused("MF110: data changed"), 3, "midflight: MF110: data changed\n"),
        (KeyboardInterrupt(), 130, "midflight: interrupted\n"),
        (FileNotFoundError(2, "No such file or directory", "fix.patch"), 2, "midflight: fix.patch: No such file or d"),
        (PermissionError(13, "Permission denied", "/proc/1/mem"), 1, "midflight: /proc/1/mem: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "midflight: No space left on device\n"),
        (ZeroDivisionError("by zero"), 1, "midflight: internal error: ZeroDivisionError: by zero; please report; full"),
        (EngineError("a name \x1b[31mred"), 1, "midflight: a name \\x1b[31mred\n"),
    ],
)
def test_every_failure_is_one_line_and_a_status(
    failure: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MIDFLIGHT_DEBUG", raising=False)
    monkeypatch.setitem(sys.modules, "midflight.cli.status", Failing(failure))
    assert main(["status"]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert main(["status", "--json"]) == status
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_status"] == status
    monkeypatch.setenv("MIDFLIGHT_DEBUG", "1")
    assert main(["status"]) == status
    assert "Traceback" in capsys.readouterr().err


def test_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    """A real SIGINT into a real process that is in the middle of a command."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import sys, time, types
            from midflight.cli.main import main
            def run(args, out):
                print("ready", flush=True)
                time.sleep(60)
            sys.modules["midflight.cli.status"] = types.SimpleNamespace(HELP="x", add_arguments=lambda p: None, run=run)
            sys.exit(main(["status"]))
        """)
    )
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (130, "midflight: interrupted\n")


def test_a_command_imports_no_other_command_and_no_heavy_library_at_start() -> None:
    """Start-up time is a promise; what is not imported costs none."""
    code = "import sys; from midflight.cli.main import main; main(['--version']); print(*sys.modules, sep='\\n')"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert {name for name in loaded if name.startswith("midflight.")} <= {
        "midflight.cli",
        "midflight.cli.main",
        "midflight.errors",
    }
    assert not loaded & {"argparse", "json", "cryptography", "iced_x86", "elftools", "securesystemslib", "subprocess"}
