"""Which records become rows of the store, and the sums of the others: by tenant and period."""

from collections import Counter, deque
from collections.abc import Sequence

from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.usage.sums import UsageSums

SUM_SECONDS = 60
# Of one tenant in each period: 20 requests a second, so that none fills the store by many small
# ones. Those that follow are added up, and become rows after the end of the period.
MAX_TENANT_ROWS = 1200
# Sums of one tenant that grow at a time. Beyond these, users and tags are added up; so many sums
# without a user and tags of their own end before their period does, and others begin.
MAX_TENANT_SUMS = 1000
# Measured: memory of a record without its long texts, and of each account that pays for it.
_RECORD_BYTES, _CHARGE_BYTES = 1000, 200


class Summing:
    """Adds up what a tenant has beyond its rows, until the store has room for the sums.

    No tenant is refused for having many: one with very many different sums gets more rows.
    """

    def __init__(self) -> None:
        self._rows = Counter[str]()
        """By tenant, in this period."""
        self._sums: dict[str, UsageSums] = {}
        """By tenant, of this period."""
        self._changed: dict[str, UsageRecord] = {}
        """By id, those that grew since they were noted."""
        self._ended = deque[UsageRecord]()
        """Those that grow no more, the oldest first."""
        self._ended_bytes = Counter[str]()
        """Memory of the ended sums of each tenant."""

    @property
    def has_ended(self) -> bool:
        """Return whether there are sums that grow no more and are no rows yet."""
        return bool(self._ended)

    def ended_bytes(self, tenant: str) -> int:
        """Return the memory of a tenant's sums that grow no more and are no rows yet."""
        return self._ended_bytes[tenant]

    def add(self, record: UsageRecord) -> UsageRecord | None:
        """Return the sum that a record is part of now; None of one that becomes a row itself."""
        tenant = record.tenant
        self._rows[tenant] += 1
        if self._rows[tenant] <= MAX_TENANT_ROWS:
            return None
        sums = self._sums.get(tenant)
        if sums is not None and len(sums) - sums.detailed >= MAX_TENANT_SUMS:
            self._end(tenant)
            sums = None
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
        for tenant in tuple(self._sums):
            self._end(tenant)
        self._rows.clear()

    def _end(self, tenant: str) -> None:
        for total in self._sums.pop(tenant):
            self._ended.append(total)
            self._ended_bytes[tenant] += record_bytes(total)

    def take_ended(self, most: int) -> Sequence[UsageRecord]:
        """Return sums that grow no more, at most so many, which become rows now."""
        taken = [self._ended.popleft() for _ in range(min(most, len(self._ended)))]
        for total in taken:
            self._ended_bytes[total.tenant] -= record_bytes(total)
            if not self._ended_bytes[total.tenant]:
                del self._ended_bytes[total.tenant]
        return taken


def record_bytes(record: UsageRecord) -> int:
    """Return about how many bytes of memory a record takes, by the texts that clients choose."""
    texts = len(record.tags) + len(record.user or "") + len(record.request_id)
    return _RECORD_BYTES + texts + _CHARGE_BYTES * len(record.charges)
