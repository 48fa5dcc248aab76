"""A Windows device with a server, for :mod:`tests.wine.test_fleet`: run by the Windows Python.

Enrolls, installs the agent as a service, and starts a program; from then on writes a line whenever the program answers
something else, until there is a file ``END``. What it found is the last line, as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from midflight.agent.fleet import FOLDER
from midflight.machine.ownership import changeable_by
from midflight.machine.places import log_folder, machine_folder, state_folder
from tests.wine.harness import Target, clean, midflight

PATIENCE = 240.0


def main(server: str, token: str, pin: str, last: str) -> None:
    """See the module; ``last`` is the path of END."""
    end = Path(last)
    remove()
    try:
        print(
            "enrolled", midflight("agent", "enroll", "--server", server, "--token", token, "--pin", pin).out, flush=True
        )
        midflight("agent", "install")
        with Target("threads.exe", "2") as target:
            said, deadline = "", time.monotonic() + PATIENCE
            while not end.exists() and time.monotonic() < deadline:
                if (answer := target.ask()) != said:
                    said = answer
                    print("answer", said, flush=True)
                time.sleep(0.2)
            clean(target)
        found = {
            "status": midflight("agent", "status", "--json", status=None).json,
            "others": {path.name: changeable_by(path) for path in (state_folder() / FOLDER).iterdir()},
        }
        print(json.dumps(found), flush=True)
    finally:
        folder = log_folder()
        if folder is not None and (folder / "agent.log").exists():
            print((folder / "agent.log").read_text(), file=sys.stderr)
        midflight("agent", "uninstall", status=None)
        remove()


def remove() -> None:
    """No state of an earlier agent."""
    for name in ("config", "state", "hotpatches", "log"):
        shutil.rmtree(machine_folder() / name, ignore_errors=True)
