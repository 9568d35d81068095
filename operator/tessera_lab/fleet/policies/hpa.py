"""The algorithm of a HorizontalPodAutoscaler (autoscaling/v2) and a policy around it.

KEDA and the Workload Variant Autoscaler order their replicas through the same algorithm. A metric
is a function from an observation to the replicas it asks for; None is a metric that is unreadable.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessera_lab.fleet.observation import EngineSample, Observation
from tessera_lab.fleet.policies.series import TimeWindow

Metric = Callable[[Observation], int | None]

# A ratio of value and target this close to 1 changes nothing.
TOLERANCE = 0.1
# Absorbs the rounding of ratios.
_EPSILON = 1e-9
SYNC_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeLimit:
    """A policy of `behavior`: how many replicas change per period, in pods or in percent."""

    period: float
    pods: float = 0.0
    percent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingBehavior:
    """One direction of `behavior`; the limit that allows most counts."""

    window: float
    limits: tuple[ChangeLimit, ...]


# What an HPA does without `behavior`.
DEFAULT_UP = ScalingBehavior(
    window=0, limits=(ChangeLimit(period=15, percent=100), ChangeLimit(period=15, pods=4))
)
DEFAULT_DOWN = ScalingBehavior(window=300, limits=(ChangeLimit(period=15, percent=100),))


def pods_behavior(window: float, pods: float, period: float) -> ScalingBehavior:
    """Return a behavior with one limit in pods."""
    return ScalingBehavior(window=window, limits=(ChangeLimit(period=period, pods=pods),))


def average_value(
    total: float | None, target: float, replicas: int, tolerance: float = TOLERANCE
) -> int | None:
    """Return the replicas that an External metric with `AverageValue` asks for."""
    if total is None:
        return None
    if replicas and _within(total / (target * replicas), tolerance):
        return replicas
    return math.ceil(total / target - _EPSILON)


def external_value(value: float | None, target: float, observation: Observation) -> int | None:
    """Return the replicas that an External metric with `Value` asks for."""
    if value is None:
        return None
    ratio = value / target
    if _within(ratio):
        return observation.replicas
    return math.ceil(observation.ready * ratio - _EPSILON)


def pods_average(values: Sequence[float], target: float, replicas: int) -> int | None:
    """Return the replicas that a Pods metric asks for; pods without a value are missing.

    Missing pods count as 0 on the way up and as the target on the way down.
    """
    if not values:
        return None
    ratio = sum(values) / (len(values) * target)
    missing = replicas - len(values)
    if missing <= 0:
        return replicas if _within(ratio) else math.ceil(len(values) * ratio - _EPSILON)
    assumed = sum(values) + (missing * target if ratio < 1 else 0.0)
    cautious = assumed / (replicas * target)
    desired = math.ceil(replicas * cautious - _EPSILON)
    flips = cautious < 1 < ratio or ratio < 1 < cautious
    overshoots = (cautious < 1 and desired > replicas) or (cautious > 1 and desired < replicas)
    if _within(cautious) or flips or overshoots:
        return replicas
    return desired


def _within(ratio: float, tolerance: float = TOLERANCE) -> bool:
    return abs(ratio - 1) <= tolerance + _EPSILON


def total_of(
    observation: Observation, value: Callable[[EngineSample], float], *, empty: float | None = None
) -> float | None:
    """Return the sum over all engines with metrics, as a query over their series; or `empty`."""
    samples = [value(engine) for engine in observation.engines if engine is not None]
    return sum(samples) if samples else empty


def mean_of(
    observation: Observation, value: Callable[[EngineSample], float], *, empty: float | None = None
) -> float | None:
    """Return the mean over all engines with metrics; or `empty`."""
    samples = [value(engine) for engine in observation.engines if engine is not None]
    return sum(samples) / len(samples) if samples else empty


class HorizontalPodAutoscaler:
    """Chooses among metrics, steadies the choice and limits the steps."""

    def __init__(
        self, *, up: ScalingBehavior, down: ScalingBehavior, bounds: tuple[float, float]
    ) -> None:
        self._up = up
        self._down = down
        self._bounds = bounds
        self._lowest = TimeWindow(up.window)
        self._highest = TimeWindow(down.window)
        self._changes: list[tuple[float, int]] = []
        self._periods = max(limit.period for limit in (*up.limits, *down.limits))
        self._fresh = True

    def decide(self, at: float, replicas: int, proposals: Sequence[int | None]) -> int:
        """Return the replicas; with an unreadable metric there are never fewer."""
        readable = [proposal for proposal in proposals if proposal is not None]
        if not readable or (len(readable) < len(proposals) and max(readable) < replicas):
            return replicas
        if self._fresh:
            # The first recommendation is what runs.
            self._fresh = False
            self._remember(at, replicas)
        self._remember(at, max(readable))
        steady = int(min(max(replicas, self._lowest.min()), self._highest.max()))
        lowest, highest = self._bounds
        desired = int(min(max(self._limited(at, replicas, steady), lowest), highest))
        self._changes = [change for change in self._changes if change[0] > at - self._periods]
        if desired != replicas:
            self._changes.append((at, desired - replicas))
        return desired

    def _remember(self, at: float, recommendation: int) -> None:
        self._lowest.add(at, recommendation)
        self._highest.add(at, recommendation)

    def _limited(self, at: float, replicas: int, steady: int) -> int:
        if steady > replicas:
            return min(steady, max(replicas, *self._reach(at, replicas, self._up, 1)))
        if steady < replicas:
            return max(steady, min(replicas, *self._reach(at, replicas, self._down, -1)))
        return replicas

    def _reach(self, at: float, replicas: int, behavior: ScalingBehavior, sign: int) -> list[int]:
        """Return how far each limit reaches, from the replicas at the start of its period."""
        reach = []
        for limit in behavior.limits:
            start = replicas - sum(
                change for moment, change in self._changes if moment > at - limit.period
            )
            change = limit.pods if limit.pods else start * limit.percent / 100
            reach.append(start + sign * math.ceil(change))
        return reach


class HpaPolicy:
    """An HPA over metrics that Prometheus scrapes."""

    interval = SYNC_SECONDS
    scrape = SYNC_SECONDS

    def __init__(self, hpa: HorizontalPodAutoscaler, metrics: Sequence[Metric]) -> None:
        self._hpa = hpa
        self._metrics = metrics

    def decide(self, observation: Observation) -> int:
        """Return the replicas that the largest metric asks for, as `behavior` allows."""
        proposals = [metric(observation) for metric in self._metrics]
        return self._hpa.decide(observation.at, observation.replicas, proposals)
