"""Compliance tokens for devices: fetched by a signed request, shown to whom the device wants to enter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from midflight.patch import strictjson
from midflight.server.access.credentials import new_session
from midflight.server.api.device import sent_by
from midflight.server.api.gate import answer, issuer
from midflight.server.api.problems import Problem
from midflight.server.checkin.receive import CheckIns, Sent
from midflight.server.outputs import gate, keys, tokens

router = APIRouter(tags=["devices' own"], include_in_schema=False)

TOKEN_PATH = "/device/v1/compliance-token"
_MAX_AUDIENCE = 200
_MAX_BODY = 1024


@router.post(TOKEN_PATH)
async def issue(request: Request) -> Response:
    """A compliance token for the device that signed the request; only for compliant ones."""
    sent = await sent_by(request, _MAX_BODY)
    return await run_in_threadpool(_issue, request, sent)


def _issue(request: Request, sent: Sent) -> Response:
    checkins = cast(CheckIns, request.app.state.checkins)
    now = datetime.now(UTC)
    audience = _audience(sent.body)
    with checkins.database.write() as session:
        asked = checkins.authenticated(session, sent, now)
        verdict = gate.by_device(session, asked.device, asked.certificate.fingerprint, now)
    if not verdict.admitted:
        return answer(verdict)
    claims = tokens.compliance_claims(
        issuer(request),
        verdict.device,
        gate.thumbprint(verdict.fingerprint),
        verdict.state,
        audience,
        new_session(),
        now,
    )
    token = keys.of_request(request).jwt.sign(claims, tokens.COMPLIANCE_TYPE)
    document = {"token": token, "expires": claims["exp"]}
    return Response(orjson.dumps(document), 200, {"Cache-Control": "no-store"}, "application/json")


def _audience(body: bytes) -> str:
    try:
        document = strictjson.loads(body) if body else {}
    except ValueError:
        document = None
    audience = document.get("audience", "") if isinstance(document, dict) else None
    if not isinstance(audience, str) or len(audience) > _MAX_AUDIENCE:
        raise Problem(400, "malformed", 'the body is {"audience": "…"} with at most 200 characters, or empty')
    return audience
