"""Accounts and logins: making, changing, signing in and out. Functions over a session; the clock is an argument."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from midflight.errors import InputError, MidflightError
from midflight.server.access import audit, passwords, throttle
from midflight.server.access.audit import Act
from midflight.server.access.credentials import digest, new_session
from midflight.server.access.roles import Role, known_roles
from midflight.server.access.tables import Account, ApiToken, LoginFailure, LoginSession
from midflight.server.store.base import new_id
from midflight.server.store.database import Database

CONFIRMED = timedelta(minutes=30)
"""A session of a provider's account is good for so long after the provider last said who it is and in which groups."""
RENEWED = timedelta(minutes=10)
"""After so long a page asks the provider again."""
IDLE = timedelta(minutes=30)
"""A session that is not used for so long is over."""
LONGEST = timedelta(hours=12)
"""No session lives longer, however busy it is."""
_TOUCH = timedelta(minutes=1)
_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,99}")
_MAX_SESSIONS = 20
_PATIENCE_S = 5.0
_hashing = threading.BoundedSemaphore(2)
"""Each hash takes 64 MiB and a core for a moment."""


class LoginRefused(MidflightError):
    """The name or the password is wrong, or the account may not sign in. Says the same in all cases."""


class LoginThrottled(MidflightError):
    """Too many failures; ``wait`` says how long to wait."""

    def __init__(self, wait: timedelta, why: str = "too many failed logins") -> None:
        super().__init__(f"{why}; try again in {max(1, round(wait.total_seconds()))} s")
        self.wait = wait


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A login that worked: the cookie's value is here and nowhere else."""

    account: Account
    cookie: str
    ends: datetime


def create(
    session: Session,
    name: str,
    roles: Iterable[str],
    now: datetime,
    *,
    password: str | None = None,
    full_name: str = "",
    issuer: str | None = None,
    subject: str | None = None,
) -> Account:
    """A new account.

    Raises:
        InputError: the name is taken or no name, a role is unknown, or the password is too easy.
    """
    name = name.strip().lower()
    if not _NAME.fullmatch(name):
        raise InputError(f"{name[:40]!r} is no account name; use letters, digits and . _ @ + -, at most 100")
    if session.scalar(select(Account.id).where(Account.name == name)):
        raise InputError(f"there is an account {name!r}; choose another name")
    if password is not None:
        passwords.check_new(password, name)
    account = Account(
        id=new_id("usr"),
        name=name,
        full_name=full_name[:200],
        password=passwords.hash_password(password) if password is not None else None,
        issuer=issuer,
        subject=subject,
        roles=[role.value for role in known_roles(roles)],
        disabled=None,
        created=now,
        last_login=None,
        password_changed=now if password is not None else None,
        version=1,
    )
    session.add(account)
    session.flush()
    return account


def by_name(session: Session, name: str) -> Account | None:
    """The account with that name."""
    return session.scalar(select(Account).where(Account.name == name.strip().lower()))


def roles_of(account: Account) -> tuple[Role, ...]:
    """Its roles; a disabled account has none."""
    return () if account.disabled else tuple(Role(role) for role in account.roles if role in set(Role))


def set_password(session: Session, account: Account, password: str, now: datetime) -> None:
    """Change the password, and end all logins of the account.

    Raises:
        InputError: it is too easy, or the account is one of an identity provider.
    """
    if account.issuer is not None:
        raise InputError(f"{account.name} signs in at {account.issuer}; change the password there")
    passwords.check_new(password, account.name)
    account.password = passwords.hash_password(password)
    account.password_changed = now
    account.version += 1
    end_sessions(session, account)


def set_roles(session: Session, account: Account, roles: Iterable[str]) -> None:
    """Change the roles; they hold from the next request on.

    Raises:
        InputError: a role is unknown, or nobody could administer the server any more.
    """
    wanted = [role.value for role in known_roles(roles)]
    if Role.ADMIN not in wanted:
        _keep_an_admin(session, account)
    account.roles = wanted
    account.version += 1


def disable(session: Session, account: Account, now: datetime) -> None:
    """Let it sign in no more: its logins end, its tokens are dead.

    Raises:
        InputError: nobody could administer the server any more.
    """
    _keep_an_admin(session, account)
    account.disabled = account.disabled or now
    account.version += 1
    end_sessions(session, account)


def enable(account: Account) -> None:
    """Let it sign in again."""
    account.disabled = None
    account.version += 1


def end_sessions(session: Session, account: Account) -> None:
    """End all logins of the account."""
    session.execute(delete(LoginSession).where(LoginSession.account_id == account.id))


def administrators(session: Session) -> int:
    """How many accounts can administer the server."""
    rows = session.scalars(select(Account).where(Account.disabled.is_(None)))
    return sum(Role.ADMIN in row.roles for row in rows)


def _keep_an_admin(session: Session, account: Account) -> None:
    if Role.ADMIN in roles_of(account) and administrators(session) < 2:
        raise InputError(f"{account.name} is the only administrator; make another one first")


# -- signing in


def sign_in(
    database: Database, name: str, password: str, source: str, agent: str, before: str, now: datetime
) -> SignedIn:
    """Sign in with a password. Failures are counted and recorded.

    The password is hashed between two short transactions, and by few at a time: guessing must not hold up the database,
    nor take all memory.

    Args:
        before: the cookie that the browser has already; its session ends.

    Raises:
        LoginThrottled: too many failures, or too many logins at once; nothing was tried.
        LoginRefused: it did not work.
    """
    name = name.strip().lower()[:200]
    keys = ((f"account:{digest(name)[:32]}", throttle.ACCOUNT), (f"source:{source[:64]}", throttle.SOURCE))
    with database.read() as session:
        waits = [throttle.wait(_failures(session, key), limit, now) for key, limit in keys]
        if max(waits) > timedelta():
            raise LoginThrottled(max(waits))
        found = by_name(session, name)
        kept = found.password if found else None
    if not _hashing.acquire(timeout=_PATIENCE_S):
        raise LoginThrottled(timedelta(seconds=_PATIENCE_S), "many are signing in at this moment")
    try:
        right = passwords.verify(kept, password)
        renewed = passwords.hash_password(password) if right and kept and passwords.outdated(kept) else None
    finally:
        _hashing.release()
    with database.write() as session:
        account = by_name(session, name)
        if account is not None and right and not account.disabled and account.password == kept:
            session.execute(delete(LoginFailure).where(LoginFailure.key == keys[0][0]))
            account.password = renewed or account.password
            if before:
                sign_out(session, before)
            return open_session(session, account, source, agent, now, how="password")
        for key, _limit in keys:
            _count(session, key, now)
        who = account.id if account else ""
        audit.record(session, Act("nobody", who, source, "login", target=name, outcome="refused"))
    raise LoginRefused("name or password is wrong, or the account is disabled")


def open_session(session: Session, account: Account, source: str, agent: str, now: datetime, how: str) -> SignedIn:
    """A new login of an account whose person was recognised. Its identifier is always a new one."""
    session.execute(delete(LoginSession).where(LoginSession.ends <= now))
    cookie = new_session()
    ends = now + (LONGEST if account.issuer is None else CONFIRMED)
    session.add(
        LoginSession(
            hash=digest(cookie),
            account_id=account.id,
            created=now,
            used=now,
            ends=ends,
            source=source[:64],
            agent=_printable(agent)[:200],
        )
    )
    account.last_login = now
    session.flush()
    oldest = select(LoginSession.hash).where(LoginSession.account_id == account.id)
    surplus = session.scalars(oldest.order_by(LoginSession.created.desc()).offset(_MAX_SESSIONS)).all()
    if surplus:
        session.execute(delete(LoginSession).where(LoginSession.hash.in_(surplus)))
    audit.record(session, Act("user", f"user:{account.id}", source, "login", target=account.name, detail={"how": how}))
    return SignedIn(account, cookie, ends)


def confirm(session: Session, account: Account, cookie: str, now: datetime) -> bool:
    """The provider said again who sits at a browser that is signed in: the login goes on under its identifier, which
    other pages of the browser have in their forms. False: it cannot, and a new one is needed."""
    found = of_cookie(session, cookie, now)
    if found is None or found[0].id != account.id:
        return False
    login = found[1]
    login.ends, login.used = min(login.created + LONGEST, now + CONFIRMED), now
    return login.ends - now > CONFIRMED - RENEWED


def is_to_be_confirmed(account: Account, login: LoginSession, now: datetime) -> bool:
    """Whether a page should ask the provider anew."""
    return account.issuer is not None and login.ends - now < CONFIRMED - RENEWED


def of_cookie(session: Session, cookie: str, now: datetime) -> tuple[Account, LoginSession] | None:
    """Who is signed in with this cookie, if anybody."""
    found = session.execute(
        select(Account, LoginSession)
        .join(LoginSession, LoginSession.account_id == Account.id)
        .where(LoginSession.hash == digest(cookie))
    ).one_or_none()
    if found is None:
        return None
    account, login = found
    if account.disabled or now >= login.ends or now - login.used >= IDLE:
        return None
    return account, login


def stale(login: LoginSession, now: datetime) -> bool:
    """Whether its time of use should be written anew."""
    return now - login.used >= _TOUCH


def sign_out(session: Session, cookie: str) -> None:
    """End one login."""
    session.execute(delete(LoginSession).where(LoginSession.hash == digest(cookie)))


def _failures(session: Session, key: str) -> throttle.Failures:
    row = session.get(LoginFailure, key)
    return throttle.Failures(row.count, row.last) if row else throttle.Failures()


def _count(session: Session, key: str, now: datetime) -> None:
    counted = throttle.failed(_failures(session, key), now)
    row = session.get(LoginFailure, key) or LoginFailure(key=key)
    row.count, row.last = counted.count, now
    session.add(row)


def forget(session: Session, now: datetime) -> None:
    """Remove what is over: logins, and failures that count no more. For background work."""
    session.execute(delete(LoginSession).where(LoginSession.ends <= now))
    session.execute(delete(LoginFailure).where(LoginFailure.last <= now - throttle.FORGOTTEN_AFTER))


def usage(session: Session, account: Account) -> tuple[int, int]:
    """How many logins and live tokens the account has."""
    logins = session.scalar(select(func.count()).where(LoginSession.account_id == account.id)) or 0
    live = select(func.count()).where(ApiToken.account_id == account.id, ApiToken.revoked.is_(None))
    return logins, session.scalar(live) or 0


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
