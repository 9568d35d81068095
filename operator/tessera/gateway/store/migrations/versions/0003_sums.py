"""Usage records that are sums of several requests."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the number of requests, which is 1 for what was recorded before."""
    op.add_column(
        "usage_records", sa.Column("requests", sa.BigInteger, nullable=False, server_default="1")
    )
