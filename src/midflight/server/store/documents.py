"""What policies look like as JSON: the rules' own dataclasses, read strictly and written by pydantic.

Durations are ISO 8601 (``P7D``, ``PT4H``) or seconds. A name that is not known is refused: a misspelt ``deadline``
must not silently mean none."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from midflight.errors import InputError
from midflight.server.domain.model import (
    ApprovalRule,
    Audience,
    ComplianceRule,
    Gate,
    Pause,
    Policy,
    RestartBehaviour,
    Ring,
    Window,
)

# The rules know nothing of pydantic; this is how it is told to refuse unknown names in them.
for _class in (ApprovalRule, Audience, ComplianceRule, Gate, Ring, Window):
    setattr(_class, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010 - mypy knows of no such attribute


class PolicyDocument(BaseModel):
    """Everything of a policy but its name, priority and pause."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audience: Audience = Audience()
    hotpatch: bool = True
    fallback: bool = True
    approvals: tuple[ApprovalRule, ...] = ()
    rings: Annotated[tuple[Ring, ...], Field(min_length=1, max_length=20)]
    windows: Annotated[tuple[Window, ...], Field(max_length=20)] = ()
    deadline: timedelta | None = None
    grace: timedelta = timedelta(0)
    restart: RestartBehaviour = RestartBehaviour.AT_DEADLINE
    expedite_allowed: bool = False
    revert_on_halt: bool = False
    check_in_s: Annotated[int, Field(ge=10, le=86400)] = 300
    compliance: ComplianceRule = ComplianceRule()

    def policy(self, id: str, name: str, priority: int, pause: Pause | None) -> Policy:
        """As the rules have it."""
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return Policy(id=id, name=name, priority=priority, pause=pause, **values)


LONGEST = timedelta(days=3660)
MOST = 10**9


def check_bounds(document: PolicyDocument) -> None:
    """See that one can reckon with all times and numbers of a policy that a person wrote.

    Raises:
        InputError: says which not.
    """
    for name in PolicyDocument.model_fields:
        _check_bounds(name, getattr(document, name))


def _check_bounds(where: str, value: object) -> None:
    if isinstance(value, timedelta) and not timedelta(0) <= value <= LONGEST:
        raise InputError(f"{where}: {value} is out of bounds; give a duration from 0 to {LONGEST.days} days")
    if isinstance(value, int | float) and not abs(value) <= MOST:
        raise InputError(f"{where}: the number is out of bounds; give one up to {MOST:,}")
    if is_dataclass(value):
        for each in fields(value):
            _check_bounds(f"{where}/{each.name}", getattr(value, each.name))
    elif isinstance(value, tuple):
        for number, each_value in enumerate(value):
            _check_bounds(f"{where}/{number}", each_value)


_rings = TypeAdapter(tuple[Ring, ...])
_audience = TypeAdapter(Audience)


def rings_json(rings: tuple[Ring, ...]) -> list[dict[str, Any]]:
    """Rings as stored with a deployment."""
    dumped: list[dict[str, Any]] = _rings.dump_python(rings, mode="json")
    return dumped


def rings_of(document: list[dict[str, Any]]) -> tuple[Ring, ...]:
    """Rings as stored."""
    return _rings.validate_python(document, strict=False)


def audience_json(audience: Audience | None) -> dict[str, Any] | None:
    """An audience as stored."""
    return None if audience is None else {k: sorted(v) for k, v in _audience.dump_python(audience).items()}


def audience_of(document: dict[str, Any] | None) -> Audience | None:
    """An audience as stored."""
    return None if document is None else _audience.validate_python(document)
