"""Makes a new server: a folder with settings, database and keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import InputError
from midflight.server import keys
from midflight.server.api.deps import make_bootstrap_token
from midflight.server.outputs import keys as output_keys
from midflight.server.settings import FILE_NAME, Settings, written
from midflight.server.store.database import Database
from midflight.server.store.migrate import upgrade


@dataclass(frozen=True, slots=True)
class Installed:
    """What was made."""

    settings: Settings
    database: str
    """The database's URL, without a password."""
    bootstrap_token: str
    pin: str
    """Of the TLS key; empty behind a proxy."""


def install(
    folder: Path, *, database: str | None = None, listen: str = "127.0.0.1:8443", public_url: str | None = None
) -> Installed:
    """Make a server in ``folder``.

    Raises:
        InputError: there is one already, or an argument is wrong.
        DatabaseError: the database does not answer.
    """
    folder = folder.absolute()
    if (folder / FILE_NAME).exists():
        raise InputError(
            f"{folder / FILE_NAME} exists; run midflight server upgrade {folder}, or choose another folder"
        )
    values: dict[str, str | int | bool] = {"listen": listen}
    values["public_url"] = public_url or f"https://{listen.replace('0.0.0.0', 'localhost')}"
    if database:
        values["database"] = database
    settings = Settings.of(folder, values)
    settings.address  # noqa: B018 - refuses what is none before anything is made
    db = Database(settings.database_url)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        output_keys.create(settings)
        db.check()
        upgrade(db)
        keys.create(settings)
        with db.write() as session:
            token = make_bootstrap_token(session)
    finally:
        db.close()
    if settings.sqlite:
        for path in folder.glob("midflight.db*"):
            path.chmod(0o600)
    descriptor = os.open(folder / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(written(values))
    pin = keys.tls_pin(settings)
    return Installed(settings, db.url.render_as_string(hide_password=True), token, str(pin or ""))
