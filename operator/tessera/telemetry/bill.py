"""The bill as counters, in nano-units and in the currency."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tessera.domain.cost.bill import Bill
from tessera.domain.cost.device_use import CostLine
from tessera.domain.money import NANO
from tessera.domain.reporting.series import Sample, Series

_LABELS = ("currency", "pool", "profile", "tenant", "namespace", "service", "state")
_COST_NANOS = Series(
    "tessera_cost_nanos",
    "Cost of the nodes of all pools since this process started counting, in 1e-9 of the currency.",
    *_LABELS,
    kind="counter",
)
_COST = Series(
    "tessera_cost",
    "tessera_cost_nanos_total in the currency, rounded to a float.",
    *_LABELS,
    kind="counter",
)
_AS_OF = Series("tessera_cost_as_of_timestamp_seconds", "Time up to which costs are charged.")
_SINCE = Series("tessera_cost_since_timestamp_seconds", "When this process started counting.")
BILL_SERIES = _COST_NANOS, _COST, _AS_OF, _SINCE


@dataclass(frozen=True, slots=True)
class BilledCosts:
    """The bill with its tenants; one immutable value, since scrapes read it from another thread.

    A cost stays with the tenant that its namespace belonged to at the time.
    """

    bill: Bill = field(default_factory=Bill)
    nanos: Mapping[tuple[CostLine, str], int] = field(default_factory=dict)

    def after(self, bill: Bill, tenants: Mapping[str, str]) -> "BilledCosts":
        """Return the costs after a cycle."""
        if bill is self.bill:
            return self
        before, nanos = self.bill.lines, dict(self.nanos)
        for line, total in bill.lines.items():
            increase = total - before.get(line, 0)
            if increase or line not in before:
                key = line, tenants.get(line.namespace, "")
                nanos[key] = nanos.get(key, 0) + increase
        return BilledCosts(bill, nanos)


def bill_samples(billed: BilledCosts) -> Iterator[Sample]:
    """Yield the costs, and the time that they are of."""
    for (line, tenant), nanos in billed.nanos.items():
        owner_labels = tenant, line.namespace, line.service
        labels = line.currency, line.pool, line.profile, *owner_labels, line.state
        yield _COST_NANOS, labels, nanos
        yield _COST, labels, nanos / NANO
    if billed.bill.as_of is not None and billed.bill.since is not None:
        yield _AS_OF, (), billed.bill.as_of.timestamp()
        yield _SINCE, (), billed.bill.since.timestamp()
