"""Under random events in any order, a tenant spends at most what was published.

A small fleet is played cycle by cycle. The real spend is counted apart from the operator: the time
of every replica at the price of that time. Between cycles come changed demand, restarts and
outages, lost replicas, changed prices, minimums and limits, clock steps, and the ends of hours.
"""

import itertools
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.domain.budget.budgets import build_budget_views
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.metering import metering_inputs
from tessera.domain.budget.state import RESERVED_DURATION, BudgetState, GrantRequest, grant_requests
from tessera.domain.hardware.pools import discover
from tessera.domain.money import Tariff
from tessera.domain.observed.snapshot import Budget, Pod, Pool, Ref
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.status.budget import budget_status
from tests.builders import (
    NOW,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    plan_of,
)
from tests.properties import examples

HOUR = timedelta(hours=1)
LEAVING = timedelta(seconds=120)
# An operator that is away no longer than this cannot overspend.
AWAY = RESERVED_DURATION - LEAVING
SLICE = {"nvidia.com/mig-1g.10gb": 1}
WEIGHT = (Decimal(1) / 7 + Decimal(1) / 8) / 2
NODES = (a_node(slices={"1g.10gb": 70}, partitioned=10),)
NAMES = ("a", "b", "c")
CHAT = Ref("team-a", "chat")
# Nano-units; each cycle rounds each replica by at most half of one.
ROUNDING = 10**5
PRICES = [
    {"from": "2026-01-01", "perGPUHour": "2"},
    {"from": "2026-11-21", "perGPUHour": "5"},
]


@dataclass
class BudgetSimulation:
    """A fleet that runs what was granted, and its real spend."""

    limit: str
    start: datetime
    min_replicas: dict[str, int]
    now: timedelta = timedelta()
    skew: timedelta = timedelta()
    desired: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    granted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    pods: dict[str, Pod] = field(default_factory=dict)
    ends: dict[str, timedelta] = field(default_factory=dict)
    """When the pods that were let go will be gone."""
    truth: dict[datetime, int] = field(default_factory=dict)
    """Nano-units of each hour."""
    published: dict[datetime, int] = field(default_factory=dict)
    """The most that each hour may end with, as the last turn said."""
    meter: SpendMeter | None = None
    last_seen: dict[str, datetime] = field(default_factory=dict)
    """What Prometheus knows of pods that went while no operator ran."""
    serial: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.pool: Pool = a_pool(prices=PRICES)
        self.budget: Budget = a_budget(amount=self.limit)

    @property
    def at(self) -> datetime:
        return self.start + self.now

    @property
    def hour(self) -> datetime:
        return self.at.replace(minute=0, second=0, microsecond=0)

    def pass_time(self, span: timedelta, *, awake: bool = True) -> None:
        """Replicas cost money, and those that drain end in time, which wakes the operator."""
        end = self.now + span
        while self.now < end:
            hour = self.hour
            step = min(end, hour + HOUR - self.start, *self.ends.values())
            cost = self._tariff().cost(self.at, self.start + step)
            self.truth[hour] = self.truth.get(hour, 0) + cost * len(self.pods)
            self.now = step
            for uid in [uid for uid, ended_at in self.ends.items() if ended_at <= step]:
                self.last_seen[f"team-a/{uid}"] = self.at
                del self.ends[uid], self.pods[uid]
                if awake:
                    self.reconcile()

    def _tariff(self) -> Tariff:
        assert self.pool.spec is not None
        return Tariff(self.pool.spec.prices, WEIGHT)

    def staying(self, name: str) -> list[str]:
        return [uid for uid, pod in self.pods.items() if pod.service.name == name
                and uid not in self.ends]  # fmt: skip

    def start_missing(self) -> None:
        for name in NAMES:
            for _ in range(self.granted[name] - len(self.staying(name))):
                uid = f"{name}-{next(self.serial)}"
                self.pods[uid] = a_pod(
                    uid, name, uid=uid, node="a100-0", devices=SLICE, bound=self.at
                )

    def die(self, name: str) -> None:
        """A replica is gone without a word, and its controller starts another."""
        for uid in self.staying(name)[:1]:
            self.last_seen[f"team-a/{uid}"] = self.at
            del self.pods[uid]
        self.start_missing()

    def reconcile(self) -> BudgetState:
        snapshot = a_snapshot(
            at=self.at + self.skew,
            pools=(self.pool,),
            nodes=NODES,
            pods=tuple(self.pods.values()),
            budgets=(self.budget,),
        )
        (view,) = build_budget_views(
            snapshot,
            metering_inputs(snapshot.pods, discover(snapshot.pools, NODES, snapshot.at.date())),
            meters={} if self.meter is None else {self.budget.name: self.meter},
            last_seen=self.last_seen if self.meter is None else {},
        )
        state = view.state
        assert state is not None
        grants = grant_requests(state, [self._claim(name) for name in NAMES])
        self.meter = view.meter
        self.budget = replace(self.budget, status=budget_status(view, state.at))
        for name in NAMES:
            self.granted[name] = grants[NAMES.index(name)].replicas
            for uid in self.staying(name)[self.granted[name] :]:
                self.ends[uid] = self.now + LEAVING
        self.start_missing()
        windows = (*state.current_windows, *state.next_windows)
        self.published = {
            window.period.start: max(window.limit, window.allocated) for window in windows
        }
        return state

    def _claim(self, name: str) -> GrantRequest:
        wanted = max(self.min_replicas[name], self.desired[name])
        return GrantRequest(
            ref=Ref("team-a", name),
            tariff=self._tariff(),
            min_replicas=self.min_replicas[name],
            desired=wanted,
            running=self.granted[name],
            existing_pods=sum(pod.service.name == name for pod in self.pods.values()),
            termination_time=LEAVING,
        )

    def restart(self) -> None:
        """What was in memory is gone; the record in the status is not."""
        self.meter = None

    def min_replicas_cost(self, hour: datetime) -> int:
        return self._tariff().cost(hour, hour + HOUR) * sum(self.min_replicas.values())


def seconds(most: int) -> st.SearchStrategy[timedelta]:
    return st.integers(1, most).map(lambda count: timedelta(seconds=count))


names = st.sampled_from(NAMES)
quiet_events = st.one_of(
    st.tuples(st.just("wait"), seconds(int(AWAY.total_seconds()))),
    st.tuples(st.just("wait"), seconds(60)),
    st.tuples(st.just("demand"), names, st.integers(0, 6)),
    st.tuples(st.just("die"), names),
    st.tuples(st.just("restart")),
)
events = st.one_of(
    quiet_events,
    st.tuples(st.just("price"), st.sampled_from(["1", "3", "8"])),
    st.tuples(st.just("min replicas"), names, st.integers(0, 3)),
    st.tuples(st.just("limit"), st.sampled_from(["0.5", "1", "3"])),
    st.tuples(st.just("outage"), seconds(3600), names),
    st.tuples(st.just("step"), st.integers(-120, 120).map(lambda s: timedelta(seconds=s))),
)
simulations = st.builds(
    BudgetSimulation,
    limit=st.sampled_from(["0.2", "0.8", "1.5", "4"]),
    start=st.integers(0, 90).map(
        lambda minutes: datetime.fromisoformat("2026-11-20T22:00Z") + timedelta(minutes=minutes)
    ),
    min_replicas=st.fixed_dictionaries({name: st.integers(0, 2) for name in NAMES}),
)


def play(game: BudgetSimulation, event: tuple[object, ...]) -> bool:
    """Carry out one event; return True when it changed what was published."""
    match event:
        case ("wait", timedelta() as span):
            game.pass_time(span)
        case ("demand", str(name), int(count)):
            game.desired[name] = count
        case ("die", str(name)):
            game.reconcile()
            game.die(name)
        case ("restart",):
            game.restart()
        case ("price", str(price)):
            assert game.pool.spec is not None
            prices = [{"from": "2026-01-01", "perGPUHour": price}]
            game.pool = a_pool(prices=prices)
            return True
        case ("min replicas", str(name), int(count)):
            game.min_replicas[name] = count
            return True
        case ("limit", str(limit)):
            game.budget = replace(a_budget(amount=limit), status=game.budget.status)
            return True
        case ("outage", timedelta() as span, str(name)):
            game.reconcile()
            game.restart()
            game.pass_time(span / 2, awake=False)
            game.die(name)
            game.pass_time(span / 2, awake=False)
            return span > AWAY
        case ("step", timedelta() as skew):
            game.skew = skew
            return True
        case _:
            raise AssertionError(event)
    return False


@pytest.mark.long
@given(simulations, st.lists(quiet_events, max_size=25))
@settings(max_examples=examples(1_000), suppress_health_check=list(HealthCheck))
def test_no_hour_ends_above_its_limit_unless_min_replicas_alone_do(
    simulation: BudgetSimulation, sequence: list[tuple[object, ...]]
) -> None:
    simulation.reconcile()
    for event in sequence:
        play(simulation, event)
        simulation.reconcile()
    for hour, spent in simulation.truth.items():
        limit = int(Decimal(simulation.limit) * 10**9)
        assert spent <= max(limit, simulation.min_replicas_cost(hour)) + ROUNDING, hour


@pytest.mark.long
@given(simulations, st.lists(events, max_size=25))
@settings(max_examples=examples(1_000), suppress_health_check=list(HealthCheck))
def test_spend_is_exact_and_within_the_published_bound_at_every_moment(
    simulation: BudgetSimulation, sequence: list[tuple[object, ...]]
) -> None:
    simulation.reconcile()
    stepped = False
    for event in sequence:
        published = simulation.published
        changed = play(simulation, event)
        stepped |= event[0] == "step"
        spent = simulation.truth.get(simulation.hour, 0)
        if not changed and not stepped and simulation.hour in published:
            assert spent <= published[simulation.hour] + ROUNDING
        state = simulation.reconcile()
        if not stepped:
            assert abs(state.current_windows[0].spent - spent) <= ROUNDING


def test_an_operator_away_for_ten_minutes_counts_to_the_second() -> None:
    simulation = BudgetSimulation(limit="4", start=NOW, min_replicas=dict.fromkeys(NAMES, 1))
    simulation.desired["a"] = 3
    simulation.reconcile()
    simulation.pass_time(timedelta(minutes=7))
    simulation.reconcile()
    simulation.restart()
    simulation.pass_time(timedelta(minutes=10))
    second = simulation._tariff().cost(simulation.at, simulation.at + timedelta(seconds=1)) * len(
        simulation.pods
    )
    assert (
        abs(simulation.reconcile().current_windows[0].spent - simulation.truth[simulation.hour])
        < second
    )


edits = st.one_of(
    st.builds(lambda amount: a_budget(amount=amount).spec, st.sampled_from(["0.2", "0.4", "5"])),
    st.just(a_budget(amount="9", timeZone="Europe/Berln").spec),
    st.just(a_budget(amount="9", tenant={"namespaces": ["team-a", "team-b"]}).spec),
    st.just(a_budget(amount="9", currency="EUR").spec),
    st.none(),
)


@given(
    st.lists(edits, min_size=1, max_size=8),
    st.integers(1, 6),
    st.booleans(),
)
@settings(max_examples=examples(200), deadline=None)
def test_no_edit_adds_more_replicas_than_the_last_accepted_spec_would(
    specs: list[TenantBudgetSpec | None], wanted: int, restarted: bool
) -> None:
    zone = a_budget("zone", tenant={"namespaces": ["team-b"]})
    snapshot = a_snapshot(
        a_service(spec=a_spec(replicas=wanted)),
        pods=(a_pod(node="a100-0", devices=SLICE, bound=NOW),),
        workloads=(a_workload(1),),
        nodes=NODES,
    )
    first = plan_of(replace(snapshot, budgets=(zone,)))
    zone = replace(zone, status=budget_status(first.budgets[0], NOW))
    budget, last_accepted = a_budget(amount="0.3"), None
    memory = PlanMemory()
    for spec in specs:
        budget = replace(budget, spec=spec, named_namespaces=("team-a",))
        decision = plan_of(replace(snapshot, budgets=(budget, zone)), memory=memory)
        view = decision.budgets[0]
        replicas = decision.service_plans[CHAT].scale.replicas
        if view.accepted.reason.is_true:
            last_accepted = spec
        if last_accepted is None:
            assert replicas == 1
        else:
            oracle = replace(budget, spec=last_accepted)
            expected = plan_of(replace(snapshot, budgets=(oracle, zone)), memory=memory)
            assert replicas == expected.service_plans[CHAT].scale.replicas
        budget = replace(budget, status=budget_status(view, NOW))
        memory = PlanMemory() if restarted else PlanMemory(meters=decision.meters)
