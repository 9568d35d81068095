"""The energy of GPUs as counters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tessera.domain.cost.energy import Energy, EnergyLine, EnergyMeter
from tessera.domain.money import NANO
from tessera.domain.reporting.series import Sample, Series

_LABELS = (
    *("currency", "pool", "profile", "tenant", "namespace", "service", "state"),
    *("source", "split"),
)
_JOULES = Series(
    "tessera_energy_joules",
    "Energy of the GPUs of all pools since this process started counting, exact to a millijoule. "
    "`source`: Measured, Power or Model; `split`: by what it was split above the idle watts.",
    *_LABELS,
    kind="counter",
)
_COST = Series(
    "tessera_energy_electricity_cost",
    "Price of that energy by spec.energy of the pool, with its PUE.",
    *_LABELS,
    kind="counter",
)
_CO2 = Series(
    "tessera_energy_co2_grams",
    "CO2 equivalent of that energy by spec.energy of the pool, with its PUE.",
    *_LABELS,
    kind="counter",
)
_GAPS = Series(
    "tessera_energy_gap_seconds",
    "Time of GPUs without measured energy, by `reason`: CounterReset, Implausible or NoReading.",
    "pool",
    "reason",
    kind="counter",
)
_IDLE = Series(
    "tessera_energy_idle_watts",
    "Idle watts of the free part of each GPU of which another part is used.",
    "pool",
    "node",
    "gpu",
)
_AS_OF = Series(
    "tessera_energy_as_of_timestamp_seconds", "Time of the last samples of GPUs that are counted."
)
ENERGY_SERIES = _JOULES, _COST, _CO2, _GAPS, _IDLE, _AS_OF


@dataclass(frozen=True, slots=True)
class TenantEnergy:
    """The meter with its tenants, as `BilledCosts` has those of the bill."""

    meter: EnergyMeter = field(default_factory=EnergyMeter)
    energy: Mapping[tuple[EnergyLine, str], Energy] = field(default_factory=dict)

    def after(self, meter: EnergyMeter, tenants: Mapping[str, str]) -> "TenantEnergy":
        """Return the energy after a cycle."""
        if meter is self.meter:
            return self
        before, energy = self.meter.lines, dict(self.energy)
        for key, total in meter.lines.items():
            if total != before.get(key):
                tenant = tenants.get(key.line.namespace, "")
                increase = total.minus(before.get(key, Energy()))
                energy[key, tenant] = energy.get((key, tenant), Energy()).plus(increase)
        return TenantEnergy(meter, energy)


def energy_samples(metered: TenantEnergy) -> Iterator[Sample]:
    """Yield the energy, what it cost and emitted, and what is not known."""
    for (key, tenant), energy in metered.energy.items():
        line = key.line
        owner = tenant, line.namespace, line.service
        state = key.state, key.source, key.split
        labels = line.currency, line.pool, line.profile, *owner, *state
        yield _JOULES, labels, energy.millijoules / 1000
        yield _COST, labels, energy.nanos / NANO
        yield _CO2, labels, energy.micrograms / 10**6
    for (pool, reason), seconds in metered.meter.gaps.items():
        yield _GAPS, (pool, reason), seconds
    for idle, watts in metered.meter.idle_watts.items():
        yield _IDLE, tuple(idle), watts
    if metered.meter.as_of is not None:
        yield _AS_OF, (), metered.meter.as_of.timestamp()
