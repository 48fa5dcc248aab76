"""Signing in at an OpenID Connect provider: authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 7636).

State, nonce and code verifier are all derived from one random value that lies in a short-lived cookie of the browser,
so the server keeps nothing between the two halves of a login, and an answer of the provider is of use only in the
browser that asked for it.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx2
from authlib.integrations.httpx_client import OAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.errors import InputError, MidflightError
from midflight.server.access.accounts import create, end_sessions
from midflight.server.access.credentials import derived, new_session, same
from midflight.server.access.roles import Role
from midflight.server.access.tables import Account
from midflight.server.settings import Settings

CALLBACK_PATH = "/login/oidc/callback"
LIFETIME = timedelta(minutes=10)
"""How long a person may take at the provider."""
_TIMEOUT = 10.0
"""Seconds that the provider has for each answer."""
_LEEWAY = 60
_KEEP_S = 300.0
_PAUSE_S = 10.0
"""After a failure nobody waits for the provider again for so long."""
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""No symmetric ones: a token signed with the client secret proves nothing that the client could not have made."""
_MOST_GROUPS = 2000


class OidcRefused(MidflightError):
    """The login at the provider did not work, or its person has no role here.

    ``person`` is who the provider said it was, when it came so far: only then is there anything to record.
    """

    def __init__(self, text: str, person: str = "") -> None:
        super().__init__(text)
        self.person = person


class NoRoles(OidcRefused):
    """The person is in none of the groups that have a role here: ``subject`` is the provider's name for it."""

    def __init__(self, text: str, person: str, subject: str) -> None:
        super().__init__(text, person)
        self.subject = subject


@dataclass(frozen=True, slots=True)
class Provider:
    """The table [oidc] of server.toml."""

    issuer: str
    client_id: str
    client_secret: str | None = None
    scopes: str = "openid profile email"
    groups_claim: str = "groups"
    roles: Mapping[str, tuple[Role, ...]] = field(default_factory=dict)
    """Roles by the name of a group."""
    name_claim: str = "preferred_username"
    label: str = "single sign-on"

    @classmethod
    def of(cls, settings: Settings) -> Provider | None:
        """From the settings; None when there is no such table.

        Raises:
            InputError: something is missing, unknown or wrong.
        """
        table: Mapping[str, Any] = settings.extra.get("oidc", {})
        if not table:
            return None
        known = {
            "issuer", "client_id", "client_secret_file", "scopes", "groups_claim", "roles", "name_claim", "label",
        }  # fmt: skip
        if unknown := set(table) - known:
            raise InputError(f"oidc: there is no setting {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
        texts = {name: value for name, value in table.items() if name != "roles"}
        if any(not isinstance(value, str) or not value for value in texts.values()):
            raise InputError("oidc: every setting but roles is a text")
        issuer = str(table.get("issuer", "")).rstrip("/")
        local = issuer.startswith(("http://127.0.0.1:", "http://localhost:"))
        if not (issuer.startswith("https://") or local) or not table.get("client_id"):
            raise InputError("oidc: issuer (an https URL) and client_id are needed")
        secret = None
        if path := table.get("client_secret_file"):
            secret = (settings.folder / str(path)).read_text().strip()
        given = table.get("roles", {})
        if not isinstance(given, Mapping) or not given:
            raise InputError(
                'oidc: roles maps groups to roles, such as {"fleet-admins" = "admin"}; without it nobody enters'
            )
        roles = {str(group): _roles(value) for group, value in given.items()}
        rest = {name: str(table[name]) for name in ("scopes", "groups_claim", "name_claim", "label") if name in table}
        return cls(issuer, str(table["client_id"]), secret, roles=roles, **rest)

    def roles_of(self, claims: Mapping[str, Any]) -> tuple[Role, ...]:
        """The roles that the groups in the claims give."""
        groups = claims.get(self.groups_claim, [])
        if isinstance(groups, str):
            groups = [groups]
        if not isinstance(groups, list):
            return ()
        found = {
            role for group in groups[:_MOST_GROUPS] if isinstance(group, str) for role in self.roles.get(group, ())
        }
        return tuple(role for role in Role if role in found)


def _roles(value: Any) -> tuple[Role, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or any(name not in set(Role) for name in names):
        raise InputError(f"oidc: {value!r} is no role; there are {', '.join(Role)}")
    return tuple(Role(name) for name in names)


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that goes on at the provider: where to send the browser, and the cookie to give it."""

    url: str
    cookie: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who the provider says it is."""

    subject: str
    name: str
    full_name: str
    roles: tuple[Role, ...]


class OidcClient:
    """One provider as one process knows it: its metadata and keys are kept for five minutes."""

    def __init__(self, provider: Provider, redirect_uri: str) -> None:
        self.provider = provider
        self._redirect_uri = redirect_uri
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._read_at = 0.0
        self._failed_at = float("-inf")

    def begin(self, silent: bool = False) -> Begun:
        """Begin a login.

        Args:
            silent: the provider shows no page: it knows the person, or says that it does not.

        Raises:
            OidcRefused: the provider does not answer as it should.
        """
        metadata = self._discovered()
        cookie = new_session()
        verifier = derived(cookie, "oidc verifier")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        with self._client() as client:
            url, _state = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=derived(cookie, "oidc state"),
                nonce=derived(cookie, "oidc nonce"),
                code_challenge=challenge,
                code_challenge_method="S256",
                **({"prompt": "none"} if silent else {}),
            )
        return Begun(str(url), cookie)

    def complete(self, cookie: str, state: str, code: str, issuer: str | None, now: datetime) -> Person:
        """End a login that came back.

        Args:
            issuer: the parameter ``iss`` of the answer (RFC 9207), if it has one.

        Raises:
            OidcRefused: it is not the answer to what this browser asked, or the person has no role here.
        """
        if not cookie or not same(state, derived(cookie, "oidc state")):
            raise OidcRefused("this login was begun in another browser or too long ago; begin again")
        if issuer is not None and issuer.rstrip("/") != self.provider.issuer:
            raise OidcRefused("the answer is of another provider; begin again")
        metadata = self._discovered()
        try:
            with self._client() as client:
                answer = client.fetch_token(
                    metadata["token_endpoint"], code=code, code_verifier=derived(cookie, "oidc verifier")
                )
        except Exception as error:  # authlib's, httpx's and JSON's have no common base
            raise OidcRefused(f"the provider gave no token ({type(error).__name__}); begin again") from None
        raw = answer.get("id_token")
        if not isinstance(raw, str):
            raise OidcRefused("the provider gave no ID token; is openid among the scopes?")
        claims = self._verified(raw, derived(cookie, "oidc nonce"), now)
        return self._person(claims)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        subject, name = claims.get("sub"), claims.get(self.provider.name_claim) or claims.get("email")
        if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not isinstance(name, str):
            raise OidcRefused(f"the ID token has no sub, or no {self.provider.name_claim}; ask the provider for it")
        roles = self.provider.roles_of(claims)
        if not roles:
            text = f"{name[:100]} is in none of the groups that may enter; ask an administrator"
            raise NoRoles(text, name, subject)
        full = claims.get("name")
        return Person(subject, name.lower(), full if isinstance(full, str) else "", roles)

    def _verified(self, raw: str, nonce: str, now: datetime) -> Mapping[str, Any]:
        """OpenID Connect Core 1.0, section 3.1.3.7."""
        try:
            try:
                token = jwt.decode(raw, self._key_set(), algorithms=_ALGORITHMS)
            except (JoseError, ValueError):
                # the provider may have changed its keys since
                token = jwt.decode(raw, self._key_set(anew=True), algorithms=_ALGORITHMS)
        except (JoseError, ValueError):
            raise OidcRefused("the ID token is not signed by the provider; begin again") from None
        claims, moment = token.claims, now.timestamp()
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        client = self.provider.client_id
        if str(claims.get("iss", "")).rstrip("/") != self.provider.issuer or client not in audiences:
            raise OidcRefused("the ID token is of another provider or for another client; begin again")
        if (len(audiences) > 1 and claims.get("azp") != client) or claims.get("azp") not in (None, client):
            raise OidcRefused("the ID token was made for another party; begin again")
        expires, issued = claims.get("exp"), claims.get("iat")
        if not isinstance(expires, int | float) or not isinstance(issued, int | float):
            raise OidcRefused("the ID token does not say when it was made and ends; begin again")
        if moment > expires + _LEEWAY or issued > moment + _LEEWAY:
            raise OidcRefused("the ID token is over, or from the future; compare the clocks and begin again")
        if not isinstance(claims.get("nonce"), str) or not same(claims["nonce"], nonce):
            raise OidcRefused("the ID token does not answer this login; begin again")
        return claims

    def _client(self) -> OAuth2Client:
        method = "client_secret_basic" if self.provider.client_secret else "none"
        return OAuth2Client(
            self.provider.client_id,
            self.provider.client_secret,
            scope=self.provider.scopes,
            redirect_uri=self._redirect_uri,
            token_endpoint_auth_method=method,
            timeout=_TIMEOUT,
        )

    def _discovered(self) -> dict[str, Any]:
        with self._lock:
            if not self._metadata or time.monotonic() - self._read_at > _KEEP_S:
                self._read()
            return self._metadata

    def _key_set(self, anew: bool = False) -> KeySet:
        with self._lock:
            if anew or self._keys is None:
                self._read()
            assert self._keys is not None
            return self._keys

    def _read(self) -> None:
        issuer = self.provider.issuer
        if time.monotonic() - self._failed_at < _PAUSE_S:
            raise OidcRefused(f"the provider {issuer} did not answer a moment ago; try again in {_PAUSE_S:.0f} s")
        self._failed_at = time.monotonic()
        try:
            with httpx2.Client(timeout=_TIMEOUT) as client:
                metadata = client.get(f"{issuer}/.well-known/openid-configuration").raise_for_status().json()
                if str(metadata["issuer"]).rstrip("/") != issuer:
                    raise OidcRefused(f"{issuer} says that it is {str(metadata['issuer'])[:200]}; mend oidc.issuer")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    if issuer.startswith("https:") and not str(metadata[name]).startswith("https:"):
                        raise OidcRefused(f"the provider's {name} is not https")
                keys = KeySet.import_key_set(client.get(metadata["jwks_uri"]).raise_for_status().json())
        except (httpx2.HTTPError, ValueError, KeyError, TypeError, JoseError) as error:
            raise OidcRefused(f"the provider {issuer} does not answer as one ({type(error).__name__})") from None
        self._metadata, self._keys, self._read_at = metadata, keys, time.monotonic()
        self._failed_at = float("-inf")


def account_for(session: Session, issuer: str, person: Person, now: datetime) -> Account:
    """The account of a person of the provider: made at the first login, its roles brought up to date at each.

    Raises:
        OidcRefused: the account is disabled, or its name is taken by another.
    """
    account = session.scalar(select(Account).where(Account.issuer == issuer, Account.subject == person.subject))
    if account is None:
        try:
            return create(
                session,
                person.name,
                person.roles,
                now,
                full_name=person.full_name,
                issuer=issuer,
                subject=person.subject,
            )
        except InputError as error:
            raise OidcRefused(f"no account can be made for {person.name[:100]}: {error}", person.name) from None
    if account.disabled:
        raise OidcRefused("the account is disabled; ask an administrator", account.name)
    _bring_up_to_date(session, account, person.roles)
    account.full_name = person.full_name[:200]
    return account


def take_roles(session: Session, issuer: str, subject: str) -> None:
    """The provider gives a person no role any more: its logins end, its tokens are good for nothing."""
    account = session.scalar(select(Account).where(Account.issuer == issuer, Account.subject == subject))
    if account is not None:
        _bring_up_to_date(session, account, ())


def _bring_up_to_date(session: Session, account: Account, roles: Iterable[Role]) -> None:
    wanted = [role.value for role in roles]
    if account.roles != wanted:
        account.roles = wanted
        account.version += 1
        end_sessions(session, account)
