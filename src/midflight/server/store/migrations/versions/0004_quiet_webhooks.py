"""Until when the receiver of a webhook wants nothing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this version."""
    op.add_column("webhook", sa.Column("quiet_until", sa.BigInteger(), nullable=True))
