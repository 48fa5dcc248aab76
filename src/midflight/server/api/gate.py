"""Conditional access: the question of nginx and Envoy, tokens for devices, and the keys to verify them with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, cast

from fastapi import APIRouter, Request, Response

from midflight.server.api.deps import Actor, DbSession, get_settings, require
from midflight.server.api.problems import problem_response
from midflight.server.api.scopes import Scope
from midflight.server.outputs import gate, keys, tokens
from midflight.server.outputs.gate import Verdict
from midflight.server.outputs.jwtkeys import TokenRefused

router = APIRouter(tags=["conditional access"])

TOKEN_HEADER = "x-midflight-compliance-token"


@router.get("/auth/compliance", status_code=204, responses={403: {}})
def check(request: Request, session: DbSession, _actor: Annotated[Actor, require(Scope.COMPLIANCE_CHECK)]) -> Response:
    """Whether the device that a proxy speaks of is compliant: 204, or 403 with the reason in a header.

    The proxy shows an API token of its own (scope compliance:check) and passes on the certificate that the client
    proved to have, or the compliance token that the client sent. For nginx's auth_request and Envoy's ext_authz.
    """
    now = datetime.now(UTC)
    fingerprint = gate.fingerprint_of(request.headers)
    token = request.headers.get(TOKEN_HEADER)
    if token:
        try:
            claims = keys.of_request(request).jwt.verify(token, tokens.COMPLIANCE_TYPE, issuer(request), now)
        except TokenRefused as error:
            return answer(Verdict(False, reason="token_refused"), str(error))
        bound = gate.fingerprint_from(cast(dict[str, Any], claims.get("cnf") or {}).get("x5t#S256"))
        if fingerprint is not None and bound != fingerprint:
            return answer(Verdict(False, str(claims.get("sub")), reason="foreign_certificate"))
        return answer(gate.by_device(session, str(claims.get("sub")), bound, now))
    if fingerprint is None:
        return answer(Verdict(False, reason="no_certificate"))
    return answer(gate.by_certificate(session, fingerprint, now))


def answer(verdict: Verdict, detail: str = "") -> Response:
    """What the proxy (or the device) is told."""
    headers = {
        "X-Midflight-Device": verdict.device,
        "X-Midflight-Compliance": verdict.state,
        "X-Midflight-Reason": verdict.reason,
        "Cache-Control": "no-store",
    }
    if verdict.admitted:
        return Response(status_code=204, headers=headers)
    return problem_response(403, "not-compliant", detail or f"not admitted: {verdict.reason}", headers)


@router.get("/.well-known/jwks.json")
def key_set(request: Request) -> dict[str, Any]:
    """The public keys of compliance tokens and security event tokens (RFC 7517). No authentication."""
    return keys.of_request(request).jwt.public()


def issuer(request: Request) -> str:
    """The issuer of this server's tokens: its public URL."""
    return get_settings(request).public_url.rstrip("/")
