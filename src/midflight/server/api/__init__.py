"""The HTTP interface: one file a resource. Each module named in ROUTERS has a ``router`` (one line for each)."""

ROUTERS: tuple[str, ...] = (
    "midflight.server.api.accounts",
    "midflight.server.api.audit",
    "midflight.server.api.catalogue",
    "midflight.server.api.compliance",
    "midflight.server.api.deployments",
    "midflight.server.api.device",
    "midflight.server.api.devices",
    "midflight.server.api.devicetoken",
    "midflight.server.api.enrollment",
    "midflight.server.api.gate",
    "midflight.server.api.groups",
    "midflight.server.api.health",
    "midflight.server.api.metrics",
    "midflight.server.api.oidc",
    "midflight.server.api.policies",
    "midflight.server.api.reports",
    "midflight.server.api.safeguards",
    "midflight.server.api.webhooks",
)
