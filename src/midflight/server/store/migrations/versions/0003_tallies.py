"""Counts that are kept, and indexes for lists of what is rare among many."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from midflight.server.store.tallies import recounts, triggers

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.create_table(
        "tally",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("ring", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tally")),
    )
    op.create_index("ix_tally_what", "tally", ["what", "owner", "ring", "value", "amount"])
    op.add_column("device", sa.Column("hotpatched", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE device SET hotpatched = true WHERE id IN (SELECT device_id FROM device_patch)")
    op.create_index(
        "ix_device_disabled",
        "device",
        ["hostname", "id"],
        postgresql_where=sa.text("disabled IS NOT NULL"),
        sqlite_where=sa.text("disabled IS NOT NULL"),
    )
    op.create_index("ix_device_enrolled", "device", ["enrolled"])
    op.create_index("ix_compliance_policy", "compliance", ["policy_id", "device_id"])
    op.create_index("ix_compliance_change_at", "compliance_change", ["at"])
    op.create_index("ix_event_kind", "event", ["kind", "id"])
    for statement in (*recounts(), *triggers(op.get_bind().dialect.name)):
        op.execute(statement)
