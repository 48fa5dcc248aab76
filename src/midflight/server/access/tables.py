"""What is kept of accounts, logins, API tokens and the audit log. No secret is in any of it: hashes alone."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from midflight.server.store.base import Base


class Account(Base):
    """A person. Local accounts have a password's hash; those of an identity provider its issuer and subject."""

    __tablename__ = "account"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    """As it is written to log in: lower case."""
    full_name: Mapped[str]
    password: Mapped[str | None]
    """argon2id, in PHC string format."""
    issuer: Mapped[str | None]
    subject: Mapped[str | None]
    roles: Mapped[list[str]]
    disabled: Mapped[datetime | None]
    created: Mapped[datetime]
    last_login: Mapped[datetime | None]
    password_changed: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(default=1)


class LoginSession(Base):
    """A browser that is signed in."""

    __tablename__ = "login_session"
    __table_args__ = (Index("ix_login_session_account", "account_id"), Index("ix_login_session_ends", "ends"))

    hash: Mapped[str] = mapped_column(primary_key=True)
    """Of the cookie's value."""
    account_id: Mapped[str] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"))
    created: Mapped[datetime]
    used: Mapped[datetime]
    """To the minute: reading pages writes nothing more often."""
    ends: Mapped[datetime]
    """The latest moment, however busy it is."""
    source: Mapped[str]
    agent: Mapped[str]


class LoginFailure(Base):
    """Failed logins in a row, by account and by source address."""

    __tablename__ = "login_failure"

    key: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]
    last: Mapped[datetime]


class ApiToken(Base):
    """A token that a program uses in the name of a person."""

    __tablename__ = "api_token"
    __table_args__ = (Index("ix_api_token_account", "account_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(unique=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"))
    name: Mapped[str]
    scopes: Mapped[list[str]]
    created: Mapped[datetime]
    expires: Mapped[datetime]
    used: Mapped[datetime | None]
    """To the hour."""
    revoked: Mapped[datetime | None]


class AuditEntry(Base):
    """One entry of the audit log (midflight.server.access.auditchain). Triggers of the database forbid all changes."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index("ix_audit_entry_actor", "actor", "sequence"), Index("ix_audit_entry_target", "target"))

    sequence: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False
    )
    at: Mapped[datetime]
    actor_kind: Mapped[str]
    actor: Mapped[str]
    source: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    outcome: Mapped[str]
    detail: Mapped[str]
    """JSON text, as it was hashed."""
    previous: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]


FREEZE_SQLITE = (
    "CREATE TRIGGER audit_entry_no_update BEFORE UPDATE ON audit_entry "
    "BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END",
    "CREATE TRIGGER audit_entry_no_delete BEFORE DELETE ON audit_entry "
    "BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END",
    "CREATE TRIGGER audit_entry_no_replace BEFORE INSERT ON audit_entry "
    "WHEN EXISTS (SELECT 1 FROM audit_entry WHERE sequence = NEW.sequence) "
    "BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END",
)
FREEZE_POSTGRESQL = (
    "CREATE FUNCTION audit_entry_frozen() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit log cannot be changed'; END $$",
    "CREATE TRIGGER audit_entry_no_change BEFORE UPDATE OR DELETE ON audit_entry "
    "FOR EACH ROW EXECUTE FUNCTION audit_entry_frozen()",
    "CREATE TRIGGER audit_entry_no_truncate BEFORE TRUNCATE ON audit_entry "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_entry_frozen()",
)
"""What the migration runs after it made the table."""
