"""A route over several fleets: its rules choose a target for each request, whose fleet answers it.

The lengths are those of the trace. What rules read is drawn, with a share of trivial requests (S326
of the catalogue).
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tessera.api.model_route import ModelRouteSpec
from tessera.domain.routes.opening import RequestOpening
from tessera.domain.routes.order import target_order
from tessera_lab.fleet.course import HOUR, cost
from tessera_lab.fleet.policies.product import OURS, FleetObjects, ProductPolicy, router_of
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.trace import Trace

_TRIVIAL = ("What is the capital of France?", "Thank you!", "Is 97 a prime number?")
_HARD = (
    "Analyze both drafts and explain why the second one is the weaker one.",
    "Compare the two designs step by step, and say which one fits better.",
    "Write code that merges two lists, and explain why it is linear.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFleet:
    """The service of a target, with what its GPUs cost."""

    objects: FleetObjects
    prices: GpuPrices


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetCourse:
    """What became of the requests of one target."""

    requests: int
    in_time: int
    """Those whose first token came within the objective of the service."""
    usd_per_hour: float


def trivial_openings(count: int, share: float, seed: int) -> Iterator[RequestOpening]:
    """Yield what rules read of so many requests, a share of which are trivial."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    for _ in range(count):
        text = rng.choice(_TRIVIAL if rng.random() < share else _HARD)
        yield RequestOpening(text=text, session=rng.randbytes(16))


def play_route(
    spec: ModelRouteSpec,
    trace: Trace,
    openings: Iterator[RequestOpening],
    fleets: Mapping[str, TargetFleet],
) -> Mapping[str, TargetCourse]:
    """Let the rules choose for each request, and each target's fleet answer, by the product's plan.

    A target that gets no request has no fleet.
    """
    rows = defaultdict[str, list[int]](list)
    for row, opening in zip(range(len(trace)), openings, strict=True):
        rows[target_order(spec, opening).targets[0].target_name].append(row)
    return {
        target: _play(trace.select(chosen), fleets[target])
        for target, chosen in sorted(rows.items())
    }


def _play(trace: Trace, target: TargetFleet) -> TargetCourse:
    objects = target.objects
    sized = sized_fleet(objects.spec, objects.choice().fit)
    fleet = replace(sized, router=router_of(OURS))
    course = Simulation(trace, fleet, ProductPolicy(objects)).run()
    usd = cost(course, target.prices, fleet.purchase, fleet.gpus)
    return TargetCourse(
        requests=len(trace),
        in_time=sum(seconds <= fleet.replica.ttft for seconds in course.ttft),
        usd_per_hour=usd * HOUR / course.paid_seconds,
    )
