"""Roles of people, and what API tokens may carry; pure.

A person's roles grant scopes; an API token carries a subset of its owner's. Scopes that only a person at a login may
use (approving, handling accounts) are in no token: a stolen token approves nothing and makes no new account.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from midflight.errors import InputError
from midflight.server.api.scopes import ALL_SCOPES, Scope


class Role(StrEnum):
    """What a person is to the fleet. A person may have several."""

    READER = "reader"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


PERSONAL = frozenset({Scope.APPROVALS_WRITE, Scope.ACCOUNTS_WRITE, Scope.SELF})
"""Scopes that no API token can carry."""

_READER = frozenset(
    {
        Scope.DEVICES_READ,
        Scope.CATALOGUE_READ,
        Scope.POLICIES_READ,
        Scope.DEPLOYMENTS_READ,
        Scope.SAFEGUARDS_READ,
        Scope.COMPLIANCE_READ,
        Scope.COMPLIANCE_CHECK,
        Scope.REPORTS_READ,
        Scope.EVENTS_READ,
        Scope.METRICS_READ,
        Scope.SELF,
    }
)
_OPERATOR = _READER | {
    Scope.DEVICES_WRITE,
    Scope.ENROLLMENT_WRITE,
    Scope.CATALOGUE_WRITE,
    Scope.POLICIES_WRITE,
    Scope.DEPLOYMENTS_WRITE,
    Scope.SAFEGUARDS_WRITE,
}
_APPROVER = _READER | {Scope.APPROVALS_WRITE, Scope.AUDIT_READ}

GRANTS: dict[Role, frozenset[Scope]] = {
    Role.READER: _READER,
    Role.OPERATOR: _OPERATOR,
    Role.APPROVER: _APPROVER,
    Role.ADMIN: ALL_SCOPES,
}


def scopes_of(roles: Iterable[Role]) -> frozenset[Scope]:
    """All that the roles grant together; no role grants nothing."""
    granted: frozenset[Scope] = frozenset()
    for role in roles:
        granted |= GRANTS[role]
    return granted


def token_scopes(asked: Iterable[Scope], owner: frozenset[Scope]) -> frozenset[Scope]:
    """What a token may do: what was asked for it, what its owner still may, and nothing personal."""
    return (frozenset(asked) & owner) - PERSONAL


def known_roles(names: Iterable[str]) -> tuple[Role, ...]:
    """Roles by name, each once, in order of power.

    Raises:
        InputError: there is no such role.
    """
    found = set(names)
    if unknown := found - set(Role):
        raise InputError(f"there is no role {sorted(unknown)[0]!r}; there are {', '.join(Role)}")
    return tuple(role for role in Role if role in found)


def known_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Scopes by name, for a token.

    Raises:
        InputError: there is no such scope, or no token can carry it.
    """
    found = set(names)
    if unknown := found - set(Scope):
        raise InputError(f"there is no scope {sorted(unknown)[0]!r}; there are {', '.join(sorted(Scope))}")
    scopes = frozenset(Scope(name) for name in found)
    if personal := scopes & PERSONAL:
        raise InputError(f"{sorted(personal)[0]} needs a person at a login; no token can carry it")
    return scopes
