"""The tables, as the newest migration leaves them."""

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

METADATA = MetaData()

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
    Column("route", Text, nullable=False),
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
