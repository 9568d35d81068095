"""Accounts of limits."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of limits."""
    op.create_table(
        "limit_accounts",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("level", sa.Double, nullable=False),
        sa.Column("leases", sa.JSON, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
