"""Counts that are kept, so that nobody has to count rows: how many devices stand how, whatever the size of the fleet.

Triggers of the database write each change of a count as a row of ``tally``, in the transaction that makes the change;
a count is the sum of its rows. As rows are only added, no two transactions wait for each other for the sake of a count.
Background work folds what came together into one row for each count (docs/adr/0095)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Index, Integer, cast, delete, func, select, tuple_
from sqlalchemy.orm import Mapped, Session, mapped_column

from midflight.server.store.base import Base
from midflight.server.store.database import claimed

FOLDED_AT_ONCE = 10_000
"""Rows that one transaction folds."""


class Tally(Base):
    """A part of a count."""

    __tablename__ = "tally"
    __table_args__ = (Index("ix_tally_what", "what", "owner", "ring", "value", "amount"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    what: Mapped[str]
    """``device``, ``compliance``, ``membership``, ``outcome`` or ``stopped``."""
    owner: Mapped[str]
    """Id of the policy or the deployment that it is counted for; empty: none."""
    ring: Mapped[int]
    """-1: none."""
    value: Mapped[str]
    """What is counted: words, separated by blanks."""
    amount: Mapped[int]


@dataclass(frozen=True, slots=True)
class Counted:
    """A table whose rows are counted. The expressions are SQL that both databases understand; ``{r}`` is the row."""

    table: str
    what: str
    owner: str = "''"
    ring: str = "-1"
    value: str = "''"
    amount: str = "1"

    def of(self, row: str, sign: str = "") -> str:
        """The values of a row of ``tally``."""
        given = (self.owner, self.ring, self.value, f"{sign}{self.amount}")
        return ", ".join([f"'{self.what}'", *(each.format(r=row) for each in given)])


COUNTED = (
    Counted(
        "device",
        "device",
        owner="COALESCE({r}.policy_id, '')",
        value="CASE WHEN {r}.disabled IS NULL THEN '' ELSE 'disabled ' END"
        " || CASE WHEN {r}.integrity_violated THEN 'violated ' ELSE '' END"
        " || CASE WHEN {r}.restart_pending THEN 'restart ' ELSE '' END"
        " || CASE WHEN {r}.hotpatched THEN 'hotpatched ' ELSE '' END",
    ),
    Counted(
        "compliance",
        "compliance",
        owner="COALESCE({r}.policy_id, '')",
        value="{r}.state || CASE WHEN {r}.hotpatched THEN ' hotpatched' ELSE '' END",
    ),
    Counted(
        "membership",
        "membership",
        owner="{r}.deployment_id",
        ring="COALESCE({r}.ring, -1)",
        value="{r}.state",
    ),
    Counted("outcome", "outcome", value="{r}.result"),
    Counted("device_patch", "stopped", amount="{r}.stopped_us"),
)

_INTO = "INSERT INTO tally (what, owner, ring, value, amount)"


def triggers(dialect: str) -> Iterator[str]:
    """What a migration runs to have the counts kept from then on."""
    for counted in COUNTED:
        plus, minus = f"{_INTO} VALUES ({counted.of('NEW')})", f"{_INTO} VALUES ({counted.of('OLD', '-')})"
        parts = (counted.owner, counted.ring, counted.value, counted.amount)
        differs = " OR ".join(
            f"({each.format(r='OLD')}) <> ({each.format(r='NEW')})" for each in parts if "{r}" in each
        )
        acts = {"INSERT": (plus, ""), "DELETE": (minus, ""), "UPDATE": (f"{minus}; {plus}", differs)}
        for event, (act, when) in acts.items():
            yield from _trigger(dialect, f"tally_{counted.what}_{event.lower()}", counted.table, event, act, when)


def _trigger(dialect: str, name: str, table: str, event: str, act: str, when: str) -> Iterator[str]:
    head = f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW {f'WHEN ({when}) ' if when else ''}"
    if dialect == "sqlite":
        yield f"{head}BEGIN {act}; END"
    else:
        yield f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {act}; RETURN NULL; END $$"
        yield f"{head}EXECUTE FUNCTION {name}()"


def recounts() -> Iterator[str]:
    """What counts all rows and writes the counts: run once, when there are none yet."""
    for counted in COUNTED:
        summed = Counted(
            counted.table, counted.what, counted.owner, counted.ring, counted.value, f"SUM({counted.amount})"
        )
        keys = [each.format(r="t") for each in (counted.owner, counted.ring, counted.value) if "{r}" in each]
        grouped = f"GROUP BY {', '.join(keys)}" if keys else "HAVING COUNT(*) > 0"
        yield f"{_INTO} SELECT {summed.of('t')} FROM {counted.table} t {grouped}"


def fold(session: Session) -> int:
    """Make one row of those that belong together; returns how many rows went."""
    key = (Tally.what, Tally.owner, Tally.ring, Tally.value)
    several = select(*key).group_by(*key).having(func.count() > 1)
    parts: Any = select(Tally.id, *key, Tally.amount).where(tuple_(*key).in_(several)).limit(FOLDED_AT_ONCE)
    rows = session.execute(claimed(parts)).all()
    sums: Counter[tuple[str, str, int, str]] = Counter()
    for _id, what, owner, ring, value, amount in rows:
        sums[what, owner, ring, value] += amount
    session.execute(delete(Tally).where(Tally.id.in_([row[0] for row in rows])))
    session.add_all(
        Tally(what=what, owner=owner, ring=ring, value=value, amount=amount)
        for (what, owner, ring, value), amount in sorted(sums.items())
        if amount
    )
    return len(rows)


def _sums(session: Session, query: Any) -> Counter[str]:
    found = session.execute(query.group_by(Tally.value))
    return Counter({value: int(amount) for value, amount in found if amount})


def _amounts(what: str, owner: str | None = None) -> Any:
    # a sum of 64-bit integers is a NUMERIC on PostgreSQL
    query = select(Tally.value, cast(func.sum(Tally.amount), BigInteger)).where(Tally.what == what)
    return query if owner is None else query.where(Tally.owner == owner)


def compliance(session: Session, policy: str | None = None) -> dict[tuple[str, bool], int]:
    """Devices by compliance and whether a hotpatch alone makes for it; of a policy, or of all."""
    found = _sums(session, _amounts("compliance", policy))
    return {(value.split()[0], "hotpatched" in value.split()[1:]): count for value, count in found.items()}


def devices(session: Session, policy: str | None = None) -> Counter[frozenset[str]]:
    """Devices by what is true of them: ``disabled``, ``violated``, ``restart``, ``hotpatched``."""
    return Counter({frozenset(words.split()): n for words, n in _sums(session, _amounts("device", policy)).items()})


def members(session: Session, deployment: str) -> dict[tuple[int, str], int]:
    """Devices of a deployment by ring and state; those without a ring are left out."""
    query = (
        select(Tally.ring, Tally.value, cast(func.sum(Tally.amount), BigInteger))
        .where(Tally.what == "membership", Tally.owner == deployment, Tally.ring >= 0)
        .group_by(Tally.ring, Tally.value)
    )
    return {(ring, state): int(amount) for ring, state, amount in session.execute(query) if amount}


def outcomes(session: Session) -> Counter[str]:
    """Outcomes by result."""
    return _sums(session, _amounts("outcome"))


def stopped_us(session: Session) -> int:
    """Microseconds that processes stood still for the patches that run now."""
    return _sums(session, _amounts("stopped"))[""]
