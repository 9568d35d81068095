"""Tenants of batches, whose rows count as all others of a tenant."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add them: a batch from before has none until its next message."""
    tenant = sa.Column("tenant", sa.Text, nullable=False, server_default="")
    op.add_column("charge_batches", tenant)
