"""Signing in and out, the own account, and (for administrators) everybody's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.server.access import accounts, apitokens, passwords
from midflight.server.access.accounts import LoginRefused, LoginThrottled
from midflight.server.access.authenticate import cookie_name, drop_cookie, same_site, set_cookie
from midflight.server.access.credentials import csrf_of
from midflight.server.access.roles import Role, scopes_of
from midflight.server.access.tables import Account, ApiToken
from midflight.server.api.deps import (
    Actor,
    AppDatabase,
    CurrentActor,
    DbSession,
    drop_bootstrap_token,
    require,
    source_of,
)
from midflight.server.api.problems import Problem, not_found
from midflight.server.api.scopes import Scope

router = APIRouter(prefix="/api/v1", tags=["accounts"])

Password = Annotated[str, Field(max_length=1024)]
_STRICT = ConfigDict(extra="forbid")


class Credentials(BaseModel):
    """A local account's name and password."""

    model_config = _STRICT
    name: Annotated[str, Field(max_length=200)]
    password: Password


class PasswordChange(BaseModel):
    """The own password, old and new."""

    model_config = _STRICT
    current: Password
    new: Password


class NewPassword(BaseModel):
    """A password that an administrator sets for somebody."""

    model_config = _STRICT
    new: Password


class NewAccount(BaseModel):
    """An account to be made."""

    model_config = _STRICT
    name: Annotated[str, Field(max_length=100)]
    full_name: Annotated[str, Field(max_length=200)] = ""
    roles: Annotated[list[Role], Field(max_length=4)]
    password: Password


class AccountChange(BaseModel):
    """What changes of an account; what is not given stays."""

    model_config = _STRICT
    full_name: Annotated[str, Field(max_length=200)] | None = None
    roles: Annotated[list[Role], Field(max_length=4)] | None = None
    disabled: bool | None = None


class NewToken(BaseModel):
    """A token to be made."""

    model_config = _STRICT
    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=50)]
    days: Annotated[int, Field(ge=1, le=366)] = 90


def _account(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "name": account.name,
        "full_name": account.full_name,
        "roles": account.roles,
        "provider": account.issuer,
        "disabled": account.disabled,
        "created": account.created,
        "last_login": account.last_login,
        "version": account.version,
    }


def _token(row: ApiToken) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "scopes": row.scopes,
        "created": row.created,
        "expires": row.expires,
        "used": row.used,
    }


def _get(session: Session, id: str) -> Account:
    account = session.get(Account, id)
    if account is None:
        raise not_found("account", id)
    return account


def own_account(session: Session, actor: Actor) -> Account:
    """The account of whoever asks.

    Raises:
        Problem: 409, there is none (the bootstrap administrator has none).
    """
    if not actor.person:
        raise Problem(409, "no-account", "the bootstrap administrator has no account; make one for yourself")
    return _get(session, actor.person.removeprefix("user:"))


# -- signing in and out


@router.post("/login", status_code=204, responses={401: {}, 429: {}})
def login(request: Request, database: AppDatabase, credentials: Credentials) -> Response:
    """Sign in with name and password: the answer sets the session cookie, and has the CSRF token in a header."""
    same_site(request)
    source, agent = source_of(request), request.headers.get("user-agent", "")
    before, now = request.cookies.get(cookie_name(request), ""), datetime.now(UTC)
    try:
        made = accounts.sign_in(database, credentials.name, credentials.password, source, agent, before, now)
    except LoginThrottled as error:
        seconds = str(max(1, round(error.wait.total_seconds())))
        raise Problem(429, "throttled", str(error), {"Retry-After": seconds}) from None
    except LoginRefused as error:
        raise Problem(401, "unauthenticated", str(error), {"Cache-Control": "no-store"}) from None
    response = Response(status_code=204)
    set_cookie(request, response, made)
    response.headers["x-csrf-token"] = csrf_of(made.cookie)
    return response


@router.post("/logout", status_code=204)
def logout(request: Request, session: DbSession, _actor: CurrentActor) -> Response:
    """Sign out: the session is over, whoever may have copied its cookie."""
    if cookie := request.cookies.get(cookie_name(request)):
        accounts.sign_out(session, cookie)
    response = Response(status_code=204)
    drop_cookie(request, response)
    return response


@router.get("/session")
def whoami(request: Request, session: DbSession, actor: CurrentActor) -> dict[str, Any]:
    """Who asks, what they may do, and the CSRF token of a login. ``renew``: the identity provider should be asked again
    who it is."""
    cookie, now = request.cookies.get(cookie_name(request)), datetime.now(UTC)
    found = accounts.of_cookie(session, cookie, now) if cookie and actor.kind == "user" else None
    return {
        "id": actor.id,
        "name": actor.name,
        "kind": actor.kind,
        "scopes": sorted(actor.scopes),
        "csrf": csrf_of(cookie) if cookie and actor.kind == "user" else None,
        "renew": found is not None and accounts.is_to_be_confirmed(*found, now),
    }


# -- the own account


@router.put("/account/password", status_code=204)
def change_password(
    request: Request, session: DbSession, actor: Annotated[Actor, require(Scope.SELF)], change: PasswordChange
) -> Response:
    """Change the own password: all logins end but this one, which goes on under a new identifier."""
    account, now = own_account(session, actor), datetime.now(UTC)
    if not passwords.verify(account.password, change.current):
        raise Problem(403, "wrong-password", "the current password is wrong")
    accounts.set_password(session, account, change.new, now)
    agent = request.headers.get("user-agent", "")
    made = accounts.open_session(session, account, source_of(request), agent, now, how="password change")
    response = Response(status_code=204)
    set_cookie(request, response, made)
    response.headers["x-csrf-token"] = csrf_of(made.cookie)
    return response


@router.get("/account/tokens")
def own_tokens(session: DbSession, actor: Annotated[Actor, require(Scope.SELF)]) -> dict[str, Any]:
    """The own API tokens."""
    return {"items": [_token(row) for row in apitokens.of_account(session, own_account(session, actor))]}


@router.post("/account/tokens", status_code=201)
def make_token(session: DbSession, actor: Annotated[Actor, require(Scope.SELF)], wanted: NewToken) -> dict[str, Any]:
    """Make an API token. ``secret`` is shown this once; only its hash is kept."""
    lifetime = timedelta(days=wanted.days)
    account, now = own_account(session, actor), datetime.now(UTC)
    made = apitokens.create(session, account, wanted.name, wanted.scopes, lifetime, now)
    return {**_token(made.row), "secret": made.secret}


@router.delete("/account/tokens/{id}", status_code=204)
def revoke_own_token(session: DbSession, actor: Annotated[Actor, require(Scope.SELF)], id: str) -> None:
    """Revoke an own token: it is good for nothing from now on."""
    _revoke(session, own_account(session, actor), id)


def _revoke(session: Session, account: Account, id: str) -> None:
    row = session.get(ApiToken, id)
    if row is None or row.account_id != account.id:
        raise not_found("token", id)
    row.revoked = row.revoked or datetime.now(UTC)


# -- everybody's accounts


@router.get("/accounts")
def list_accounts(session: DbSession, _actor: Annotated[Actor, require(Scope.ACCOUNTS_READ)]) -> dict[str, Any]:
    """All accounts, by name."""
    return {"items": [_account(row) for row in session.scalars(select(Account).order_by(Account.name))]}


@router.post("/accounts", status_code=201)
def make_account(
    session: DbSession, _actor: Annotated[Actor, require(Scope.ACCOUNTS_WRITE)], wanted: NewAccount
) -> dict[str, Any]:
    """Make a local account. With the first administrator the bootstrap token ends."""
    now = datetime.now(UTC)
    account = accounts.create(
        session, wanted.name, wanted.roles, now, password=wanted.password, full_name=wanted.full_name
    )
    if Role.ADMIN in wanted.roles:
        drop_bootstrap_token(session)
    return _account(account)


@router.get("/accounts/{id}")
def get_account(session: DbSession, _actor: Annotated[Actor, require(Scope.ACCOUNTS_READ)], id: str) -> dict[str, Any]:
    """One account, with its live tokens."""
    account = _get(session, id)
    logins, _tokens = accounts.usage(session, account)
    tokens = [_token(row) for row in apitokens.of_account(session, account)]
    scopes = sorted(scopes_of(accounts.roles_of(account)))
    return {**_account(account), "scopes": scopes, "logins": logins, "tokens": tokens}


@router.patch("/accounts/{id}")
def change_account(
    session: DbSession, _actor: Annotated[Actor, require(Scope.ACCOUNTS_WRITE)], id: str, change: AccountChange
) -> dict[str, Any]:
    """Change roles or name, disable or enable."""
    account = _get(session, id)
    if change.full_name is not None:
        account.full_name = change.full_name
    if change.roles is not None:
        accounts.set_roles(session, account, change.roles)
    if change.disabled is True:
        accounts.disable(session, account, datetime.now(UTC))
    elif change.disabled is False:
        accounts.enable(account)
    return _account(account)


@router.put("/accounts/{id}/password", status_code=204)
def reset_password(
    session: DbSession, _actor: Annotated[Actor, require(Scope.ACCOUNTS_WRITE)], id: str, wanted: NewPassword
) -> None:
    """Set somebody's password; all their logins end."""
    accounts.set_password(session, _get(session, id), wanted.new, datetime.now(UTC))


@router.delete("/accounts/{id}/tokens/{token}", status_code=204)
def revoke_token(
    session: DbSession, _actor: Annotated[Actor, require(Scope.ACCOUNTS_WRITE)], id: str, token: str
) -> None:
    """Revoke somebody's token."""
    _revoke(session, _get(session, id), token)
