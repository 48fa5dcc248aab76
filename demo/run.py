"""The demonstration, step by step: ``make demo``, or ``python demo/run.py``.

Everything is made below ``.cache/demo`` and used again by the next run; nothing outside it and /tmp changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from midflight.forge.packages.apt import SourceError
from midflight.forge.packages.sources import SourcePackage, fetch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from demo.load import Load, LoadReport  # noqa: E402
from demo.server import QUESTION, RIGHT_ANSWER, Answer, DemoError, Server, mapped_file, start_time  # noqa: E402

CVE = "CVE-2026-42945"
PATCH = f"{CVE}.patch"
NAME = "nginx"
FLAGS = "-O2 -g -fstack-protector-strong -D_FORTIFY_SOURCE=2"
"""Debian's own, but for its path maps."""
CONFIGURE = f'./configure --prefix=/usr/share/nginx --with-threads --with-cc-opt="{FLAGS}"'
JOBS = os.cpu_count() or 1
STEPS = 8


class Story:
    """Tells what happens: numbered steps, commands as typed, indented results."""

    def __init__(self, steps: int = STEPS, to: TextIO = sys.stdout) -> None:
        self.started = time.monotonic()
        self._number, self._steps, self._to = 0, steps, to
        self._bold, self._dim, self._end = (
            ("\x1b[1m", "\x1b[2m", "\x1b[0m") if to.isatty() and "NO_COLOR" not in os.environ else ("", "", "")
        )

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._number += 1
        clock = f"{time.monotonic() - self.started:4.0f} s"
        text = f"\n{self._bold}[{self._number}/{self._steps}] {title}{self._end}  {self._dim}{clock}{self._end}"
        print(text, file=self._to, flush=True)

    def say(self, text: str) -> None:
        """Print a paragraph of the step."""
        print(textwrap.fill(text, 96, initial_indent="      ", subsequent_indent="      "), file=self._to, flush=True)

    def show(self, text: str, bright: bool = False) -> None:
        """Print lines as they are: a command's output, or the command itself (``bright``)."""
        for line in text.rstrip("\n").splitlines():
            print(f"      {'' if bright else self._dim}{line}{self._end}", file=self._to, flush=True)

    def row(self, label: str, text: str) -> None:
        """Print a line of a summary."""
        print(f"      {label + ' ':.<32} {text}", file=self._to, flush=True)


class Demo:
    """The state of one run: where things are, and what was measured for the summary."""

    def __init__(self, work: Path) -> None:
        self.story = Story()
        self.work = work
        self.tree = work / "nginx-vulnerable"
        self.binary = self.tree / "objs" / "nginx"
        self.hotpatch = work / f"{CVE}.hotpatch"
        self.midflight = str(Path(sys.executable).parent / "midflight")

    # --- the steps -------------------------------------------------------------------------------------------------

    def fetch(self) -> SourcePackage:
        """Get nginx's source from Debian, with and without the fix."""
        self.story.step("Fetch nginx's source package from Debian, and take the fix out of it")
        source = fetch("nginx", ROOT / ".cache" / "sources", log=self.story.say)
        fix = source.patch(PATCH)
        self.story.say(
            f"nginx {source.version} has the fix of {CVE} as debian/patches/{fix.name}. "
            "Without that one patch it is the nginx that had the hole."
        )
        self.story.show(
            "\n".join(line for line in fix.read_text().splitlines() if line[:1] in "+-" and line[1:2] == " ")
        )
        key = hashlib.sha256(f"{source.version} {CONFIGURE}".encode()).hexdigest()
        if not self._made(self.tree, key):
            source.copy(self.tree, without=[PATCH])
            self._mark(self.tree, key)
        return source

    def build_vulnerable(self) -> None:
        """Build what runs: the vulnerable nginx, as anyone would build it."""
        self.story.step("Build the vulnerable nginx, with Debian's compiler flags and nothing added")
        if self.binary.exists():
            self.story.say("built already by an earlier run")
            return
        self._quiet(["sh", "-c", f"{CONFIGURE} && make -j{JOBS}"], self.tree, "build-vulnerable.log")

    def hole_is_open(self, server: Server) -> None:
        """Show the vulnerability in every worker."""
        answers = server.ask()
        self.story.say(
            f"{CVE}: asked for {QUESTION}, nginx must answer {RIGHT_ANSWER}. The vulnerable one makes room for these "
            f"{len(RIGHT_ANSWER)} bytes, writes {len(QUESTION)}, past the end of its buffer, and answers with a piece."
        )
        self._show_answers(answers)
        if not all(answer.hole for answer in answers):
            raise DemoError("nginx is not vulnerable; the fix was not taken out of the source")

    def build_hotpatch(self, source: SourcePackage) -> None:
        """Make a key pair and the signed hotpatch."""
        self.story.step("Turn the fix into a signed hotpatch for exactly the binary that runs")
        key = self.work / "demo"
        if not key.with_suffix(".pub").exists():
            self._midflight(["keygen", str(key)])
        command = ["build", "--source", str(self.tree_for_forge(source)), "--fix", str(source.patch(PATCH))]
        command += ["--make", f"test -e Makefile || {CONFIGURE}; make -j{JOBS}", "--image", "objs/nginx"]
        command += ["--running", str(self.binary), "--cache", str(self.work / "forge"), "--key", f"{key}.key"]
        command += ["--name", NAME, "--sequence", "1", "--cve", CVE, "--description", "Rewrite: buffer overrun"]
        self.hotpatch.unlink(missing_ok=True)
        self._midflight([*command, "-o", str(self.hotpatch)])
        self._midflight(["inspect", str(self.hotpatch), "--trust", f"{key}.pub"])

    def tree_for_forge(self, source: SourcePackage) -> Path:
        """An unbuilt tree of the vulnerable source; the forge works on copies of it."""
        tree = self.work / "nginx-source"
        if not self._made(tree, source.version):
            source.copy(tree, without=[PATCH])
            self._mark(tree, source.version)
        return tree

    def apply(self, pids: Sequence[int]) -> list[dict[str, Any]]:
        """Apply the hotpatch to all processes; returns what the engine measured."""
        trust = ["--trust", str(self.work / "demo.pub")]
        return self._processes(["apply", str(self.hotpatch), *trust, *_pids(pids)])

    def check(self, pids: Sequence[int]) -> None:
        """Let midflight compare the code in memory with disk and ledger."""
        self._midflight(["check", *_pids(pids)])

    def revert(self, pids: Sequence[int]) -> list[dict[str, Any]]:
        """Take the hotpatch out of all processes."""
        return self._processes(["revert", "--name", NAME, *_pids(pids)])

    # --- all together ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Tell the whole story."""
        self.work.mkdir(parents=True, exist_ok=True)
        source = self.fetch()
        self.build_vulnerable()
        self.story.step("Start it under steady load, and show the hole")
        with Server(self.binary) as server, Load(server.port) as load:
            workers = server.workers()
            pids = [server.master, *workers]
            self.story.say(
                f"nginx runs: master {server.master}, workers {' and '.join(map(str, workers))} (as user "
                f"{server.user_of(workers[0])}), under steady requests from wrk until the end of this demo."
            )
            births = {pid: start_time(pid) for pid in pids}
            self.hole_is_open(server)
            on_disk = _sha256(mapped_file(server.master))
            self.build_hotpatch(source)
            load.check()

            self.story.step("Apply it to the running master and workers, live")
            applied = self.apply(pids)
            self._midflight(["status", *_pids(workers[:1])])

            self.story.step("Prove it: the hole is closed, the file on disk is untouched, the memory is explained")
            answers = server.ask()
            self._show_answers(answers)
            if any(answer.hole for answer in answers):
                raise DemoError("the hole is still open")
            unchanged = _sha256(mapped_file(server.master)) == on_disk
            self.story.say(
                f"sha256 of {self.binary.name} on disk: {on_disk[:16]}…, before and after: {_same(unchanged)}"
            )
            self.check(pids)

            self.story.step("Take it out again, and see the hole come back")
            reverted = self.revert(pids)
            answers_after = server.ask()
            self._show_answers(answers_after)
            if not all(answer.hole for answer in answers_after):
                raise DemoError("the hole did not come back after the revert")
            self.check(pids)
            survived = {pid: start_time(pid) for pid in [server.master, *server.workers()]} == births
            report = load.finish()
        self._summary(applied, reverted, report, unchanged, survived)

    def _summary(
        self,
        applied: list[dict[str, Any]],
        reverted: list[dict[str, Any]],
        report: LoadReport,
        unchanged: bool,
        survived: bool,
    ) -> None:
        self.story.step("Summary")
        stops = [1000 * max(process["stopped"] for process in side) for side in (applied, reverted)]
        rows = [
            (f"{CVE} before", "open in every worker"),
            ("after midflight apply", "closed in every worker"),
            ("after midflight revert", "open again in every worker"),
            ("processes", f"{len(applied)}, none restarted" if survived else "SOME WERE RESTARTED"),
            ("requests during all of this", f"{report.requests:,} in {report.seconds:.0f} s"),
            ("requests that failed", f"{report.failed:,}"),
            ("longest standstill, apply", f"{stops[0]:.2f} ms"),
            ("longest standstill, revert", f"{stops[1]:.2f} ms"),
            ("slowest answer of all", f"{1000 * report.slowest:.1f} ms (typical {1000 * report.typical:.1f} ms)"),
            ("nginx on disk", "unchanged" if unchanged else "CHANGED"),
            ("code in memory", "every byte explained by disk and ledger (midflight check)"),
            ("the whole demo", f"{time.monotonic() - self.story.started:.0f} s"),
        ]
        for label, text in rows:
            self.story.row(label, text)
        print(flush=True)
        if report.failed or not unchanged or not survived:
            raise DemoError("not everything went as it should; see the summary above")
        self.story.say(
            "A real server lost a real vulnerability while it served every request: no restart, no file changed, and "
            "out again as easily as in."
        )

    # --- small things ----------------------------------------------------------------------------------------------

    def _show_answers(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            verdict = "VULNERABLE" if answer.hole else "fixed"
            self.story.say(f"worker {answer.worker}: {QUESTION} -> {answer.body}   {verdict}")

    def _midflight(self, arguments: Sequence[str]) -> None:
        """Run a midflight command as a person would, and show it with its output."""
        self.story.show(_as_typed(["midflight", *arguments]), bright=True)
        quiet = [] if arguments[0] == "build" else ["--quiet"]
        with subprocess.Popen(
            [self.midflight, *arguments, *quiet], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                self.story.show(line if len(line) < 100 else f"{line[:98]}…")
        if running.returncode != 0:
            raise DemoError(f"midflight {arguments[0]} ended with exit status {running.returncode}")

    def _processes(self, arguments: Sequence[str]) -> list[dict[str, Any]]:
        """Run a midflight command that reports on processes, and show its figures."""
        self.story.show(_as_typed(["midflight", *arguments]), bright=True)
        done = subprocess.run([self.midflight, *arguments, "--json"], capture_output=True, text=True, check=False)
        processes: list[dict[str, Any]] = json.loads(done.stdout or "{}").get("processes", [])
        for process in processes:
            stopped = f"stood still for {1000 * process['stopped']:.2f} ms"
            reason = f" ({process['reason']})" if process["reason"] else ""
            self.story.show(f"process {process['pid']}: {process['outcome']}, {stopped}{reason}")
        if done.returncode != 0 or not processes:
            raise DemoError(f"midflight {arguments[0]} ended with exit status {done.returncode}: {done.stderr.strip()}")
        return processes

    def _quiet(self, command: Sequence[str], folder: Path, log_name: str) -> None:
        """Run a long command: its output into a log, and a sign of life on a terminal."""
        log = self.work / log_name
        self.story.show("$ " + " ".join(command[2:] if command[:2] == ["sh", "-c"] else command), bright=True)
        began = time.monotonic()
        with log.open("w") as output:
            running = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
            try:
                while running.poll() is None:
                    time.sleep(0.2)
                    if sys.stdout.isatty():
                        print(f"\r      {time.monotonic() - began:4.0f} s", end="", flush=True)
            finally:
                if running.poll() is None:
                    running.kill()
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")
        if running.returncode != 0:
            self.story.show("\n".join(log.read_text(errors="replace").splitlines()[-15:]))
            raise DemoError(f"the build failed; all of its output is in {log}")
        self.story.say(f"done in {time.monotonic() - began:.0f} s")

    def _made(self, tree: Path, key: str) -> bool:
        """Whether ``tree`` was made whole, from the same things."""
        note = tree.with_name(f"{tree.name}.made")
        return tree.is_dir() and note.exists() and note.read_text() == key

    def _mark(self, tree: Path, key: str) -> None:
        tree.with_name(f"{tree.name}.made").write_text(key)


def _pids(pids: Sequence[int]) -> list[str]:
    return [word for pid in pids for word in ("--pid", str(pid))]


def _as_typed(command: Sequence[str]) -> str:
    """A command as one types it into a shell, over several lines when it is long; an option stays with its value."""
    pieces: list[str] = []
    for word in command:
        shown = shlex.quote(os.path.relpath(word) if word.startswith(str(ROOT)) else word)
        if pieces and pieces[-1].startswith("-") and " " not in pieces[-1] and not shown.startswith("-"):
            pieces[-1] += f" {shown}"
        else:
            pieces.append(shown)
    lines = ["$"]
    for piece in pieces:
        if len(lines[-1]) + len(piece) > 92 and lines[-1].strip() != "$":
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {piece}"
    return "\n".join(lines)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same(equal: bool) -> str:
    return "the same" if equal else "DIFFERENT"


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "demo", help="where everything is made")
    parser.add_argument("--fresh", action="store_true", help="use nothing of an earlier run, but for downloads")
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        print(f"demo: this is a {platform.machine()} machine, and the demo needs x86_64", file=sys.stderr)
        return 2
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    try:
        Demo(options.work.resolve()).run()
    except (DemoError, SourceError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nginx and wrk are ended", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
