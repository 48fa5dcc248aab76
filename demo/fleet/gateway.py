"""nginx in front: it asks the server about every device that comes (auth_request), and, where wanted, speaks TLS for
the server's processes and spreads the devices over them."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from demo.fleet.machines import SERVER
from demo.server import DemoError

_CONFIGURATION = """\
daemon off;
user root;
worker_processes 2;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream midflight {{ {upstreams} }}
    ssl_certificate {server}/tls.crt;
    ssl_certificate_key {server}/tls.key;
    {front}
    server {{
        listen {address}:{port} ssl;
        ssl_client_certificate {server}/ca.crt;
        ssl_verify_client optional;
        root {folder}/www;
        location / {{
            auth_request /midflight;
            auth_request_set $midflight_reason $upstream_http_x_midflight_reason;
            add_header X-Midflight-Reason $midflight_reason always;
        }}
        location = /midflight {{
            internal;
            proxy_pass {scheme}://midflight/auth/compliance;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Authorization "Bearer {token}";
            # of the headers that name a device only ours counts: the client could send the others
            proxy_set_header X-SSL-Client-Cert $ssl_client_escaped_cert;
            proxy_set_header Client-Cert "";
            proxy_set_header X-Forwarded-Client-Cert "";
            proxy_set_header X-Midflight-Compliance-Token "";
        }}
    }}
}}
"""
_FRONT = """\
server {{
        listen {address}:{front_port} ssl;
        client_max_body_size 16m;
        location / {{
            proxy_pass http://midflight;
            proxy_set_header Host $http_host;
            proxy_set_header X-SSL-Client-Cert "";
            proxy_set_header Client-Cert "";
            proxy_set_header X-Forwarded-Client-Cert "";
            proxy_next_upstream error timeout non_idempotent;
            proxy_connect_timeout 2s;
        }}
    }}"""


class Gateway:
    """A running nginx.

    Args:
        server: the server's folder.
        upstreams: its processes, HOST:PORT.
        port: where devices want to be let in.
        token: of the server, scope compliance:check.
        front_port: where devices and people reach the server itself; None: they reach it without nginx.
    """

    def __init__(
        self, folder: Path, server: Path, upstreams: tuple[str, ...], port: int, token: str, front_port: int | None
    ) -> None:  # fmt: skip
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        if not Path(nginx).exists():
            raise DemoError("there is no nginx; apt-get install nginx-light (scripts/bootstrap fleet)")
        (folder / "www").mkdir(parents=True)
        (folder / "www" / "index.html").write_text("come in\n")
        self.url = f"https://{SERVER}:{port}/"
        address = SERVER
        lines = " ".join(f"server {one} max_fails=0;" for one in upstreams)
        self.configuration = folder / "nginx.conf"
        self.configuration.write_text(
            _CONFIGURATION.format(
                folder=folder, server=server, upstreams=lines, address=address, port=port, token=token,
                scheme="http" if front_port else "https",
                front=_FRONT.format(address=address, front_port=front_port) if front_port else "",
            )
        )  # fmt: skip
        self.configuration.chmod(0o600)
        self._log = folder / "output"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [nginx, "-p", str(folder), "-c", str(self.configuration)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 10
        while not (folder / "nginx.pid").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"nginx did not start: {self._log.read_text().strip()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)
