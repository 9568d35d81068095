"""Routes and targets of records and of sums."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add both, which are empty of what was recorded before."""
    for table in ("usage_records", "charge_sums"):
        for name in ("model_route", "target"):
            column = sa.Column(name, sa.Text, nullable=False, server_default="")
            op.add_column(table, column)
