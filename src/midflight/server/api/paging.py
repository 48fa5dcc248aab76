"""Lists, page by page: by the key of the last row (never by offset), so that every page costs the same."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

import orjson
from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import BigInteger, tuple_, type_coerce
from sqlalchemy.orm import Session

from midflight.server.api.problems import Problem
from midflight.server.store.base import Instant

T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=500, description="rows of a page")]
After = Annotated[str | None, Query(max_length=1000, description="`next` of the page before")]


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    items: list[T]
    next: str | None
    """Give it as `after` to get the next page; null: this is the last one."""


def cursor(values: Sequence[Any]) -> str:
    """The text that stands for a place in a list."""
    return urlsafe_b64encode(orjson.dumps(list(values))).decode().rstrip("=")


def place(text: str, keys: Sequence[Any]) -> list[Any]:
    """The place in a list by these columns that a cursor stands for.

    Raises:
        Problem: 422, it is none.
    """
    try:
        values = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(values, list) and len(values) == len(keys) and all(map(_fits, values, keys)):
            return values
    except (ValueError, binascii.Error):
        pass
    raise Problem(422, "invalid", "query/after: is not the `next` of a page; begin without it")


def page(
    session: Session,
    query: Any,
    keys: Sequence[Any],
    after: str | None,
    limit: int,
    show: Callable[[Any], T],
    *,
    descending: bool = False,
) -> dict[str, Any]:
    """One page of a query, ordered by unique key columns.

    Args:
        keys: columns; times among them are compared as stored.
        show: a row as it is answered. Rows of several entities come as tuples.
    """
    if after is not None:
        values = place(after, keys)
        raw = [_raw(key) for key in keys]
        bounds = tuple_(*raw) < tuple_(*values) if descending else tuple_(*raw) > tuple_(*values)
        query = query.where(bounds)
    ordered = query.order_by(*(key.desc() if descending else key for key in keys)).limit(limit + 1)
    marks = ordered.add_columns(*(_raw(key).label(f"key_{number}") for number, key in enumerate(keys)))
    rows = session.execute(marks).all()
    shown = [row[: -len(keys)] for row in rows[:limit]]
    following = cursor(rows[limit - 1][-len(keys) :]) if len(rows) > limit else None
    return {"items": [show(row[0] if len(row) == 1 else row) for row in shown], "next": following}


def _fits(value: object, key: Any) -> bool:
    if isinstance(key.type, Instant | BigInteger):
        return type(value) is int and -(2**63) <= value < 2**63
    return isinstance(value, str) and "\0" not in value


def _raw(key: Any) -> Any:
    return type_coerce(key, BigInteger()) if isinstance(key.type, Instant) else key
