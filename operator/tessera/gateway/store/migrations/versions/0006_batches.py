"""Batches that are charged."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table of batches and their blocks."""
    op.create_table(
        "charge_batches",
        sa.Column("batch", sa.Text, primary_key=True),
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
    )
    op.create_index("charge_batches_by_change", "charge_batches", ["changed_at"])
