"""How well and how fast MIG layouts are planned: `make bench-mig`.

Fleets come from a seeded generator. Times are wall-clock times of this machine, with the CPU time
beside them. The last line is `BENCH {json}`.
"""

import cProfile
import pstats
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TypeVar

from figures import benchmark
from mig_fleets import PLANNERS, fleet
from mig_followers import FOLLOWERS
from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.mig.demand import GpuOffer, ServiceDemand, meets_demand
from tessera.domain.mig.fleet import replicas_by_service
from tessera.domain.mig.fleet_repair import MigFleet, repair_fleet
from tessera.domain.mig.layout_changes import replica_moves
from tessera.domain.mig.mix import cheapest_mix
from tessera.domain.mig.plan import plan_layouts
from tessera.domain.mig.service_selection import select_services

A100 = gpu_models()["A100-80GB"]
ONE = (GpuOffer(gpu_model=A100, price=1),)
# Prices in cents, so that the step of cost is small, as it is in life.
THREE = tuple(
    GpuOffer(gpu_model=gpu_models()[name], price=price)
    for name, price in (("A100-80GB", 179), ("H100-80GB", 331), ("H200-141GB", 419))
)
# Between two events of the churn; of a GPU for an hour.
HOURS, DOLLARS = 0.1, 1.79
SEEDS = range(5)
SIZES = (3, 10, 30, 100)
SCALES = (0.05, 0.3, 1.35)

T = TypeVar("T")
Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    wall: float
    cpu: float


def timed(work: Callable[[], T]) -> tuple[T, Timing]:
    """The result, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Timing(time.perf_counter() - wall, time.process_time() - cpu)


def measure(fleets: int = 204, events: int = 1000, services: int = 500) -> Figures:
    """Measure plans, and compare them with those of simpler planners."""
    cheapest_mix(fleet(3, 0, [A100]), ONE)  # loads the solver, whose import is not planning
    figures: Figures = {"solver": f"HiGHS {version('highspy')}"}
    for part in (_whole_fleets, _three_gpu_models, _replans):
        figures |= part(services)
    figures |= _full_pool(services * 3 // 10)
    figures |= _compare_planners(fleets)
    figures |= _churn(events)
    return figures


def _whole_fleets(count: int) -> Figures:
    """So many services from nothing, the median and the worst of several fleets."""
    plans = []
    for seed in SEEDS:
        services = fleet(count, seed, [A100])
        plans.append(timed(partial(cheapest_mix, services, ONE)))
    return {
        "plan_500_services_s": _rounded(statistics.median(took.wall for _, took in plans)),
        "plan_500_services_s_max": _rounded(max(took.wall for _, took in plans)),
        "plan_500_services_cpu_s": _rounded(statistics.median(took.cpu for _, took in plans)),
        "plan_500_solver_share": _rounded(_solver_share(fleet(count, 0, [A100]))),
        "plan_500_gpus": [mix.cost for mix, _ in plans],
        "gap": max(mix.gap for mix, _ in plans),
    }


def _solver_share(services: Sequence[ServiceDemand]) -> float:
    """Of the time that a profiler sees, what passes inside the solver."""
    profile = cProfile.Profile()
    profile.runcall(cheapest_mix, services, ONE)
    rows = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined] # it has them
    total = sum(own_seconds for _, (_, _, own_seconds, _, _) in rows)
    inside = sum(
        whole for (file, _, name), (_, _, _, whole, _) in rows if _is_solver_call(file, name)
    )
    return float(inside / total)


def _is_solver_call(file: str, name: str) -> bool:
    return file.endswith("mig/integer_program.py") and name in ("solve_relaxed", "solve_integer")


def _three_gpu_models(count: int) -> Figures:
    services = fleet(count, 0, [offer.gpu_model for offer in THREE])
    mix, took = timed(partial(cheapest_mix, services, THREE))
    return {
        "plan_three_boards_s": _rounded(took.wall),
        "plan_three_boards_cpu_s": _rounded(took.cpu),
        "plan_three_boards_gap": round(mix.gap, 6),
    }


def _full_pool(size: int) -> Figures:
    """So many services of one kind of slice each, and nine tenths of the GPUs that they need."""
    services = [
        replace(service, max_types=1)
        for service in fleet(size, 0, [offer.gpu_model for offer in THREE])
    ]
    needed = Counter[str]()
    for (gpu_model, _), count in cheapest_mix(services, THREE).gpus.items():
        needed[gpu_model] += count
    offers = [replace(offer, max_gpus=needed[offer.gpu_model.name] * 9 // 10) for offer in THREE]
    chosen, took = timed(partial(select_services, services, offers, [], {}, None))
    return {
        "full_pool_cpu_s": _rounded(took.cpu),
        "full_pool_served": len(chosen.mix.replicas),
        "full_pool_gap": round(chosen.mix.gap, 6),
    }


def _replans(count: int) -> Figures:
    """One service changes in a fleet of about 1,000 GPUs; the bound is that of the full solve."""
    services = fleet(count, 1, [A100])
    gpus = plan_layouts(services, ONE).gpus
    draw = random.Random(7)  # noqa: S311 - a change is no secret
    took, ratios, moved = [], [], []
    for _ in range(20):
        at = draw.randrange(len(services))
        changed = replace(services[at], demand=services[at].demand * draw.choice((0.3, 1.3, 2, 3)))
        changed_services = [*services[:at], changed, *services[at + 1 :]]
        full = cheapest_mix(changed_services, ONE).cost
        mig_fleet = MigFleet(services=changed_services, offers=ONE, gpus=gpus)
        repaired, timing = timed(partial(repair_fleet, mig_fleet, int(full * 1.005)))
        counts = replicas_by_service(repaired)
        assert all(meets_demand(service, counts[service.name]) for service in changed_services)  # noqa: S101
        took.append(timing.wall * 1e3)
        ratios.append(mig_fleet.cost(repaired) / full)
        moved.append(len(replica_moves(gpus, repaired)))
    return {
        "replan_gpus": len(gpus),
        "replan_1000_gpus_ms": round(statistics.median(took), 1),
        "replan_1000_gpus_ms_max": round(max(took), 1),
        "repair_vs_full": round(max(ratios), 4),
        "repair_moves_mean": statistics.mean(moved),
    }


def _compare_planners(count: int) -> Figures:
    """Compare with the GPUs of simpler planners, and count where one needed fewer."""
    cost, bounds, proven, worse, exact = 0, 0, 0, 0, [0, 0]
    others = dict.fromkeys(PLANNERS, 0)
    for at in range(count):
        size, scale = SIZES[at % len(SIZES)], SCALES[at // len(SIZES) % len(SCALES)]
        services = fleet(size, 1000 + at, [A100], scale)
        mix = cheapest_mix(services, ONE)
        cost, bounds = cost + mix.cost, bounds + mix.bound
        if mix.cost == mix.bound:
            proven += 1
            exact = [exact[0] + mix.cost, exact[1] + mix.bound]
        for name, planner in PLANNERS.items():
            gpus = planner(services, A100)
            others[name] += gpus
            worse += gpus < mix.cost
    return {
        "fleets": count,
        "fleets_proven": proven,
        "fleets_worse": worse,
        "gpus_vs_exact": exact[0] / exact[1] if proven else None,
        "gpus_vs_bound": round(cost / bounds, 5),
        "gpus_vs_ffd": round(cost / others["first_fit_decreasing"], 4),
        "gpus_vs_best_fit": round(cost / others["best_fit"], 4),
        "gpus_vs_homogeneous": round(cost / others["homogeneous"], 4),
        "gpus_vs_request_driven": round(cost / others["request_driven"], 4),
    }


def _churn(events: int) -> Figures:
    """Demands of twelve services go up and down; what each way of following them costs."""
    draw = random.Random(11)  # noqa: S311 - a trace is no secret
    base = fleet(12, 3, [A100], 0.3)
    services = list(base)
    fleets = {name: plan_layouts(services, ONE).gpus for name in FOLLOWERS}
    moved, hours = dict.fromkeys(FOLLOWERS, 0), dict.fromkeys(FOLLOWERS, 0.0)
    for _ in range(events):
        at = draw.randrange(len(services))
        services[at] = replace(base[at], demand=base[at].demand * draw.uniform(0.2, 2.5))
        for name, follow in FOLLOWERS.items():
            before = fleets[name]
            fleets[name], moves = follow(services, before)
            moved[name] += moves
            hours[name] += sum(gpu.used for gpu in fleets[name]) * HOURS
    figures: Figures = {"churn_events": events}
    for name in FOLLOWERS:
        figures |= {
            f"churn_{name}_moved": moved[name],
            f"churn_{name}_gpu_hours": round(hours[name], 1),
            f"churn_{name}_dollars": round(hours[name] * DOLLARS, 1),
        }
    return figures


def _rounded(value: float) -> float:
    return round(value, 3)


if __name__ == "__main__":
    benchmark(
        measure,
        28,
        short={"fleets": 1, "events": 1, "services": 10},
        fleets={"help": "compared with simpler planners"},
        events={"help": "of the churn trace"},
        services={"help": "of a fleet that is planned from nothing"},
    )
