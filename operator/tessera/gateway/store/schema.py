"""The tables, as the newest migration leaves them, and a record as files hold it."""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, get_type_hints

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
)
from sqlalchemy.types import TypeEngine

from tessera.domain.gateway.usage_record import (
    BY_NAME,
    COUNTS,
    FIELDS,
    HASHED,
    STORED,
    NumberRange,
    Phase,
    RecordField,
    UsageRecord,
)

METADATA = MetaData()
# Clients choose some texts: longer ones are cut, since one refused row would hold up all others.
_MAX_TEXT_LENGTH = 512
# Sums of nano-units: those of a currency of small units are larger than 64 bits.
_NANOS = BigInteger().with_variant(Numeric(38, 0), "postgresql")
# The most that is written as one such sum: SQLite takes no more than 64 bits.
MOST_NANOS = 2**62

# The path of a request, `UsageRecord.path`, is the column `route`, and a journal names it so, too.
# Gateways of 0.1 know it by this name: during an upgrade they write the same table, and after a
# rollback they read the rows and the journals that this version left. A revision that renamed it
# would stop them, and only adding `path` would leave it empty in the rows that they write.

_TYPES: Mapping[type, type[TypeEngine[Any]]] = {
    int: BigInteger,
    bool: Boolean,
    str: Text,
    Phase: Text,
    tuple: JSON,
}


def _column(field: RecordField) -> Column[Any]:
    """Return the column of a field of a record."""
    stored = field.stored
    return Column(
        stored.column or field.name,
        Integer if stored.is_small else _TYPES[field.type],
        key=field.name,
        primary_key=field.name == "record_id",
        nullable=field.is_optional,
        server_default=stored.default,
    )


USAGE_RECORDS = Table(
    "usage_records",
    METADATA,
    *map(_column, STORED),
    Index("usage_records_by_time", "started_at_ns"),
    Index("usage_records_by_tenant", "tenant", "started_at_ns"),
)

# One row for each limit that was used lately: a token bucket, or leases of its slots by gateway.
LIMIT_ACCOUNTS = Table(
    "limit_accounts",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("level", Double, nullable=False),
    Column("leases", JSON, nullable=False),
    Column("updated_at", Double, nullable=False),
)

# One row for each window of a scope with a limit of charges; Unix seconds, and `ChargeAccount` in
# whole nano-units. `reserved` is what no record may ever have: such rows stay for the statement.
CHARGE_ACCOUNTS = Table(
    "charge_accounts",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("window_start", BigInteger, primary_key=True),
    Column("window_end", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("reserved", _NANOS, nullable=False),
    Column("state", JSON, nullable=False),
    Index("charge_accounts_by_end", "window_end"),
)

# What the stored records of a gateway were charged in a window, and under CORRECTIONS by people.
CHARGE_SPENDS = Table(
    "charge_spends",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("window_start", BigInteger, primary_key=True),
    Column("gateway", Text, primary_key=True),
    Column("spent", _NANOS, nullable=False),
    Index("charge_spends_by_gateway", "gateway"),
)

# One row for each batch that is charged, with block -1, and one for each of its blocks. Rows of
# before have no tenant, and count for none.
CHARGE_BATCHES = Table(
    "charge_batches",
    METADATA,
    Column("batch", Text, primary_key=True),
    Column("block", BigInteger, primary_key=True, autoincrement=False),
    Column("changed_at", Double, nullable=False),
    Column("state", JSON, nullable=False),
    Column("tenant", Text, nullable=False, server_default=""),
    Index("charge_batches_by_change", "changed_at"),
)
# Block of the row with what is reserved for the others.
RESERVED_BLOCK = -1

# What statements are made of: one row for each group of an hour of UTC, whose digest is its id.
# Gateways write whole rows, so defaults of the server, which some columns have, are not said.
# What providers bill in another currency than that of the charge has a row of its own.
CHARGE_SUMS = Table(
    "charge_sums",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("hour", BigInteger, nullable=False),
    Column("tag", Text),
    Column("flag", Text),
    *(Column(name, Text, nullable=BY_NAME[name].is_optional) for name in HASHED),
    *(
        Column(
            name,
            _NANOS if BY_NAME[name].bound is NumberRange.MONEY else BigInteger,
            nullable=False,
        )
        for name in COUNTS
    ),
    Index("charge_sums_by_hour", "hour"),
    # What a new account of a key, a user, or the tenant begins with.
    Index("charge_sums_by_key", "tenant", "key", "hour"),
    Index("charge_sums_by_user", "tenant", "user", "hour"),
)

# The values of tags that a tenant's rows of a month tell apart.
CHARGE_TAGS = Table(
    "charge_tags",
    METADATA,
    Column("month", BigInteger, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("tag", Text, primary_key=True),
)

# Ends of the months that are closed: Unix seconds.
CHARGE_MONTHS = Table(
    "charge_months",
    METADATA,
    Column("until", BigInteger, primary_key=True, autoincrement=False),
    Column("closed_at", Double, nullable=False),
)

# One row for each gateway that was there lately.
GATEWAYS = Table(
    "gateways",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("seen_at", Double, nullable=False),
)

# What all gateways hash by; the first one of them makes it.
SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)


def storable(text: str) -> str:
    """Return a text as all databases take it: PostgreSQL takes neither NUL nor half a pair."""
    if len(text) <= _MAX_TEXT_LENGTH and "\0" not in text and text.isascii():
        return text
    text = text[:_MAX_TEXT_LENGTH].replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "replace").decode()


def _file_fields() -> list[Any]:
    hints = get_type_hints(UsageRecord)
    required = [(field.name, hints[field.name]) for field in FIELDS if field.default is MISSING]
    others = [field for field in FIELDS if field.default is not MISSING]
    return [*required, *((field.name, hints[field.name], field.default) for field in others)]


# A record as journals and files hold it: what a file of another version lacks has its default.
StoredRecord = msgspec.defstruct(
    "StoredRecord",
    _file_fields(),
    rename={field.name: field.stored.column for field in STORED if field.stored.column},
)


def usage_record(stored: msgspec.Struct) -> UsageRecord:
    """Return the record that a file holds."""
    return UsageRecord(**msgspec.structs.asdict(stored))
