"""Sums of usage records."""

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import UsageRecord

# What a bill and a report tell apart: records that agree in it, in their period and in their status
# are added. An engine chooses nothing of it, and a client its model alone, among the names that its
# tenant may use.
_GROUP = attrgetter(
    *("tenant", "team", "key", "service", "model", "variant", "price_version"),
    *("path", "phase", "reason", "stream", "estimated"),
    *("currency", "price_list", "owner", "service_class", "model_route", "target"),
    *("provider", "cost_currency"),
)

# User or tags of the records beyond those that are distinguished.
OTHER = "other"


class UsageSums:
    """Adds records up: tokens, times, charges and requests stay exact, ids and replicas are left
    out.

    A sum has the `record_id` of its first record, whose place it takes.
    """

    def __init__(self, period_ns: int, *, max_detailed: int | None = None) -> None:
        """Add records that began in the same period of Unix time.

        Users and tags, which clients choose, are distinguished while there are fewer sums than
        `max_detailed`, and are OTHER in those that follow; None: they are left out.
        """
        self._period_ns, self._max_detailed = period_ns, max_detailed
        self.detailed = 0
        """How many sums have a user or tags of their own."""
        self._sums: dict[tuple[object, ...], UsageRecord] = {}

    def __iter__(self) -> Iterator[UsageRecord]:
        return iter(self._sums.values())

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, record: UsageRecord) -> UsageRecord:
        """Add a record; return the sum that it is part of."""
        status, period = _status(record), record.started_at_ns // self._period_ns
        if self._max_detailed is None:
            record = replace(record, user=None, tags="")
        group = (period, status, record.user, record.tags, *_GROUP(record))
        former = self._sums.get(group)
        if former is None and (record.user or record.tags):
            if len(self._sums) < (self._max_detailed or 0):
                self.detailed += 1
            else:
                record = replace(record, user=record.user and OTHER, tags=record.tags and OTHER)
                group = (period, status, record.user, record.tags, *_GROUP(record))
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
        replica=None,
        ttft_ns=None,
        trace_parent="",
        client_address="",
        resumed=0,
        unchecked_joints=0,
        latency=None,
        drafts=None,
        target_reason="",
        skipped_targets="",
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
        charge_nanos=_sum(total.charge_nanos, record.charge_nanos),
        waste_nanos=total.waste_nanos + record.waste_nanos,
        cost_nanos=total.cost_nanos + record.cost_nanos,
        charges=_merged(total.charges, record.charges) if record.charges else total.charges,
    )


def _sum(nanos: int | None, more: int | None) -> int | None:
    return nanos if more is None else (nanos or 0) + more


def _merged(
    charges: tuple[tuple[str, int, int], ...], more: tuple[tuple[str, int, int], ...]
) -> tuple[tuple[str, int, int], ...]:
    """Add charges up by their accounts."""
    totals = {(scope, start): nanos for scope, start, nanos in charges}
    for scope, start, nanos in more:
        totals[scope, start] = totals.get((scope, start), 0) + nanos
    return tuple((scope, start, nanos) for (scope, start), nanos in totals.items())
