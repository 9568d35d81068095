"""Accounts and sums of charges."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
_NANOS = sa.BigInteger().with_variant(sa.Numeric(38, 0), "postgresql")


def upgrade() -> None:
    """Create the tables of charges, and give records what they were charged."""
    for column in (
        sa.Column("charge_nanos", sa.BigInteger),
        sa.Column("currency", sa.Text),
        sa.Column("price_list", sa.Text),
        sa.Column("charges", sa.JSON, nullable=False, server_default="[]"),
        sa.Column("owner", sa.Text),
        sa.Column("service_class", sa.Text, nullable=False, server_default=""),
    ):
        op.add_column("usage_records", column)
    op.create_table(
        "charge_accounts",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("window_start", sa.BigInteger, primary_key=True),
        sa.Column("window_end", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("reserved", _NANOS, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
    )
    op.create_index("charge_accounts_by_end", "charge_accounts", ["window_end"])
    op.create_table(
        "charge_spends",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("window_start", sa.BigInteger, primary_key=True),
        sa.Column("gateway", sa.Text, primary_key=True),
        sa.Column("spent", _NANOS, nullable=False),
    )
    op.create_index("charge_spends_by_gateway", "charge_spends", ["gateway"])
    op.create_table(
        "charge_sums",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("hour", sa.BigInteger, nullable=False),
        *(
            sa.Column(name, sa.Text, nullable=name not in ("tenant", "service", "model"))
            for name in ("tenant", "team", "key", "user", "service", "model", "tag")
        ),
        sa.Column("service_class", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("price_list", "owner", "currency", "flag")),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in (
                *("requests", "input_tokens", "cached_tokens", "output_tokens"),
                "reasoning_tokens",
            )
        ),
        sa.Column("charge_nanos", _NANOS, nullable=False),
    )
    op.create_index("charge_sums_by_hour", "charge_sums", ["hour"])
    op.create_table(
        "charge_tags",
        sa.Column("month", sa.BigInteger, primary_key=True),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("tag", sa.Text, primary_key=True),
    )
    op.create_table(
        "charge_months",
        sa.Column("until", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("closed_at", sa.Double, nullable=False),
    )
