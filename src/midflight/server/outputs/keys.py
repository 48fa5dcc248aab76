"""The keys of what leaves the server: of its JSON Web Tokens, and the one that webhooks' secrets are derived from.

They are files in the server's folder, never in the database. Several API processes share copies of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Request
from starlette.datastructures import State

from midflight.server.access.masterkey import MasterKey
from midflight.server.outputs.jwtkeys import JwtKeys
from midflight.server.settings import Settings


@dataclass(frozen=True, slots=True)
class OutputKeys:
    """What a server process signs its outputs with."""

    jwt: JwtKeys
    master: MasterKey


def create(settings: Settings) -> OutputKeys:
    """Make those that are missing, and read all.

    Raises:
        InputError: one cannot be read.
    """
    return _read(settings, create=True)


def load(settings: Settings) -> OutputKeys:
    """Read the keys.

    Raises:
        InputError: one is missing or cannot be read.
    """
    return _read(settings, create=False)


def of_request(request: Request) -> OutputKeys:
    """The keys of the app, read when they are first needed."""
    state: State = request.app.state
    if not hasattr(state, "output_keys"):
        state.output_keys = load(request.app.state.settings)
    return cast(OutputKeys, state.output_keys)


def _read(settings: Settings, create: bool) -> OutputKeys:
    jwt = JwtKeys.load(settings.path(settings.token_keys), create)
    return OutputKeys(jwt, MasterKey.load(settings.path(settings.master_key), create))
