"""The energy between two moments, at the scrapes at which the statement of the cost is read."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tessera.domain.cost.energy import Energy, EnergyLine, IdleGPU
from tessera.domain.cost.statement import BilledPeriod, KeyT, ScrapeRef, build_statement

# A tenant, its line, and a field of `Energy`.
EnergyKey: TypeAlias = tuple[str, EnergyLine, str]
# A pool and a reason.
GapKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyScrape:
    """The energy that one process has counted until a scrape."""

    amounts: Mapping[EnergyKey, int] = field(default_factory=dict)
    gaps: Mapping[GapKey, int] = field(default_factory=dict)
    """Milliseconds of GPUs without measured energy."""
    idle_watts: Mapping[IdleGPU, float] = field(default_factory=dict)
    """Of the free part of GPUs that are used in part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyStatement:
    """The energy of the time of a statement."""

    energy: Mapping[tuple[str, EnergyLine], Energy] = field(default_factory=dict)
    """By tenant and line."""
    gaps: Mapping[GapKey, int] = field(default_factory=dict)
    """Milliseconds of GPUs without measured energy."""
    idle_watts: Mapping[IdleGPU, float] = field(default_factory=dict)
    """At the end, of the free part of GPUs that are used in part."""


def build_energy_statement(
    periods: Sequence[BilledPeriod], scrapes: Mapping[ScrapeRef, EnergyScrape]
) -> EnergyStatement:
    """Return the energy of all periods from what was counted at their scrapes."""
    if not periods:
        return EnergyStatement()
    fields: dict[tuple[str, EnergyLine], dict[str, int]] = defaultdict(dict)
    amounts = _sums(periods, {ref: scrape.amounts for ref, scrape in scrapes.items()})
    for (tenant, line, name), amount in amounts.items():
        fields[tenant, line][name] = amount
    return EnergyStatement(
        energy={key: Energy(**amounts) for key, amounts in fields.items()},
        gaps=_sums(periods, {ref: scrape.gaps for ref, scrape in scrapes.items()}),
        idle_watts=scrapes[periods[-1].latest].idle_watts,
    )


def _sums(
    periods: Sequence[BilledPeriod], amounts: Mapping[ScrapeRef, Mapping[KeyT, Any]]
) -> Mapping[KeyT, int]:
    statement = build_statement(periods, amounts)
    return statement.amounts if statement is not None else {}
