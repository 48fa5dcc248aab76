"""Makes a new server: a folder with settings, database and keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from midflight.errors import InputError
from midflight.server import keys
from midflight.server.api.deps import make_bootstrap_token
from midflight.server.outputs import keys as output_keys
from midflight.server.repository import newest_root
from midflight.server.settings import FILE_NAME, Settings, written
from midflight.server.store.database import Database
from midflight.server.store.migrate import upgrade
from midflight.server.work.queue import ensure_schema
from midflight.trust.keys import create_key_pair, load_public_key
from midflight.trust.publishing import publish
from midflight.trust.repository import Repository
from midflight.trust.repositoryfolder import RepositoryFolder
from midflight.trust.serverrecord import ServerRecord
from midflight.trust.signers import open_signer, public_key_of
from midflight.trust.signing import sign

OFFLINE_KEYS = "offline-keys"
ONLINE_KEY = "online.key"


@dataclass(frozen=True, slots=True)
class Installed:
    """What was made."""

    settings: Settings
    database: str
    """The database's URL, without a password."""
    bootstrap_token: str
    pin: str
    """Of the TLS key; empty behind a proxy."""
    root: str
    """sha256 of the repository's first root, in hex: what devices are enrolled with."""
    offline_keys: Path | None
    """The folder of the repository's offline keys, when they were made here: to be moved away."""


def install(
    folder: Path,
    *,
    database: str | None = None,
    listen: str = "127.0.0.1:8443",
    public_url: str | None = None,
    repository: Path | None = None,
) -> Installed:
    """Make a server in ``folder``.

    Args:
        repository: an existing TUF repository; None: one is made, with offline keys that are to be moved away.

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
    if repository is not None:
        values["repository"] = str(RepositoryFolder(repository.absolute()).folder)
    settings = Settings.of(folder, values)
    settings.address  # noqa: B018 - refuses what is none before anything is made
    db = Database(settings.database_url)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        output_keys.create(settings)
        db.check()
        upgrade(db)
        if not db.sqlite:
            ensure_schema(db)
            values["embedded_worker"] = False
        keys.create(settings)
        offline = None if repository is not None else _make_repository(settings, datetime.now(UTC))
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
    root = sha256(newest_root(settings).encode()).hexdigest()
    return Installed(settings, db.url.render_as_string(hide_password=True), token, str(pin or ""), root, offline)


def _make_repository(settings: Settings, now: datetime) -> Path:
    """A repository of our own, published with the server's record in it; returns the folder of its offline keys."""
    folder, offline = settings.path(settings.repository), settings.folder / OFFLINE_KEYS
    offline.mkdir(mode=0o700)
    folder.mkdir(mode=0o700)
    create_key_pair(folder / ONLINE_KEY, folder / "online.pub")
    (folder / "online.pub").unlink()
    pairs = {name: create_key_pair(offline / f"{name}.key", offline / f"{name}.pub") for name in ("root", "targets")}
    public = {name: public_key_of(str(offline / f"{name}.pub")) for name in pairs}
    made = Repository.create(folder, [public["root"]], 1, [public["targets"]], 1, ONLINE_KEY, now)
    backup = replace(settings, tls_key=offline / "tls-backup.key", tls_certificate=offline / "tls-backup.crt")
    keys.create_tls(backup, now)
    pins = [pin for each in (settings, backup) if (pin := keys.tls_pin(each)) is not None]
    instructions = load_public_key(settings.path(settings.instruction_key).with_suffix(".pub"))
    made.set_server_record(ServerRecord((settings.public_url,), tuple(pins), (instructions,)), now)
    for name in pairs:
        sign(made, open_signer(str(offline / f"{name}.key")), name)
    publish(made, now)
    return offline
