"""Repartitions that run with and without kills."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from fakegpu.gpu_driver import ProfilePlacement
from tests.builders import MEDIUM, SMALL
from tests.repartition.crashes import CrashPoint
from tests.repartition.simulation import PartitionBackend, RepartitionSimulation

Gpu = list[ProfilePlacement]
_WHOLE: Gpu = [("7g.80gb", 0)]
_HALVES: Gpu = [("4g.40gb", 0), ("3g.40gb", 4)]
_SEVEN: Gpu = [("1g.10gb", at) for at in range(7)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepartitionScenario:
    """A quiet fleet, and the change of a user."""

    nodes: Sequence[Sequence[Gpu]]
    begin: Callable[[RepartitionSimulation], None]
    change: Callable[[RepartitionSimulation], None]
    crowded: Collection[str] = ()
    """Backends that cannot empty any GPU, so that the plan keeps the layouts."""


@dataclass(slots=True, kw_only=True)
class KillTally:
    """The number of kills, and of the moments that they represent."""

    scenarios: int = 0
    points: int = 0
    """Moments before and after every write and every NVML call."""
    kills: int = 0
    """Kills at moments that leave something different behind."""


async def run_scenario(
    scenario: RepartitionScenario,
    backend: PartitionBackend,
    selects: Callable[[CrashPoint], bool] = lambda _point: False,
    *,
    restart_ticks: int = 0,
    seed: int = 0,
) -> RepartitionSimulation:
    """Run a scenario to its end and check it; a killed operator restarts after `restart_ticks`."""
    simulation = RepartitionSimulation.of(backend, scenario.nodes, seed=seed)
    simulation.restart_ticks = restart_ticks
    try:
        scenario.begin(simulation)
        await simulation.run_until_quiet()
        scenario.change(simulation)
        simulation.injector.armed, simulation.injector.selects = True, selects
        await simulation.run_until_quiet()
        simulation.check("AsPlanned")
    finally:
        await simulation.close()
    return simulation


async def run_with_kills(
    scenario: RepartitionScenario, backend: PartitionBackend, *, every: int = 1, first: int = 0
) -> KillTally:
    """Run a scenario without kills, then once for every n-th of its crash points."""
    undisturbed = await run_scenario(scenario, backend)
    points = distinct_points(undisturbed.injector.points)
    tally = KillTally(scenarios=1, points=len(undisturbed.injector.points))
    failures = []
    for point in points[first::every]:
        try:
            simulation = await run_scenario(scenario, backend, partial(_is_same_moment, point))
            assert simulation.deaths == 1
            assert point in simulation.injector.points, "the run is not deterministic"
        except AssertionError as error:
            failures.append(f"killed {point.moment} {point.number} {point.what}: {error}")
        tally.kills += 1
    assert not failures, f"{len(failures)} of {tally.kills}:\n" + "\n".join(failures[:10])
    return tally


def _is_same_moment(point: CrashPoint, other: CrashPoint) -> bool:
    return (other.number, other.moment) == (point.number, point.moment)


def distinct_points(points: Sequence[CrashPoint]) -> list[CrashPoint]:
    """Return one of the points with an equal state: a process forgets everything else."""
    return list({point.state: point for point in points}.values())


def _serve_three(simulation: RepartitionSimulation) -> None:
    simulation.serve("chat", SMALL, 2)
    simulation.serve("mail", SMALL, 1)
    simulation.serve("code", MEDIUM, 1)


def _serve_three_planned(simulation: RepartitionSimulation) -> None:
    simulation.pool(mode="Auto")
    _serve_three(simulation)


def _set_auto_mode(simulation: RepartitionSimulation) -> None:
    simulation.pool(mode="Auto")


def _add_service(simulation: RepartitionSimulation) -> None:
    simulation.serve("news", MEDIUM, 2)


def _isolate_service(simulation: RepartitionSimulation) -> None:
    simulation.serve("mail", SMALL, 1, placement={"mig": "Auto", "isolation": "Gpu"})


def _serve_small(simulation: RepartitionSimulation) -> None:
    simulation.pool(mode="Auto")
    simulation.serve("chat", SMALL, 4)
    simulation.serve("mail", SMALL, 3)


def _add_two_isolated(simulation: RepartitionSimulation) -> None:
    simulation.serve("news", SMALL, 2, placement={"mig": "Auto", "isolation": "Gpu"})


def _serve_many(simulation: RepartitionSimulation) -> None:
    simulation.serve("chat", SMALL, 4)
    simulation.serve("code", MEDIUM, 3)


SCENARIOS = {
    "GPUs in use are cut": RepartitionScenario(
        nodes=[[_SEVEN, _SEVEN]] * 2, begin=_serve_small, change=_add_two_isolated
    ),
    "one slice is free": RepartitionScenario(
        nodes=[[_HALVES, _HALVES]] * 2,
        begin=_serve_many,
        change=_set_auto_mode,
        crowded=("mig-manager", "mig-manager, with agents that look"),
    ),
    "every slice is too large": RepartitionScenario(
        nodes=[[_WHOLE, _WHOLE]] * 3, begin=_serve_three, change=_set_auto_mode
    ),
    "a service comes": RepartitionScenario(
        nodes=[[_WHOLE, _WHOLE]] * 2, begin=_serve_three_planned, change=_add_service
    ),
    "a service wants a GPU for itself": RepartitionScenario(
        nodes=[[_WHOLE, _WHOLE]] * 2, begin=_serve_three_planned, change=_isolate_service
    ),
    "little room": RepartitionScenario(
        nodes=[[_WHOLE, _WHOLE], [_WHOLE, [("3g.40gb", 0), ("3g.40gb", 4)]]],
        begin=_serve_three,
        change=_set_auto_mode,
        crowded=("mig-manager",),
    ),
}
