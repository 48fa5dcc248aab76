"""The server's settings: one TOML file in the server's folder, written by ``midflight server init``.

Every path may be relative to the folder of the file. An environment variable ``MIDFLIGHT_SERVER_<NAME>`` (for example
``MIDFLIGHT_SERVER_DATABASE``) wins over the file, so that secrets such as a database password need not stand in it.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midflight.errors import InputError

FILE_NAME = "server.toml"
ENVIRONMENT = "MIDFLIGHT_SERVER_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that differs from one server to another. Durations are in seconds."""

    folder: Path
    """Where keys, the SQLite file and the repository live; relative paths start here."""
    database: str = "sqlite:///midflight.db"
    """SQLAlchemy URL: ``sqlite:///FILE`` or ``postgresql+psycopg://USER:PASSWORD@HOST/NAME``."""
    database_connections: int = 8
    """Connections that one API process keeps open at most."""
    listen: str = "127.0.0.1:8443"
    """``HOST:PORT`` to listen on."""
    public_url: str = "https://localhost:8443"
    """How devices and people reach the server."""
    tls: bool = True
    """Serve TLS ourselves; false behind a proxy that does."""
    tls_certificate: Path = Path("tls.crt")
    tls_key: Path = Path("tls.key")
    ca_certificate: Path = Path("ca.crt")
    """The authority that signs the certificates of devices."""
    ca_key: Path = Path("ca.key")
    instruction_key: Path = Path("instructions.key")
    """Signs which device gets what (online; replaced without touching content)."""
    token_keys: Path = Path("tokens")
    """Folder of the keys that sign compliance tokens and security events; all are published, the newest signs."""
    master_key: Path = Path("master.key")
    """The signing secrets of webhooks are derived from it."""
    repository: Path = Path("repository")
    """The TUF repository (midflight repo); what it publishes is served below /repo."""
    checkin_interval: int = 300
    """How often a device checks in when nothing is going on."""
    checkin_active_interval: int = 60
    """How often it does while something is on its way to it."""
    checkin_limit: int = 64
    """Check-ins that one process works on or lets wait at a time; more are answered 503 with Retry-After."""
    worker_interval: int = 5
    """How often background work looks for something to do (embedded mode: in the one process)."""
    embedded_worker: bool = True
    """Do background work inside the API process. Off when ``midflight server worker`` runs."""
    keep_events_days: int = 30
    keep_outcomes_days: int = 400
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Tables of the file ([oidc], [webhooks], …) that other parts read."""

    @classmethod
    def load(cls, folder: Path, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read ``folder/server.toml``.

        Raises:
            InputError: it does not exist, is no TOML, or holds something that is not known.
        """
        path = folder / FILE_NAME
        try:
            document = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; make a server with midflight server init {folder}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no TOML: {error}; mend it") from None
        return cls.of(folder, document, environment, where=str(path))

    @classmethod
    def of(
        cls,
        folder: Path,
        document: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        where: str = "settings",
    ) -> Settings:
        """Settings from a parsed document and an environment.

        Raises:
            InputError: a name is not known, or a value is of the wrong type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("folder", "extra")}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, value in document.items():
            if isinstance(value, dict):
                extra[name] = value
            elif name not in fields:
                raise InputError(f"{where}: there is no setting {name!r}; there are: {', '.join(sorted(fields))}")
            else:
                values[name] = value
        for name in fields:
            if (given := (environment or {}).get(ENVIRONMENT + name.upper())) is not None:
                values[name] = given
        converted = {name: _converted(where, fields[name], value) for name, value in values.items()}
        return cls(folder=folder.absolute(), **converted, extra=extra)

    def path(self, value: Path) -> Path:
        """A path of these settings, absolute."""
        return self.folder / value

    @property
    def database_url(self) -> str:
        """The URL with the path of a relative SQLite file made absolute."""
        prefix = "sqlite:///"
        if self.database.startswith(prefix) and not self.database.startswith(prefix + "/"):
            return prefix + str(self.folder / self.database.removeprefix(prefix))
        return self.database

    @property
    def sqlite(self) -> bool:
        """Whether the embedded database is used."""
        return self.database.startswith("sqlite")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on.

        Raises:
            InputError: ``listen`` is not HOST:PORT.
        """
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit() or not 0 <= int(port) < 65536:
            raise InputError(f"listen = {self.listen!r} is not HOST:PORT; give for example 0.0.0.0:8443")
        return host.strip("[]"), int(port)


def _converted(where: str, field_: dataclasses.Field[Any], value: Any) -> Any:
    kind = str(field_.type)
    try:
        if kind == "bool":
            if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
                return value.lower() in ("true", "1")
            if isinstance(value, bool):
                return value
        elif kind == "int":
            if not isinstance(value, bool) and int(value) >= 0:
                return int(value)
        elif isinstance(value, str) and value:
            return Path(value) if kind == "Path" else value
    except (TypeError, ValueError):
        pass
    raise InputError(f"{where}: {field_.name} = {value!r} is no {kind.lower()}; mend it")


def written(values: Mapping[str, str | int | bool]) -> str:
    """The text of a settings file with these values."""
    lines = ["# Settings of a Midflight server; all of them: docs/user-guide.md, section The server.", ""]
    for name, value in values.items():
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, int):
            text = str(value)
        else:
            text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"
