"""The tables, as the newest migration leaves them, and a record as files hold it."""

from dataclasses import MISSING, fields
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
    Table,
    Text,
)

from tessera.domain.gateway.requests import UsageRecord

METADATA = MetaData()

# The path of a request, `UsageRecord.path`, is the column `route`, and a journal names it so, too.
# Gateways of 0.1 know it by this name: during an upgrade they write the same table, and after a
# rollback they read the rows and the journals that this version left. A revision that renamed it
# would stop them, and only adding `path` would leave it empty in the rows that they write.

USAGE_RECORDS = Table(
    "usage_records",
    METADATA,
    Column("record_id", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("started_at_ns", BigInteger, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("team", Text),
    Column("user", Text),
    Column("key", Text),
    Column("service", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("variant", Text),
    Column("replica", Text),
    Column("route", Text, key="path", nullable=False),
    Column("phase", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("queue_ns", BigInteger, nullable=False),
    Column("ttft_ns", BigInteger),
    Column("total_ns", BigInteger, nullable=False),
    Column("tags", Text, nullable=False),
    Column("price_version", Text),
    Column("requests", BigInteger, nullable=False, server_default="1"),
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


def _stored_fields() -> list[Any]:
    types, own = get_type_hints(UsageRecord), fields(UsageRecord)
    required = [(each.name, types[each.name]) for each in own if each.default is MISSING]
    others = [each for each in own if each.default is not MISSING]
    return [*required, *((each.name, types[each.name], each.default) for each in others)]


# A record as journals and files hold it: what a file of another version lacks has its default.
StoredRecord = msgspec.defstruct("StoredRecord", _stored_fields(), rename={"path": "route"})


def usage_record(stored: msgspec.Struct) -> UsageRecord:
    """Return the record that a file holds."""
    return UsageRecord(**msgspec.structs.asdict(stored))
