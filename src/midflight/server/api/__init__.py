"""The HTTP interface: one file a resource. ROUTERS lists them; each module has a ``router`` (one line for each)."""

ROUTERS: tuple[str, ...] = (
    "midflight.server.api.health",
    "midflight.server.api.accounts",
    "midflight.server.api.audit",
    "midflight.server.api.gate",
    "midflight.server.api.webhooks",
)  # fmt: skip
