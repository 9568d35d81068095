"""The requests that ended last, with what decided where they went."""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice, zip_longest
from typing import NamedTuple

from tessera.domain.explain.request import (
    AttemptExplanation,
    RequestExplanation,
    RequestExplanations,
    explain_attempt,
)
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.fleet.replicas import SentRequest

MAX_RECENT_BYTES = 16 * 2**20
# What Python takes at most: of a request its record, with the texts that a client chooses, of an
# attempt what describes its choice, and of a replica what was compared, or why it was not.
BYTES_PER_REQUEST, BYTES_PER_ATTEMPT, BYTES_PER_REPLICA = 1600, 400, 250
BYTES_PER_TENANT = 1000
# Part of the budget that is freed at once, so that tenants are compared rarely, and of how many by
# one comparison.
_FREED_SHARE, _MAX_TENANTS = 1 / 64, 128
# Of those with one id, which clients choose: of each tenant, and of all.
_MAX_EXPLAINED_OF_TENANT, MAX_EXPLAINED = 5, 100


class _EndedRequest(NamedTuple):
    record: UsageRecord
    attempts: Sequence[SentRequest]
    size: int


class _TenantRequests:
    """Those of one tenant, oldest first."""

    def __init__(self) -> None:
        self.requests = deque[_EndedRequest]()
        self.size = BYTES_PER_TENANT


class RecentRequests:
    """Keeps the last requests that engines got; where they are too many, of who has most."""

    def __init__(self, max_bytes: int = MAX_RECENT_BYTES) -> None:
        self.size = 0
        """Bytes, at most `max_bytes`."""
        self._max_bytes = max_bytes
        self._tenants: dict[str, _TenantRequests] = {}

    def add(self, record: UsageRecord, attempts: Sequence[SentRequest]) -> None:
        """Keep a request that ended, with the replicas that it was sent to."""
        size = BYTES_PER_REQUEST
        for attempt in attempts:
            size += BYTES_PER_ATTEMPT + BYTES_PER_REPLICA * len(attempt.comparison.replicas)
        tenant = self._tenants.get(record.tenant)
        if tenant is None:
            tenant = self._tenants[record.tenant] = _TenantRequests()
            self.size += BYTES_PER_TENANT
        tenant.requests.append(_EndedRequest(record, attempts, size))
        tenant.size += size
        self.size += size
        if self.size > self._max_bytes:
            self._make_room()

    def explain(self, request_id: str) -> RequestExplanations:
        """Return the newest requests with this id, of each tenant apart from those of others."""
        tenants = [tenant.requests for tenant in self._tenants.values()]
        own = [islice(_named(each, request_id), _MAX_EXPLAINED_OF_TENANT) for each in tenants]
        # The newest of each tenant comes before the second of any.
        in_turn = (ended for rank in zip_longest(*own) for ended in rank if ended is not None)
        named = sorted(islice(in_turn, MAX_EXPLAINED), key=_started_at_ns, reverse=True)
        every = [_started_at_ns(ended) for requests in tenants for ended in requests]
        return RequestExplanations(
            requests=tuple(map(_explanation, named)),
            kept_requests=len(every),
            kept_since=_moment(min(every)) if every else None,
        )

    def _make_room(self) -> None:
        target = self._max_bytes * (1 - _FREED_SHARE)
        while self.size > target:
            named = heapq.nlargest(_MAX_TENANTS, self._tenants.items(), key=_size)
            least = named[0][1].size / 2
            for name, tenant in named:
                # Who has much less than the first gives way after that one did again.
                if self.size <= target or tenant.size < least:
                    break
                self._drop(name, tenant, target)

    def _drop(self, name: str, tenant: _TenantRequests, target: float) -> None:
        least = tenant.size / 2
        while tenant.requests and self.size > target and tenant.size > least:
            size = tenant.requests.popleft().size
            tenant.size -= size
            self.size -= size
        if not tenant.requests:
            del self._tenants[name]
            self.size -= BYTES_PER_TENANT


def _size(named: tuple[str, _TenantRequests]) -> int:
    return named[1].size


def _named(requests: deque[_EndedRequest], request_id: str) -> Iterator[_EndedRequest]:
    """Yield those with an id, the last to end first."""
    return (ended for ended in reversed(requests) if ended.record.request_id == request_id)


def _started_at_ns(ended: _EndedRequest) -> int:
    return ended.record.started_at_ns


def _explanation(ended: _EndedRequest) -> RequestExplanation:
    record = ended.record
    return RequestExplanation(
        request_id=record.request_id,
        tenant=record.tenant,
        key=record.key,
        service=record.service,
        provider=record.provider,
        model=record.model,
        path=record.path,
        started_at=_moment(record.started_at_ns),
        attempts=tuple(_attempts(ended.attempts)),
        phase=record.phase,
        status=record.status,
        reason=record.reason,
        queue_seconds=record.queue_ns / 1e9,
        ttft_seconds=None if record.ttft_ns is None else record.ttft_ns / 1e9,
        total_seconds=record.total_ns / 1e9,
        input_tokens=record.input_tokens,
        cached_tokens=record.cached_tokens,
        predicted_cached_tokens=record.predicted_cached_tokens,
        uncached_prefix_tokens=record.uncached_prefix_tokens,
        output_tokens=record.output_tokens,
        estimated=record.estimated,
        model_route=record.model_route,
        target=record.target,
        target_reason=record.target_reason,
        skipped_targets=record.skipped_targets,
    )


def _attempts(attempts: Sequence[SentRequest]) -> Iterator[AttemptExplanation]:
    tried = list[str]()
    for sent in attempts:
        yield explain_attempt(
            sent.choice,
            sent.comparison,
            tried,
            sent.failure,
        )
        tried.append(sent.choice.replica.uid)


def _moment(unix_ns: int) -> datetime:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC)
