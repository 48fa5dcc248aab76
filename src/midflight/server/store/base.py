"""The base of all tables, and the column types that mean the same on SQLite and PostgreSQL.

Times are stored as whole microseconds since 1970 (UTC) in a 64-bit integer: the same bytes, the same order and the same
arithmetic in raw SQL on both databases (docs/adr/0075). In Python they are aware datetimes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, Dialect, Float, MetaData, String, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from midflight.errors import InputError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST, _LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """A point in time, stored as microseconds since 1970 UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To the database.

        Raises:
            InputError: it is so far away that nothing could be reckoned with it, nor could it be read again.
        """
        if value is not None and not _EARLIEST <= value <= _LATEST:
            raise InputError(f"{value} is out of reach; give a time from 1900 to 2999")
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else from_micros(value)


def to_micros(value: datetime) -> int:
    """Microseconds since 1970 UTC, as stored.

    Raises:
        ValueError: the time has no zone.
    """
    if value.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return (value - _EPOCH) // timedelta(microseconds=1)


def from_micros(value: int) -> datetime:
    """The stored time as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=value)


Document = JSON().with_variant(JSONB(), "postgresql")
"""A JSON value: jsonb on PostgreSQL, text on SQLite."""


def new_id(prefix: str) -> str:
    """A new identifier: a prefix that says what it names, and 80 random bits in base32 (no two look alike)."""
    number = secrets.randbits(80)
    return (
        prefix + "-" + "".join("0123456789abcdefghjkmnpqrstvwxyz"[number >> shift & 31] for shift in range(75, -1, -5))
    )


class Base(DeclarativeBase):
    """All tables. Constraint names follow one convention, so that migrations can name what they change."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy
        datetime: Instant,
        dict[str, Any]: Document,
        Mapping[str, Any]: Document,
        Sequence[str]: Document,
        list[str]: Document,
        list[dict[str, Any]]: Document,
        str: Text,
        int: BigInteger,
        list[int]: Document,
        float: Float,
    }


Id = String(64)
