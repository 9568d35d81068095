"""A dimension `region` of the record: where a request was answered."""

from tests.width.additions import Addition

_MIGRATION = '''"""Regions of records and of sums."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add them: what was recorded before has none."""
    for table in ("usage_records", "charge_sums"):
        op.add_column(table, sa.Column("region", sa.Text, nullable=False, server_default=""))
'''

_FIELD = """    region: Annotated[
        str, Dimension(by=RecordDimension.REGION, hashed=13), Stored(default="")
    ] = ""
    target_reason: Annotated["""

REGION = Addition(
    new={"gateway/store/migrations/versions/0010_region.py": _MIGRATION},
    edits={
        "domain/gateway/usage_record.py": {
            '    FLAG = "flag"\n': '    FLAG = "flag"\n    REGION = "region"\n',
            "    target_reason: Annotated[": _FIELD,
        }
    },
    check="tests.width.check_region",
)
