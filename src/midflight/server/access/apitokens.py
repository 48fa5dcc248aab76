"""API tokens: what programs show instead of a login. Made once, shown once, kept as a hash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from midflight.errors import InputError
from midflight.server.access.accounts import roles_of
from midflight.server.access.credentials import digest, is_token, new_token
from midflight.server.access.roles import known_scopes, scopes_of, token_scopes
from midflight.server.access.tables import Account, ApiToken
from midflight.server.api.scopes import Scope
from midflight.server.store.base import new_id

LONGEST = timedelta(days=366)
_TOUCH = timedelta(hours=1)
_MOST = 100


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token as it is made: ``secret`` is here and nowhere else."""

    row: ApiToken
    secret: str


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """Who shows a token, and what it may do now."""

    account: Account
    token: ApiToken
    scopes: frozenset[Scope]


def create(
    session: Session, account: Account, name: str, scopes: Iterable[str], lifetime: timedelta, now: datetime
) -> NewToken:
    """A new token of an account.

    Raises:
        InputError: a scope that does not exist, that no token can carry or that the owner does not have; a lifetime
            beyond a year; a hundred tokens already.
    """
    wanted = known_scopes(scopes)
    if not wanted:
        raise InputError("a token needs at least one scope, such as devices:read")
    if missing := wanted - scopes_of(roles_of(account)):
        raise InputError(f"{account.name} has no {sorted(missing)[0]} to give; ask an administrator for the role")
    if not timedelta() < lifetime <= LONGEST:
        raise InputError(f"a token lives between a second and {LONGEST.days} days")
    if not 0 < len(name.strip()) <= 100:
        raise InputError("a token needs a name of at most 100 characters that says what it is for")
    if len(of_account(session, account)) >= _MOST:
        raise InputError(f"{account.name} has {_MOST} tokens; revoke some first")
    secret = new_token()
    row = ApiToken(
        id=new_id("tok"),
        hash=digest(secret),
        account_id=account.id,
        name=name.strip(),
        scopes=sorted(wanted),
        created=now,
        expires=now + lifetime,
        used=None,
        revoked=None,
    )
    session.add(row)
    session.flush()
    return NewToken(row, secret)


def holder(session: Session, secret: str, now: datetime) -> TokenHolder | None:
    """Who shows this token; None when it is none, is over, was revoked, or its owner is disabled."""
    if not is_token(secret):
        return None
    found = session.execute(
        select(ApiToken, Account)
        .join(Account, Account.id == ApiToken.account_id)
        .where(ApiToken.hash == digest(secret))
    ).one_or_none()
    if found is None:
        return None
    token, account = found
    if token.revoked or now >= token.expires or account.disabled:
        return None
    asked = [Scope(name) for name in token.scopes if name in set(Scope)]
    return TokenHolder(account, token, token_scopes(asked, scopes_of(roles_of(account))))


def stale(token: ApiToken, now: datetime) -> bool:
    """Whether its time of use should be written anew."""
    return token.used is None or now - token.used >= _TOUCH


def of_account(session: Session, account: Account) -> list[ApiToken]:
    """The tokens of an account that are not revoked, newest first."""
    statement = select(ApiToken).where(ApiToken.account_id == account.id, ApiToken.revoked.is_(None))
    return list(session.scalars(statement.order_by(ApiToken.created.desc())))
