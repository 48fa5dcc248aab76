"""The audit log, and whether it is still the one that was written."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request, Response

from midflight.server.console.api import Refused
from midflight.server.console.web import SignedIn, new_router, query_of

router = new_router()


@router.get("/audit")
async def audit(console: SignedIn, request: Request) -> Response:
    """Entries, newest first."""
    wanted = query_of(request, "before", "actor", "target")
    found = await console.api.get("/api/v1/audit", limit=50, **wanted)
    head = await console.api.get("/api/v1/audit/head")
    items = [_shown(item) for item in found["items"]]
    return console.page("audit.html", items=items, next=found["next"], head=head, wanted=wanted)


@router.get("/audit/verification")
async def verification(console: SignedIn) -> Response:
    """Verify the whole chain; a fragment."""
    try:
        found = await console.api.get("/api/v1/audit/verification")
    except Refused as error:
        return console.page("audit_verified.html", error=error, found=None)
    return console.page("audit_verified.html", error=None, found=found)


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    words = _words(item["detail"])
    signed_in = item["target"] if item["action"] == "login" else ""
    # the first name is the actor's; one of a body (of what was made) comes after it
    name = next((value for key, value in words if key == "name"), "") if item["actor"] else ""
    return {**item, "words": words, "who": name or signed_in or item["actor"] or item["actor_kind"]}


def _words(detail: Any) -> list[tuple[str, str]]:
    """The detail of an entry (JSON text), flat."""
    try:
        document = json.loads(detail) if isinstance(detail, str) and detail else detail
    except ValueError:
        return [("detail", str(detail))]
    if not isinstance(document, dict):
        return [("detail", str(document))] if document else []
    body = document.pop("body", None)
    pairs = [*document.items(), *(body.items() if isinstance(body, dict) else [("body", body)] if body else [])]
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in pairs]
