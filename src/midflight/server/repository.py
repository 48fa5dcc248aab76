"""The TUF repository as the server has it: a folder that is published below /repo, signed by keys that are not here."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization import DeserializationError

from midflight.errors import InputError
from midflight.patch.fields import FieldError
from midflight.server.settings import Settings
from midflight.trust.content import Catalog, catalog_of
from midflight.trust.publishing import renew_online
from midflight.trust.repositoryfolder import SETTINGS as REPOSITORY_SETTINGS

PUBLIC = "public"
"""What is served, below the repository's folder (midflight.trust.repository)."""


def public_folder(settings: Settings) -> Path:
    """The folder that any web server may serve as /repo."""
    return settings.path(settings.repository) / PUBLIC


def newest_root(settings: Settings) -> str:
    """The newest root metadata (JSON text), for a device that enrolls.

    Raises:
        InputError: nothing is published.
    """
    path = _newest(settings, "root")
    if path is None:
        folder = settings.path(settings.repository)
        raise InputError(f"there is no root metadata in {folder}; publish a repository there (midflight repo publish)")
    return path.read_text(encoding="utf-8")


def published_catalog(settings: Settings) -> Catalog | None:
    """What is published; None: nothing is yet.

    Raises:
        InputError: it cannot be read.
    """
    path = _newest(settings, "targets")
    if path is None:
        return None
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
        if not isinstance(metadata.signed, Targets):
            raise FieldError("is not targets metadata")
        return catalog_of(metadata.signed)
    except (OSError, DeserializationError, RepositoryError, FieldError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; publish the repository again") from None


def renew(settings: Settings, now: datetime) -> datetime | None:
    """Sign the repository's timestamp and snapshot anew where that is due; nothing is done when another server does
    that (there is no online key here). Returns when to call again; None: not here, or nothing is published yet.

    Raises:
        InputError: the online key cannot be used.
    """
    folder = settings.path(settings.repository)
    if not (folder / REPOSITORY_SETTINGS).exists() or _newest(settings, "targets") is None:
        return None
    return renew_online(folder, now)


def _newest(settings: Settings, role: str) -> Path | None:
    folder = public_folder(settings) / "metadata"
    versions = [(int(n), path) for path in folder.glob(f"*.{role}.json") if (n := path.name.split(".")[0]).isdigit()]
    return max(versions)[1] if versions else None
