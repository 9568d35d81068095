"""Plays a policy in a scenario, and says which properties it kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tessera_lab.fleet.course import HOUR, Course
from tessera_lab.fleet.model import FleetModel, Purchase
from tessera_lab.fleet.observation import Observation, Policy, Settings, total
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import OURS, ProductPolicy, router_of
from tessera_lab.fleet.scenarios.scenario import ACTIVE, HardScenario
from tessera_lab.fleet.scenarios.service import MAX_REPLICAS, fleet_objects, sized
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace

# Of the requests that come after the time to recover, so many are in time.
SHARE = 0.95
# What is forgiven where the largest fleet keeps less than that.
SLACK = 0.02
# Changes of direction count from here to the end of the active phase.
SETTLED = 300.0
# Changes that are allowed in these 15 minutes, 8 per hour: there, back, and there again.
MAX_TURNS = 2
_REPLICAS_PER_RATE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertyVerdict:
    """Which properties held, and the figures behind them; None is one that says nothing here."""

    no_ratchet: bool
    """At the end of the tail the policy asks for no more than its own minimum."""
    no_oscillation: bool | None
    """Under a steady rate it changed its direction at most `MAX_TURNS` times."""
    no_loss: bool
    """Each request got its answer: none refused, broken or without a token, except on a dead
    node."""
    no_deadlock: bool
    """Once within the time to recover all replicas that were asked for were ready; and of the
    requests that came after that time, `required_share` were in time."""
    final: int
    """Replicas that it asks for at the end."""
    minimum: int
    turns: int
    """Changes of direction in the active phase from `SETTLED` on."""
    lost: int
    """Requests without an answer that are not those of a dead node."""
    recovered_share: float
    """Requests in time, of those that came after the time to recover."""
    required_share: float
    share: float
    """Requests in time, of all."""
    replica_hours: float

    @property
    def holds(self) -> bool:
        """Return whether every property holds that says something."""
        properties = (self.no_ratchet, self.no_oscillation, self.no_loss, self.no_deadlock)
        return False not in properties


class RecordedPolicy:
    """A policy whose decisions are kept, within the bounds of the fleet."""

    def __init__(self, policy: Policy, fleet: FleetModel) -> None:
        self.interval, self.scrape = policy.interval, policy.scrape
        self.decisions: list[tuple[float, int]] = []
        self._policy, self._fleet = policy, fleet

    def decide(self, observation: Observation) -> int:
        """Return the policy's decision."""
        desired = total(self._policy.decide(observation))
        desired = min(max(desired, self._fleet.min_replicas), self._fleet.max_replicas)
        self.decisions.append((observation.at, desired))
        return desired


def scenario_fleet(scenario: HardScenario, policy: str) -> FleetModel:
    """Return the fleet of a policy, which begins with replicas for the usual rate."""
    fleet = sized()
    return replace(
        fleet,
        step=fleet.step if scenario.speed == 1.0 else fleet.step.scaled(scenario.speed, "Measured"),
        initial_replicas=math.ceil(scenario.usual_rate * _REPLICAS_PER_RATE),
        purchase=Purchase(reserved=1, spot=scenario.spot is not None),
        router=router_of(policy),
    )


def policy_settings(name: str) -> Settings:
    """Return the published settings of a policy; ours has none."""
    return {} if name == OURS else dict(FAMILIES[name].published)


def scenario_policy(name: str, scenario: HardScenario, fleet: FleetModel) -> Policy:
    """Return a policy as published, for one run."""
    if name == OURS:
        return ProductPolicy(scenario.objects or fleet_objects(), edits=scenario.edits)
    return FAMILIES[name].create(policy_settings(name), fleet.replica)


def attainable_share(scenario: HardScenario) -> float:
    """Return what a policy must keep once it has recovered: less where no fleet keeps `SHARE`."""
    fleet = replace(scenario_fleet(scenario, "static"), initial_replicas=MAX_REPLICAS)
    policy = FAMILIES["static"].create({"replicas": MAX_REPLICAS}, fleet.replica)
    trace = scenario.trace()
    course = Simulation(trace, fleet, policy).run()
    return min(SHARE, _share(trace, course, *_recovered_span(scenario, trace)) - SLACK)


def play(name: str, scenario: HardScenario, required_share: float = SHARE) -> PropertyVerdict:
    """Run a policy as published."""
    fleet = scenario_fleet(scenario, name)
    settings = policy_settings(name)
    minimum = int(settings.get("min_replicas", settings.get("replicas", fleet.min_replicas)))
    policy = RecordedPolicy(scenario_policy(name, scenario, fleet), fleet)
    return judge(policy, scenario, fleet, minimum, required_share)


def judge(
    policy: RecordedPolicy,
    scenario: HardScenario,
    fleet: FleetModel,
    minimum: int,
    required_share: float = SHARE,
) -> PropertyVerdict:
    """Run a policy that has its own minimum of replicas."""
    trace = scenario.trace()
    course = Simulation(
        trace, fleet, policy, disturbance=scenario.disturbance, spot=scenario.spot
    ).run()
    final = policy.decisions[-1][1]
    steady = [desired for at, desired in policy.decisions if SETTLED <= at <= ACTIVE]
    turns, lost = direction_changes(steady), lost_requests(course)
    recovered = _share(trace, course, *_recovered_span(scenario, trace))
    return PropertyVerdict(
        no_ratchet=final <= minimum,
        no_oscillation=turns <= MAX_TURNS if scenario.steady else None,
        no_loss=lost == 0,
        no_deadlock=_all_ready(scenario, course) and recovered >= required_share,
        final=final,
        minimum=minimum,
        turns=turns,
        lost=lost,
        recovered_share=recovered,
        required_share=required_share,
        share=_share(trace, course, 0.0, math.inf),
        replica_hours=course.replica_seconds / HOUR,
    )


def direction_changes(counts: Sequence[int]) -> int:
    """Return how often a number that rose falls, or one that fell rises."""
    ups = [after > before for before, after in pairwise(counts) if after != before]
    return sum(before != after for before, after in pairwise(ups))


def lost_requests(course: Course) -> int:
    """Return the requests without a full answer, except those of dead nodes."""
    unanswered = sum(math.isinf(ttft) for ttft in course.ttft)
    without_token = unanswered - course.refused - course.lost_streams
    return course.refused + course.broken_streams + max(0, without_token)


def _recovered_span(scenario: HardScenario, trace: Trace) -> tuple[float, float]:
    begin = scenario.recovers_from + scenario.recovery_seconds
    return begin, ACTIVE if begin < ACTIVE else trace.seconds


def _share(trace: Trace, course: Course, begin: float, end: float) -> float:
    objective = sized().replica.ttft
    ttft = [
        ttft
        for arrival, ttft in zip(trace.arrivals, course.ttft, strict=True)
        if begin <= arrival < end
    ]
    return sum(each <= objective for each in ttft) / len(ttft) if ttft else 1.0


def _all_ready(scenario: HardScenario, course: Course) -> bool:
    begin = scenario.recovers_from
    return any(
        sample.ready >= sample.desired
        for sample in course.samples
        if begin < sample.at <= begin + scenario.recovery_seconds
    )
