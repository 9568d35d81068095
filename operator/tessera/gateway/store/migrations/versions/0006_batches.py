"""Batches that are charged, what is wasted, and sums of keys and users by hour."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table of batches and their blocks, a column and two indexes."""
    waste = sa.Column("waste_nanos", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("usage_records", waste)
    for name in ("key", "user"):
        op.create_index(f"charge_sums_by_{name}", "charge_sums", ["tenant", name, "hour"])
    op.create_table(
        "charge_batches",
        sa.Column("batch", sa.Text, primary_key=True),
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
    )
    op.create_index("charge_batches_by_change", "charge_batches", ["changed_at"])
