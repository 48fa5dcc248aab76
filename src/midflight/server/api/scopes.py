"""What an actor may do. A scope is ``RESOURCE:read`` or ``RESOURCE:write``; approving is a scope of its own."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """Every scope; roles (midflight.server.access) are sets of them."""

    DEVICES_READ = "devices:read"
    DEVICES_WRITE = "devices:write"
    ENROLLMENT_WRITE = "enrollment:write"
    CATALOGUE_READ = "catalogue:read"
    CATALOGUE_WRITE = "catalogue:write"
    POLICIES_READ = "policies:read"
    POLICIES_WRITE = "policies:write"
    DEPLOYMENTS_READ = "deployments:read"
    DEPLOYMENTS_WRITE = "deployments:write"
    APPROVALS_WRITE = "approvals:write"
    SAFEGUARDS_READ = "safeguards:read"
    SAFEGUARDS_WRITE = "safeguards:write"
    COMPLIANCE_READ = "compliance:read"
    COMPLIANCE_CHECK = "compliance:check"
    """Ask whether one device is compliant: all that a proxy needs (/auth/compliance)."""
    REPORTS_READ = "reports:read"
    EVENTS_READ = "events:read"
    AUDIT_READ = "audit:read"
    ACCOUNTS_READ = "accounts:read"
    ACCOUNTS_WRITE = "accounts:write"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    METRICS_READ = "metrics:read"
    SELF = "self"
    """What every signed-in person may do with the own account: change the password, handle the own tokens."""


ALL_SCOPES = frozenset(Scope)
