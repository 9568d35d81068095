"""Which records become rows of the store, and the sums of the others: by tenant and period."""

from collections import Counter, deque
from collections.abc import Sequence

from tessera.domain.gateway.requests import UsageRecord
from tessera.domain.usage.sums import UsageSums

SUM_SECONDS = 60
# Of one tenant in each period: 20 requests a second, so that none fills the store by many small
# ones. Those that follow are added up, and become rows after the end of the period.
MAX_TENANT_ROWS = 1200
# Of one tenant in each period. Beyond these, users and tags are added up; so many sums without a
# user and tags of their own make it wait.
MAX_TENANT_SUMS = 1000


class Summing:
    """Adds up what a tenant has beyond its rows, until the store has room for the sums."""

    def __init__(self) -> None:
        self._rows = Counter[str]()
        """By tenant, in this period."""
        self._sums: dict[str, UsageSums] = {}
        """By tenant, of this period."""
        self._changed: dict[str, UsageRecord] = {}
        """By id, those that grew since they were noted."""
        self._ended = deque[UsageRecord]()
        """Of periods before, the oldest first."""

    @property
    def has_ended(self) -> bool:
        """Return whether there are sums of periods before."""
        return bool(self._ended)

    def is_full(self, tenant: str) -> bool:
        """Return whether a tenant has as many sums as it may have in a period."""
        sums = self._sums.get(tenant)
        return sums is not None and len(sums) - sums.detailed >= MAX_TENANT_SUMS

    def add(self, record: UsageRecord) -> UsageRecord | None:
        """Return the sum that a record is part of now; None of one that becomes a row itself."""
        tenant = record.tenant
        self._rows[tenant] += 1
        if self._rows[tenant] <= MAX_TENANT_ROWS:
            return None
        sums = self._sums.get(tenant)
        if sums is None:
            sums = UsageSums(SUM_SECONDS * 10**9, max_detailed=MAX_TENANT_SUMS)
            self._sums[tenant] = sums
        total = sums.add(record)
        self._changed[total.record_id] = total
        return total

    def take_changed(self) -> Sequence[UsageRecord]:
        """Return the sums that grew since the last time."""
        changed, self._changed = self._changed, {}
        return tuple(changed.values())

    def end_period(self) -> None:
        """Begin new rows and sums; `take_ended` returns those before."""
        for sums in self._sums.values():
            self._ended.extend(sums)
        self._rows.clear()
        self._sums = {}

    def take_ended(self, most: int) -> Sequence[UsageRecord]:
        """Return sums of periods before, at most so many, which become rows now."""
        return [self._ended.popleft() for _ in range(min(most, len(self._ended)))]
