"""A small OpenID Connect provider for tests, built on authlib's server side: real codes, real PKCE, real signatures.

It signs in whoever the test says, without a page to fill in.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import grants
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import OpenIDCode, UserInfo
from flask import Flask, jsonify, redirect, request
from joserfc.jwk import RSAKey
from werkzeug.serving import make_server

CLIENT, SECRET = "midflight", "the secret of the client"


class Client:
    """The one client."""

    def __init__(self, redirect_uri: str) -> None:
        self.redirect_uri = redirect_uri

    def get_client_id(self) -> str:
        return CLIENT

    def get_default_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.redirect_uri

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "authorization_code"


@dataclass
class Code:
    """An authorization code that was given out."""

    code: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    user: dict[str, Any]
    auth_time: int = field(default_factory=lambda: int(time.time()))

    def is_expired(self) -> bool:
        return False

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int:
        return self.auth_time

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


class OpenIdProvider:
    """The provider; ``person`` is who sits at the browser. ``twist`` changes the claims of the next ID tokens."""

    def __init__(self, redirect_uri: str) -> None:
        self.person: dict[str, Any] = {"sub": "248289761001", "preferred_username": "Jane", "groups": ["fleet"]}
        self.twist: dict[str, Any] = {}
        self.forge: Callable[[dict[str, Any]], str] | None = None
        """Makes the next ID tokens of their claims, instead of the provider's key."""
        self.called = ""
        """What it says that it is; empty: the truth."""
        self.signed_out = False
        """The browser has no login at the provider, so it would have to show a page."""
        self.prompts: list[str | None] = []
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"}, private=True)
        self.published = self.key
        self.codes: dict[str, Code] = {}
        self.client = Client(redirect_uri)
        self._server = make_server("127.0.0.1", 0, self._app(), threaded=True)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _app(self) -> Flask:
        app, provider = Flask(__name__), self

        class Grant(grants.AuthorizationCodeGrant):  # type: ignore[misc]
            TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic"]  # noqa: RUF012 - authlib's own name

            def save_authorization_code(self, code: str, req: Any) -> None:
                payload = req.payload
                provider.codes[code] = Code(
                    code,
                    payload.redirect_uri,
                    payload.scope,
                    provider.twist.get("nonce") or payload.data.get("nonce"),
                    payload.data.get("code_challenge"),
                    payload.data.get("code_challenge_method"),
                    provider.person,
                )

            def query_authorization_code(self, code: str, client: Client) -> Code | None:
                return provider.codes.get(code)

            def delete_authorization_code(self, code: Code) -> None:
                del provider.codes[code.code]

            def authenticate_user(self, code: Code) -> dict[str, Any]:
                return code.user

        class Tokens(OpenIDCode):  # type: ignore[misc]
            def exists_nonce(self, nonce: str, req: Any) -> bool:
                return False

            def resolve_client_private_key(self, client: Client) -> RSAKey:
                return provider.key

            def get_client_claims(self, client: Client) -> dict[str, Any]:
                return {"iss": provider.issuer, "aud": [CLIENT]}

            def generate_user_info(self, user: dict[str, Any], scope: str) -> UserInfo:
                return UserInfo(**user)

            def get_compatible_claims(self, req: Any) -> dict[str, Any]:
                return super().get_compatible_claims(req) | provider.twist  # type: ignore[no-any-return]

        server = AuthorizationServer(
            app,
            query_client=lambda client_id: provider.client if client_id == CLIENT else None,
            save_token=lambda token, req: None,
        )
        server.register_grant(Grant, [Tokens(require_nonce=True), CodeChallenge(required=True)])

        @app.get("/.well-known/openid-configuration")
        def metadata() -> Any:
            names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
            return jsonify(
                {"issuer": provider.called or provider.issuer}
                | {name: f"{provider.issuer}/{path}" for name, path in names.items()}
            )

        @app.get("/jwks")
        def jwks() -> Any:
            return jsonify({"keys": [provider.published.as_dict(private=False)]})

        @app.get("/authorize")
        def authorize() -> Any:
            assert request.args["code_challenge_method"] == "S256"
            provider.prompts.append(request.args.get("prompt"))
            if provider.signed_out and request.args.get("prompt") == "none":
                # OpenID Connect Core 1.0, section 3.1.2.6
                answer = urlencode({"error": "login_required", "state": request.args["state"]})
                return redirect(f"{provider.client.redirect_uri}?{answer}")
            return server.create_authorization_response(grant_user=provider.person)

        @app.post("/token")
        def token() -> Any:
            response = server.create_token_response()
            if provider.forge is None or response.status_code != 200:
                return response
            document = json.loads(response.get_data())
            body = document["id_token"].split(".")[1]
            claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            return jsonify(document | {"id_token": provider.forge(claims)})

        app.secret_key = secrets.token_bytes(16)
        return app
