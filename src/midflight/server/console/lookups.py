"""Names of things by their ids, for pages that show ids of other things."""

from __future__ import annotations

from typing import Any

from midflight.server.console.api import Refused
from midflight.server.console.web import Console

_MOST = 5
"""Pages that are read at most; beyond them an id stands for itself."""


async def everything(console: Console, what: str, most: int = _MOST, **query: str) -> list[dict[str, Any]]:
    """All items of a list (up to ``most`` pages); none when the person may not see them."""
    items: list[dict[str, Any]] = []
    after: str | None = None
    for _ in range(most):
        try:
            found = await console.api.get(f"/api/v1/{what}", limit=500, after=after, **query)
        except Refused as error:
            if error.status in (403, 404):
                return items
            raise
        items += found["items"]
        after = found["next"]
        if after is None:
            break
    return items


async def names(console: Console, what: str) -> dict[str, str]:
    """Names by id."""
    return {item["id"]: item["name"] for item in await everything(console, what)}


async def people(console: Console) -> dict[str, str]:
    """Names of accounts by the id of an actor (``user:ID``), for whoever may see accounts."""
    if not console.may("accounts:read"):
        return {}
    items = (await console.api.get("/api/v1/accounts"))["items"]
    return {f"user:{item['id']}": item["name"] for item in items}
