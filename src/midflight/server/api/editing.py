"""Edits that do not overwrite each other: every thing that people edit has a version, shown as ETag, asked for as
If-Match."""

from __future__ import annotations

import re
from typing import Protocol

from fastapi import Request, Response

from midflight.server.api.problems import Problem

_TAG = re.compile(r'(?:W/)?"v(\d+)"')


class Versioned(Protocol):
    """A row with a version."""

    version: int


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"v{version}"'


def shown(request: Request, response: Response, row: Versioned) -> bool:
    """Set the ETag; returns whether the client has this version already (then answer 304)."""
    tag = etag(row.version)
    response.headers["ETag"] = tag
    return tag in {part.strip() for part in request.headers.get("if-none-match", "").split(",")}


def check_version(request: Request, row: Versioned) -> None:
    """Let an edit go on only if it is of the version that is there.

    Raises:
        Problem: 428 without If-Match, 412 when somebody else edited it meanwhile.
    """
    wanted = request.headers.get("if-match")
    if wanted is None:
        raise Problem(428, "version-required", "say which version you edit: If-Match with the ETag that you were shown")
    if wanted.strip() == "*":
        return
    versions = {int(found[1]) for part in wanted.split(",") if (found := _TAG.fullmatch(part.strip()))}
    if row.version not in versions:
        raise Problem(
            412,
            "version-conflict",
            "somebody else changed it since you read it; read it again and repeat your change",
            {"ETag": etag(row.version)},
        )


def edited(response: Response, row: Versioned) -> None:
    """Count the version up after an edit, and show the new one."""
    row.version += 1
    response.headers["ETag"] = etag(row.version)
