"""Sums of usage records."""

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import UsageRecord

# What a bill and a report tell apart: records that agree in it, in their period and in their status
# are added. An engine chooses nothing of it, and a client its model alone, among the names that its
# tenant may use.
_GROUP = attrgetter(
    *("tenant", "team", "key", "service", "model", "variant", "price_version"),
    *("path", "phase", "reason", "stream", "estimated"),
)


class UsageSums:
    """Adds records up: tokens, times and requests stay exact, users, ids and replicas are left out.

    A sum has the `record_id` of its first record, whose place it takes.
    """

    def __init__(self, period_ns: int, *, max_tagged: int = 0) -> None:
        """Add records that began in the same period of Unix time.

        Clients choose tags: they are distinguished in `max_tagged` sums, the first ones.
        """
        self._period_ns, self._max_tagged = period_ns, max_tagged
        self.tagged = 0
        """How many sums have tags."""
        self._sums: dict[tuple[object, ...], UsageRecord] = {}

    def __iter__(self) -> Iterator[UsageRecord]:
        return iter(self._sums.values())

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, record: UsageRecord) -> UsageRecord:
        """Add a record; return the sum that it is part of."""
        status, period = _status(record), record.started_at_ns // self._period_ns
        group = (period, status, record.tags, *_GROUP(record))
        former = self._sums.get(group)
        if former is None and record.tags:
            if self.tagged < self._max_tagged:
                self.tagged += 1
            else:
                record = replace(record, tags="")
                group = (period, status, "", *_GROUP(record))
                former = self._sums.get(group)
        total = _first(record, status) if former is None else _added(former, record)
        self._sums[group] = total
        return total


def _status(record: UsageRecord) -> int:
    """Return the status; of one with which an engine refused its class, such as 400."""
    is_of_engine = record.reason == RequestReason.ENGINE_REFUSED
    return record.status // 100 * 100 if is_of_engine else record.status


def _first(record: UsageRecord, status: int) -> UsageRecord:
    return replace(
        record,
        status=status,
        request_id="",
        user=None,
        replica=None,
        ttft_ns=None,
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
