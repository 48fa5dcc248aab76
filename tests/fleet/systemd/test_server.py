"""The server as a service of a systemd that runs: an account of its own, a device beside it, a restart."""

from __future__ import annotations

from pathlib import Path

from tests.commands import until
from tests.fleet.systemd.machine import ENVIRONMENT, Booted
from tests.fleet.systemd.thing import Things

FOLDER = "/srv/midflight"
_LOGIN = """
import json, ssl, sys, urllib.request
body = json.dumps({"name": sys.argv[1], "password": sys.argv[2]}).encode()
request = urllib.request.Request("https://127.0.0.1/api/v1/login", body, {"content-type": "application/json"})
print(urllib.request.urlopen(request, context=ssl._create_unverified_context()).status)
"""


def test_the_server_serves_under_an_account_that_can_do_nothing_else(
    machine: Booted, midflight_wheel: Path, things: Things
) -> None:
    machine.install(midflight_wheel, "[server]")
    machine.run("useradd", "--system", "--home-dir", FOLDER, "--create-home", "midflight")
    as_it = ("setpriv", "--reuid=midflight", "--regid=midflight", "--clear-groups", "--")
    machine.run(*as_it, "midflight", "server", "init", f"{FOLDER}/server", "--listen", "127.0.0.1:443",
                "--public-url", "https://127.0.0.1")  # fmt: skip
    machine.midflight("server", "install", f"{FOLDER}/server")
    pid = machine.main_pid("midflight-server")
    status = (machine.root_now / f"proc/{pid}/status").read_text()
    assert "\nUid:\t0\t" not in status and "\nSeccomp:\t2\n" in status and "\nNoNewPrivs:\t1\n" in status

    invitation = machine.midflight("server", "enroll-token", f"{FOLDER}/server")
    enroll = ("agent", "enroll", "--server", "https://127.0.0.1", "--token", invitation["token"])
    trust = ("--pin", invitation["pin"], "--root-sha256", invitation["root"])
    until(lambda: machine.run("bash", "-c", "true < /dev/tcp/127.0.0.1/443", status=None) == "", "the server listens")
    machine.midflight(*enroll, *trust)
    machine.midflight("agent", "install")
    until(
        lambda: machine.midflight("agent", "status")["server"]["instructions"] == 1, "the device has its instructions"
    )

    person = machine.midflight("server", "user", "add", f"{FOLDER}/server", "ada", "--role", "admin", "--generate")
    assert machine.run(f"{ENVIRONMENT}/bin/python", "-c", _LOGIN, "ada", person["password"]) == "204\n"

    machine.reboot()
    until(lambda: machine.show("midflight-server", "ActiveState") == "active", "the server starts with the machine")
    assert machine.show("midflight-server", "NRestarts") == "0"
    machine.midflight("server", "uninstall")
    assert machine.show("midflight-server", "LoadState") == "not-found"
    assert machine.run(*as_it, "midflight", "server", "audit-verify", f"{FOLDER}/server")
