"""Usage records."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table of usage records."""
    op.create_table(
        "usage_records",
        sa.Column("record_id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("started_at_ns", sa.BigInteger, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("team", sa.Text),
        sa.Column("user", sa.Text),
        sa.Column("key", sa.Text),
        sa.Column("service", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("variant", sa.Text),
        sa.Column("replica", sa.Text),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("queue_ns", sa.BigInteger, nullable=False),
        sa.Column("ttft_ns", sa.BigInteger),
        sa.Column("total_ns", sa.BigInteger, nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("price_version", sa.Text),
    )
    op.create_index("usage_records_by_time", "usage_records", ["started_at_ns"])
    op.create_index("usage_records_by_tenant", "usage_records", ["tenant", "started_at_ns"])
