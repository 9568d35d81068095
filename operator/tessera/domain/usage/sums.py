"""Sums of usage records."""

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from tessera.domain.gateway.requests import UsageRecord

# What a bill and a report tell apart: records that agree in it, and in their period, are added.
_GROUP = attrgetter(
    *("tenant", "team", "user", "key", "service", "model", "variant", "price_version"),
    *("route", "phase", "status", "reason", "stream", "estimated"),
)


class UsageSums:
    """Adds records up: tokens, times and requests stay exact, ids, tags and replicas are left out.

    A sum has the `record_id` of its first record, whose place it takes.
    """

    def __init__(self, period_ns: int) -> None:
        """Add records that began in the same period of Unix time."""
        self._period_ns = period_ns
        self._sums: dict[tuple[object, ...], UsageRecord] = {}

    def __iter__(self) -> Iterator[UsageRecord]:
        return iter(self._sums.values())

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, record: UsageRecord) -> UsageRecord:
        """Add a record; return the sum that it is part of."""
        group = (record.started_at_ns // self._period_ns, *_GROUP(record))
        former = self._sums.get(group)
        self._sums[group] = total = _first(record) if former is None else _added(former, record)
        return total


def _first(record: UsageRecord) -> UsageRecord:
    return replace(
        record,
        request_id="",
        replica=None,
        ttft_ns=None,
        tags="",
        trace_parent="",
        client_address="",
        resumed=0,
        unchecked_joints=0,
        latency=None,
        drafts=None,
    )


def _added(total: UsageRecord, record: UsageRecord) -> UsageRecord:
    return replace(
        total,
        started_at_ns=min(total.started_at_ns, record.started_at_ns),
        requests=total.requests + record.requests,
        input_tokens=total.input_tokens + record.input_tokens,
        cached_tokens=total.cached_tokens + record.cached_tokens,
        output_tokens=total.output_tokens + record.output_tokens,
        reasoning_tokens=total.reasoning_tokens + record.reasoning_tokens,
        queue_ns=total.queue_ns + record.queue_ns,
        total_ns=total.total_ns + record.total_ns,
    )
