"""The policies of a scenario, one after another."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from tessera.api.text import counted
from tessera_lab.cli.simulate.scenario import NamedPolicy, Scenario
from tessera_lab.fleet.attainment import AttainmentGoal, AttainmentScore, attainment_goal
from tessera_lab.fleet.course import Course, best_reservation, cost
from tessera_lab.fleet.energy import FleetEnergy, ReplicaHardware, fleet_energy
from tessera_lab.fleet.observation import Policy
from tessera_lab.fleet.policies.product import ProductPolicy
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace
from tessera_lab.load.distribution import nearest_rank

_HOUR = 3600.0
INTERRUPTED = 130
# Requests of the part that is played to estimate the length of a run.
_TRIAL_REQUESTS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """What came of one policy."""

    name: str
    course: Course
    goal: AttainmentGoal
    score: AttainmentScore
    ttft_p95: float
    """Seconds, of the requests that came; infinite where too many got no token."""
    cost: float
    """As bought by the options."""
    best_reserved: int | None
    """Reserved replicas at which this course costs least; None where some are bought already."""
    best_cost: float | None
    energy: FleetEnergy | None
    """Of all GPUs; None where their watts are not known."""
    held_seconds: float
    """Time for which the TenantBudget granted fewer replicas than the policy asked for."""


class Interrupt:
    """Ctrl-C: the first ends the run with what there is, the second the process."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        previous = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self.requested:
            os._exit(INTERRUPTED)
        self.requested = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one; called where a simulation can be left."""
        if self.requested:
            raise KeyboardInterrupt


def play(scenario: Scenario, interrupt: Interrupt) -> list[PolicyResult]:
    """Play all policies, or those until an interrupt."""
    _announce(scenario)
    results = []
    for policy in scenario.policies:
        results.append(_play(scenario, policy, interrupt))
        if interrupt.requested:
            break
    return results


def _play(scenario: Scenario, named: NamedPolicy, interrupt: Interrupt) -> PolicyResult:
    policy = named.create()
    simulation = _simulation(scenario, scenario.trace, named, policy)
    report = _progress(named.name, scenario.trace.seconds, simulation.course)

    def progress(seconds: float) -> None:
        report(seconds)
        interrupt.check()

    course = simulation.run(progress)
    held_seconds = policy.held_seconds if isinstance(policy, ProductPolicy) else 0.0
    return _result(scenario, named, course, held_seconds)


def _simulation(scenario: Scenario, trace: Trace, named: NamedPolicy, policy: Policy) -> Simulation:
    fleet = replace(scenario.fleet, router=named.router)
    return Simulation(trace, fleet, policy, seed=scenario.seed, spot=scenario.spot)


def _announce(scenario: Scenario) -> None:
    """Write what is about to be played, and how long it will take."""
    trace = scenario.trace
    _note(
        f"{counted(len(trace), 'request')} in {trace.seconds / _HOUR:.1f} h under "
        f"{counted(len(scenario.policies), 'policy', 'policies')}: about "
        f"{_span(estimated_seconds(scenario))}"
    )


def estimated_seconds(scenario: Scenario) -> float:
    """Return how long the run will take, by that of a small part in the middle of the trace."""
    trace = scenario.trace
    length = min(trace.seconds, max(300.0, trace.seconds * _TRIAL_REQUESTS / len(trace)))
    begin = (trace.seconds - length) / 2
    part = trace.cut(begin, begin + length)
    started = time.perf_counter()
    for policy in scenario.policies:
        _simulation(scenario, part, policy, policy.create()).run()
    return (time.perf_counter() - started) * trace.seconds / length


def _progress(name: str, seconds: float, course: Course) -> Callable[[float], None]:
    """Return what writes a line for each simulated hour."""
    hours = 0

    def write(moment: float) -> None:
        nonlocal hours
        if moment // _HOUR > hours:
            hours = int(moment // _HOUR)
            sample = course.samples[-1]
            _note(
                f"{name}: {counted(hours, 'hour')} of {seconds / _HOUR:.1f}, "
                f"{counted(sample.arrived, 'request')}, {sample.ready} of "
                f"{counted(sample.desired, 'replica')} ready"
            )

    return write


def _note(text: str) -> None:
    sys.stderr.write(f"tessera simulate: {text}\n")
    sys.stderr.flush()


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min"


def _result(
    scenario: Scenario, policy: NamedPolicy, course: Course, held_seconds: float
) -> PolicyResult:
    trace, fleet, prices = scenario.trace, scenario.fleet, scenario.file.prices
    goal = replace(
        attainment_goal(trace.seconds, fleet.start_up.mean), objective=fleet.replica.ttft
    )
    served = [
        (arrival, ttft)
        for arrival, ttft in zip(trace.arrivals, course.ttft, strict=True)
        if arrival < course.seconds
    ]
    purchase = fleet.purchase
    reserved, best_cost = None, None
    if not (purchase.reserved or purchase.spot):
        reserved, best_cost = best_reservation(course, prices)
    return PolicyResult(
        name=policy.name,
        course=course,
        goal=goal,
        score=goal.score(served),
        ttft_p95=nearest_rank(sorted(ttft for _, ttft in served), 95) if served else 0.0,
        cost=cost(course, prices, purchase),
        best_reserved=reserved,
        best_cost=best_cost,
        energy=fleet_energy(course, _replica_hardware(scenario)),
        held_seconds=held_seconds,
    )


def _replica_hardware(scenario: Scenario) -> ReplicaHardware:
    file = scenario.file
    return ReplicaHardware(
        service=file.objects.service.ref,
        hardware=file.choice.offer.hardware,
        pool=file.objects.pools[0],
        node=file.objects.nodes[0],
        reserved=scenario.fleet.purchase.reserved,
    )
