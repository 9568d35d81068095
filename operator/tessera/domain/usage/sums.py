"""Sums of usage records."""

from collections.abc import Iterator
from dataclasses import MISSING, replace
from operator import attrgetter
from typing import Any

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import (
    CHOSEN,
    FIELDS,
    MEASURES,
    SUMMED_BY,
    UsageRecord,
)

# What a bill and a report tell apart: records that agree in it, in their period and in their status
# are added. An engine chooses nothing of it, and a client its model alone, among the names that its
# tenant may use.
_GROUP = attrgetter(*SUMMED_BY)
# What stays as it is in a sum.
_KEPT = {*SUMMED_BY, *CHOSEN, *MEASURES, "record_id", "started_at_ns", "status", "charges"}
_LEFT_OUT: dict[str, Any] = {
    field.name: "" if field.default is MISSING else field.default
    for field in FIELDS
    if field.name not in _KEPT
}

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
    return replace(record, status=status, **_LEFT_OUT)


def _added(total: UsageRecord, record: UsageRecord) -> UsageRecord:
    measures: dict[str, Any] = {
        name: _sum(getattr(total, name), getattr(record, name)) for name in MEASURES
    }
    return replace(
        total,
        started_at_ns=min(total.started_at_ns, record.started_at_ns),
        charges=_merged(total.charges, record.charges) if record.charges else total.charges,
        **measures,
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
