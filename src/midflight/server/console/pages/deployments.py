"""Deployments: the list, and one with its rings and gates, live."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response

from midflight.server.console.api import Refused, below
from midflight.server.console.lookups import names, people
from midflight.server.console.times import local_time
from midflight.server.console.web import Console, SignedIn, digest, done, new_router, query_of
from midflight.server.domain.model import DeviceState, Effective

router = new_router()
_ENDED = ("stopped_by_request", "done_reverted", "faulted_revoked", "faulted_outdated", "faulted_superseded")
_WAITS = ("awaiting_approval", "awaiting_second_approval", "no_approval_rule")


@router.get("/deployments")
async def deployments(console: SignedIn, request: Request) -> Response:
    """The list, newest first."""
    wanted = query_of(request, "policy", "effective", "after")
    found, policies = await asyncio.gather(
        console.api.get("/api/v1/deployments", limit=50, **wanted), names(console, "policies")
    )
    rest = {name: value for name, value in wanted.items() if name != "after"}
    values = {"items": found["items"], "next": found["next"], "wanted": wanted, "rest": rest}
    return console.page("deployments.html", policies=policies, states=list(Effective), **values)


@router.get("/deployments/{id}")
async def deployment(console: SignedIn, request: Request, id: str) -> Response:
    """One deployment."""
    return await _deployment(console, request, id)


@router.get("/deployments/{id}/live")
async def live(console: SignedIn, request: Request, id: str) -> Response:
    """What changes of it while it runs; 204 when nothing did since ``seen``."""
    stands = await _standing(console, request, id)
    if request.query_params.get("seen") == stands["seen"]:
        return Response(status_code=204)
    return console.page("deployments_live.html", **stands, **await _around(console, stands["deployment"]))


async def _deployment(console: Console, request: Request, id: str, error: Refused | None = None) -> Response:
    stands = await _standing(console, request, id)
    values = {**stands, **await _around(console, stands["deployment"])}
    return console.page("deployments_one.html", error.status if error else 200, error=error, **values)


async def _standing(console: Console, request: Request, id: str) -> dict[str, Any]:
    """What changes of a deployment; every open page asks for it every two seconds."""
    wanted = query_of(request, "state", "ring", "after")
    found, rings, devices = await asyncio.gather(
        console.api.get(below("deployments", id)),
        console.api.get(below("deployments", id, "rings")),
        console.api.get(below("deployments", id, "devices"), limit=50, **wanted),
    )
    reason = (found["why"] or {}).get("reason", "")
    return {
        "deployment": found,
        "rings": _rings(found, rings),
        "devices": devices,
        "wanted": wanted,
        "rest": {name: value for name, value in wanted.items() if name != "after"},
        "states": list(DeviceState),
        "present": {state for ring in rings for state, count in ring["tally"].items() if count} | {wanted["state"]},
        "seen": digest(found, [{**ring, "counted": ""} for ring in rings], devices["items"]),
        "ended": reason in _ENDED,
        "reverting": found["effective"] == "reverting" or found["requested"] == "revert",
        "waits": reason in _WAITS,
        "waiting_ring": _waiting_ring(found, reason),
    }


async def _around(console: Console, deployment: dict[str, Any]) -> dict[str, Any]:
    """What else its page tells."""
    policies, persons, content = await asyncio.gather(
        names(console, "policies"), people(console), console.api.get(below("content", deployment["content"]))
    )
    return {"policies": policies, "people": persons, "content": content}


def _rings(deployment: dict[str, Any], counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rings as the deployment began with them, each with how it stands."""
    by_number = {ring["ring"]: ring for ring in counted}
    shown = []
    for number, ring in enumerate(deployment["rings"]):
        stands = by_number.get(number)
        tally = stands["tally"] if stands else {}
        state = "passed" if deployment["ring"] > number else "waiting"
        if number == deployment["ring"] and deployment["first_offer"]:
            state = "halted" if deployment["effective"] in ("halted", "faulted") else "current"
        shown.append({"number": number, "state": state, "tally": tally, "members": sum(tally.values()), **ring})
        shown[-1]["stands"] = stands
    return shown


def _waiting_ring(deployment: dict[str, Any], reason: str) -> int | None:
    """The ring whose begin waits for a person; None: the deployment as a whole (or nothing) does."""
    if reason not in _WAITS:
        return None
    if deployment["first_offer"] is not None:
        return int(deployment["ring"]) + 1
    first = deployment["rings"][0] if deployment["rings"] else {}
    detail = (deployment["why"] or {}).get("detail", "")
    return 0 if first and detail.startswith(first["name"]) else None


@router.post("/deployments/{id}/{what}")
async def act(console: SignedIn, request: Request, id: str, what: str) -> Response:
    """Pause, resume, stop, revert, approve, reject."""
    form = await console.form()
    try:
        if what == "pause":
            body = {"until": local_time(form.one("until"), console.zone)}
            await console.api.post(below("deployments", id, "pause"), body)
        elif what in ("resume", "stop", "revert"):
            await console.api.post(below("deployments", id, what))
        elif what in ("approve", "reject"):
            ring = form.number("ring")
            word = {"approved": what == "approve", "ring": ring, "comment": form.one("comment")}
            await console.api.post(below("deployments", id, "approve"), word)
        else:
            raise Refused(404, "not-found", "there is no such act")
    except Refused as error:
        return await _deployment(console, request, id, error)
    said = {"pause": "paused", "resume": "resumed", "stop": "stopped", "approve": "approved", "reject": "rejected"}
    return done(f"/deployments/{id}", said.get(what, what))
