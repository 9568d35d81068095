"""What a fleet would save by each lever that it does not use, and loses without each it uses."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from tessera_lab.levers.ladder import MonthlyCosts
from tessera_lab.levers.lever import LeverId, levers
from tessera_lab.levers.month import Month
from tessera_lab.levers.ranking import Ranking, rank
from tessera_lab.levers.setups import LeverUnavailableError, Obstacle


class UnknownWorth(NamedTuple):
    """Why it cannot be said what a lever is worth."""

    lever: str
    obstacle: Obstacle
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """From a fleet as it is; USD per month."""

    present: Month
    worth: Mapping[LeverId, float]
    """What the fleet would cost more without each lever that it uses."""
    savings: Mapping[LeverId, float]
    """What each other lever would save, less than 0 where it costs."""
    ranking: Ranking
    """Of those that save, within the SLO if it is kept today."""
    unknown: tuple[UnknownWorth, ...]


def advise(costs: MonthlyCosts, in_use: Set[LeverId], seed: int) -> Advice:
    """Return the advice; raise LeverUnavailableError where the fleet itself cannot be computed."""
    present = costs.month(in_use)
    worth, savings = dict[LeverId, float](), dict[LeverId, float]()
    unknown = [*_blocked()]
    for lever in LeverId:
        try:
            if lever in in_use:
                worth[lever] = costs.month(in_use - {lever}).usd - present.usd
                continue
            other = costs.month(in_use | {lever})
        except LeverUnavailableError as error:
            unknown.append(UnknownWorth(lever, error.obstacle, str(error)))
            continue
        if present.keeps_slo and not other.keeps_slo:
            message = "the service would miss its SLO with it"
            unknown.append(UnknownWorth(lever, Obstacle.MISSES_SLO, message))
        else:
            savings[lever] = present.usd - other.usd
    return Advice(
        present=present,
        worth=worth,
        savings=savings,
        ranking=rank(savings, seed),
        unknown=tuple(unknown),
    )


def _blocked() -> Iterator[UnknownWorth]:
    for lever in levers().values():
        if lever.blocked:
            yield UnknownWorth(lever.id, Obstacle.NEEDS_EVALUATION, lever.blocked)
