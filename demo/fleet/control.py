"""The server of the fleet, as an administrator runs it: by commands, by the API, and by the offline keys of its
repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx2

from demo.fleet import daemon
from demo.fleet.daemon import run_midflight
from demo.server import DemoError

PATIENCE = 90.0
USER = "ann"


def until(what: Callable[[], Any], wanted: str, patience: float = PATIENCE) -> Any:
    """Wait for something to be true.

    Raises:
        DemoError: it did not become true in time.
    """
    deadline = time.monotonic() + patience
    while not (found := what()):
        if time.monotonic() > deadline:
            raise DemoError(f"{wanted}: not within {patience:.0f} s")
        time.sleep(0.2)
    return found


class ControlPlane:
    """A server in a folder. Its processes are started by ``start``, and may be killed.

    Args:
        url: how devices reach it.
        database: of PostgreSQL; None: SQLite.
        listens: host and port of each API process.
        proxied: something else speaks TLS, with the server's key.
    """

    def __init__(
        self, folder: Path, url: str, listens: tuple[str, ...], database: str | None = None, proxied: bool = False
    ) -> None:  # fmt: skip
        self.folder, self.url, self._listens, self._database = folder, url, listens, database
        words: list[str | Path] = ["server", "init", folder, "--listen", listens[0], "--public-url", url]
        made = run_midflight(*words, *(("--database", database) if database else ()))
        self.pin = str(made["pin"])
        # what server init says to do: its offline keys go to where the server cannot read them
        self.vault = folder.parent / "vault"
        (folder / "offline-keys").rename(self.vault)
        with (folder / "server.toml").open("a") as file:
            file.write("checkin_interval = 5\ncheckin_active_interval = 1\nworker_interval = 1\n")
            file.write("tls = false\n" if proxied else "")
        person = run_midflight("server", "user", "add", folder, USER, "--role", "admin", "--generate")
        self.password = str(person["password"])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client = httpx2.Client(base_url=url, verify=False, timeout=30)
        self.log = folder / "log"

    # -- processes -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what does not run: API processes, and with PostgreSQL a worker."""
        commands = {listen: ["run", str(self.folder), "--listen", listen] for listen in self._listens}
        if self._database:
            commands["worker"] = ["worker", str(self.folder)]
        with self.log.open("ab") as log:
            for name, words in commands.items():
                if name not in self.processes:
                    self.processes[name] = subprocess.Popen(
                        [sys.executable, "-m", "midflight", "server", *words],
                        env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True,
                    )  # fmt: skip

    def kill(self, *names: str, how: int = signal.SIGKILL) -> None:
        """End some of its processes, or all."""
        for name in names or tuple(self.processes):
            self.processes[name].send_signal(how)
        for name in names or tuple(self.processes):
            self.processes.pop(name).wait(30)

    def stop(self) -> None:
        """End all in order."""
        self.kill(how=signal.SIGTERM)

    def wait(self) -> None:
        """Until it serves."""
        until(self._ready, f"the server answers (its log is {self.log})")

    def _ready(self) -> bool:
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    # -- the administrator ---------------------------------------------------------------------------------------

    def sign_in(self) -> None:
        """As a person does."""
        answer = self._client.post("/api/v1/login", json={"name": USER, "password": self.password})
        if answer.status_code != 204:
            raise DemoError(f"signing in: {answer.status_code} {answer.text}")
        self._client.headers["x-csrf-token"] = answer.headers["x-csrf-token"]

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """A request to the API that must succeed; returns its JSON."""
        answer = self._client.request(method, f"/api/v1{path}", json=body)
        if answer.status_code >= 300:
            raise DemoError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        """GET; as long as the server is away, it is asked again."""

        def asked() -> Any:
            try:
                return (self.request("GET", path),)
            except (httpx2.TransportError, DemoError) as error:
                if isinstance(error, DemoError) and not any(f": {code} " in str(error) for code in (502, 503, 504)):
                    raise
                return None

        return until(asked, f"GET {path}")[0]

    def post(self, path: str, **body: Any) -> Any:
        """POST."""
        return self.request("POST", path, body)

    def invite(self, uses: int) -> str:
        """An enrollment token, for so many devices."""
        return str(run_midflight("server", "enroll-token", self.folder, "--uses", str(uses))["token"])

    def gate_token(self) -> str:
        """A token with which a proxy asks about compliance."""
        words = ("server", "token", "add", self.folder, USER, "nginx", "--scope", "compliance:check")
        return str(run_midflight(*words)["token"])

    # -- the holder of the offline keys --------------------------------------------------------------------------

    def release(self, *words: str | Path) -> str:
        """Stage a change with ``midflight repo``, sign and publish it; returns the path of added content."""
        repository = self.folder / "repository"
        done = run_midflight("repo", words[0], repository, *words[1:])
        run_midflight("repo", "sign", repository, "--key", self.vault / "targets.key")
        run_midflight("repo", "publish", repository)
        return str(done.get("path", ""))

    def trust_vendor(self, key: Path) -> None:
        """Have devices accept the hotpatches of a vendor."""
        self.release("server", "--hotpatch-key", key)

    def publish(self, hotpatch: Path, sequence: int, severity: str = "critical", cvss: str = "9.8") -> str:
        """A hotpatch for webd; returns the content's id."""
        self.release("add", hotpatch, "--severity", severity, "--cvss", cvss)
        self.post("/catalogue/refresh")
        return f"hotpatch:{daemon.NAME}:{sequence}"

    def publish_baseline(self, program: Path, sequence: int) -> str:
        """A release of webd; returns the content's id."""
        self.release(
            *("add", program, "--name", daemon.NAME, "--version", "1.1", "--architecture", "amd64"),
            *("--sequence", str(sequence), "--image", daemon.build_id(program), "--cve", daemon.CVE),
            *("--severity", "critical", "--cvss", "9.8"),
        )
        self.post("/catalogue/refresh")
        return f"baseline:{daemon.NAME}:{sequence}"

    # -- a rollout -----------------------------------------------------------------------------------------------

    def make_policy(self, everybody: list[str], first: list[str]) -> str:
        """A policy with two rings: some devices, then the others. Returns its id."""
        groups = [
            self.post("/groups", name="web servers", rule='hostname like "web-*"')["id"],
            self.post("/groups", name="canaries")["id"],
        ]
        self.post(f"/groups/{groups[1]}/members", devices=first)
        gate = {"min_sample": 1, "max_failures": 0, "soak": "PT20S"}
        document = {
            "audience": {"groups": groups[:1]},
            "rings": [
                {"name": "canaries", "kind": "group", "group": groups[1], "gate": gate},
                {"name": "all others", "kind": "rest", "gate": gate},
            ],
            "restart": "services",
            "revert_on_halt": True,
            "check_in_s": 10,
            "compliance": {"grace": "PT0S", "validity": "P7D"},
        }
        policy = str(self.post("/policies", name="web servers", document=document)["id"])
        until(
            lambda: self.get(f"/policies/{policy}")["devices"] == len(everybody), "the policy governs its devices"
        )  # fmt: skip
        return policy

    def deploy(self, content: str, policy: str) -> str:
        """Order a deployment, and approve it."""
        made = str(self.post("/deployments", content=content, policy=policy)["id"])
        self.post(f"/deployments/{made}/approve")
        return made

    def effective(self, deployment: str) -> tuple[str, str]:
        """How a deployment stands, and why."""
        shown = self.get(f"/deployments/{deployment}")
        return shown["effective"], shown["why"]["reason"]

    def states(self, deployment: str) -> dict[str, str]:
        """How each device stands in it."""
        lines = self.get(f"/deployments/{deployment}/devices")["items"]
        return {line["device"]: line["state"] for line in lines}

    def compliance(self) -> dict[str, tuple[str, str]]:
        """State and reason of each device."""
        lines = self.get("/compliance/devices")["items"]
        return {
            line["device"]: (line["state"], cast(dict[str, str], line["why"] or {}).get("reason", "")) for line in lines
        }
