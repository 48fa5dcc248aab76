"""The HTTP interface: one file a resource. Each module named in ROUTERS has a ``router`` (one line for each)."""

ROUTERS: tuple[str, ...] = (
    "midflight.server.api.accounts",
    "midflight.server.api.audit",
    "midflight.server.api.device",
    "midflight.server.api.devicetoken",
    "midflight.server.api.gate",
    "midflight.server.api.health",
    "midflight.server.api.metrics",
    "midflight.server.api.oidc",
    "midflight.server.api.reports",
    "midflight.server.api.webhooks",
)
