"""Providers of records and of sums, and what they bill."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_SUM = sa.BigInteger().with_variant(sa.Numeric(38, 0), "postgresql")


def upgrade() -> None:
    """Add them: what was recorded before has none."""
    for table, nanos in (("usage_records", sa.BigInteger()), ("charge_sums", _SUM)):
        op.add_column(table, sa.Column("provider", sa.Text, nullable=False, server_default=""))
        op.add_column(table, sa.Column("cost_nanos", nanos, nullable=False, server_default="0"))
    op.add_column("usage_records", sa.Column("cost_currency", sa.Text))
