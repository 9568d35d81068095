"""The recorded load of a service moves it to the instance type that costs least for it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from tessera.api.service_status import PredictedAndMeasured, SpeedStatus
from tessera.domain.incremental import Incremental
from tessera.domain.instance_types.change import decide_type
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera.domain.observed.snapshot import Readings
from tessera.domain.planning.plan import PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.drain import DrainPlan
from tests.builders import H100, LARGE, NOW, a_budget, a_node, a_pool, a_service, a_spec
from tests.domain.variant_fleet import CHAT, VariantFleet

TWO, FOUR = "h100-2gpu", "h100-4gpu"


def recorded(*, rate: float, prompt: float, answer: float, hours: int = 24) -> Readings:
    """Return readings with hours of a steady load of the service."""
    spans = tuple(
        LoadSpan(
            end=NOW - number * SPAN,
            rate=rate,
            input_tokens=prompt,
            output_tokens=answer,
            input_variation=0.0,
            resident_tokens=prompt + answer / 2,
        )
        for number in reversed(range(6 * hours))
    )
    return Readings(at=NOW, load_histories={CHAT: LoadHistory(read_at=NOW, spans=spans)})


# Weights leave two GPUs a small cache: several long requests have room on four alone.
LONG = recorded(rate=1.5, prompt=1000.0, answer=2000.0)
SHORT = recorded(rate=0.01, prompt=100.0, answer=50.0)


def fleet(
    gpus: int = 16, minimum: int = 1, of: type[VariantFleet] = VariantFleet, **fields: Any
) -> VariantFleet:
    """A service that was placed on the cheapest replica, before any load was recorded."""
    scaling = {"minReplicas": minimum, "maxReplicas": 16}
    service = a_service(spec=a_spec(LARGE, **{"scaling": scaling, **fields}), created=NOW)
    nodes = [
        a_node("h100", whole=8, product=H100, name=f"h100-{number}") for number in range(gpus // 8)
    ]
    if gpus % 8:
        nodes.append(a_node("h100", whole=gpus % 8, product=H100, name="h100-small"))
    incremental = Incremental()
    cluster = of(service, (a_pool("h100", "2.00"),), nodes)
    cluster.decide = lambda *inputs: incremental.run(plan, *inputs)
    for _ in range(8):
        cluster.cycle(15)
    assert variants(cluster) == {TWO}
    return cluster


def variants(cluster: VariantFleet) -> set[str]:
    """Return the variants of the pods of the service."""
    return {pod.variant for pod in cluster.pods.values() if pod.service == CHAT}


def watch(cluster: VariantFleet, readings: Readings, seconds: float, floor: int = 1) -> set[str]:
    """Return all variants of its pods meanwhile; as many as the floor always serve."""
    cluster.fields = {**cluster.fields, "readings": readings}
    end, seen = cluster.now + timedelta(seconds=seconds), set[str]()
    while cluster.now < end:
        cluster.cycle(20)
        seen |= variants(cluster)
        assert sum(cluster.counts().values()) >= floor, f"at {cluster.now}"
    assert cluster.lost == []
    return seen


def placed(cluster: VariantFleet) -> str:
    return next(each.message for each in cluster.service.status.conditions if each.type == "Placed")


def test_a_service_moves_beside_what_runs_and_back_with_another_load() -> None:
    cluster = fleet(minimum=2)
    assert watch(cluster, LONG, 300, floor=2) == {TWO, FOUR}
    assert variants(cluster) == {FOUR}
    assert "4x whole GPU of h100 at 8.00 USD per hour" in placed(cluster)
    assert "h100-4gpu costs" in placed(cluster)
    assert "was full" not in placed(cluster)
    assert watch(cluster, SHORT, 300, floor=2) == {TWO, FOUR}
    assert variants(cluster) == {TWO}


def test_a_type_that_was_changed_to_rests_for_a_day() -> None:
    cluster = fleet()
    cluster.service = replace(cluster.service, created=NOW - timedelta(days=9))
    cluster.workloads = {
        ref: replace(each, created=NOW - timedelta(days=8))
        for ref, each in cluster.workloads.items()
    }
    watch(cluster, LONG, 200)
    assert variants(cluster) == {FOUR}
    assert watch(cluster, SHORT, 200) == {FOUR}
    assert "a change waits until" in placed(cluster)


class LateStatus(VariantFleet):
    """Its status is written rarely."""

    every: float = 40
    """Seconds."""

    @override
    def cycle(self, seconds: float = 5) -> ServicePlan:
        before, service_plan = self.service.status, super().cycle(seconds)
        if self.now.total_seconds() % self.every:
            self.service = replace(self.service, status=before)
        return service_plan


def test_a_change_goes_on_before_the_status_says_it() -> None:
    cluster = fleet(minimum=2, of=LateStatus)
    for load, variant in ((LONG, FOUR), (SHORT, TWO)):
        cluster.fields = {"readings": load}
        seen = list[str]()
        for _ in range(80):
            cluster.cycle(5)
            assert sum(cluster.counts().values()) >= 2
            names = {pod.variant for pod in cluster.pods.values()}
            if (text := "+".join(sorted(names))) != "".join(seen[-1:]):
                seen.append(text)
        assert seen[-2:] == [f"{TWO}+{FOUR}", variant]
        assert len(seen) <= 3
    assert cluster.lost == []


@pytest.mark.parametrize(
    "fields",
    [
        {"replicas": 2},
        {"scaling": {"minReplicas": 1, "maxReplicas": 16, "mode": "HPA"}},
        {"scaling": {"minReplicas": 1, "maxReplicas": 16, "policy": "QueueAndActivity"}},
        {"engine": {"tensorParallelSize": 2}},
    ],
)
def test_what_binds_replicas_or_their_gpus_leaves_the_type_as_it_is(fields: Any) -> None:
    cluster = fleet(**fields)
    assert watch(cluster, LONG, 100) == {TWO}
    assert "a day for the load" not in placed(cluster)


def test_a_short_history_changes_nothing() -> None:
    cluster = fleet()
    short = recorded(rate=1.5, prompt=1000.0, answer=2000.0, hours=5)
    assert watch(cluster, short, 60) == {TWO}


def test_it_waits_for_room_beside_what_runs_and_says_what_it_would_save() -> None:
    cluster = fleet(gpus=4)
    assert watch(cluster, LONG, 100) == {TWO}
    assert "h100-4gpu would cost" in placed(cluster)
    cluster.nodes.append(a_node("h100", whole=4, product=H100, name="h100-new"))
    watch(cluster, LONG, 200)
    assert variants(cluster) == {FOUR}


def test_nothing_changes_while_a_replica_starts_or_a_node_goes() -> None:
    cluster = fleet(minimum=2)
    pod = next(iter(cluster.pods.values()))
    cluster.pods[pod.ref] = replace(pod, ready_since=None)
    cluster.fields = {"readings": LONG}
    assert {each.choice.variant for each in cluster.cycle().variants} == {TWO}
    cluster.pods[pod.ref] = replace(cluster.pods[pod.ref], ready_since=NOW)
    assert {each.choice.variant for each in cluster.cycle().variants} == {FOUR}


def test_the_types_are_ranked_once_while_history_spec_and_prices_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster, asked = fleet(gpus=4), list[object]()

    def counting(*inputs: Any) -> Any:
        asked.append(inputs)
        return decide_type(*inputs)

    monkeypatch.setattr("tessera.domain.instance_types.by_load.decide_type", counting)
    cluster.nodes.append(a_node("h100", whole=2, product=H100, name="h100-second"))
    watch(cluster, LONG, 100)
    cluster.nodes.append(a_node("h100", whole=1, product=H100, name="h100-third"))
    watch(cluster, LONG, 100)
    assert len(asked) == 1


class _KilledFleet(VariantFleet):
    """A cluster whose operator is killed between the writes of one cycle."""

    written: str = ""
    """The only thing that is written in the next cycle."""

    @override
    def cycle(self, seconds: float = 5) -> ServicePlan:
        service = self.service
        service_plan = super().cycle(seconds)
        if self.written:
            if self.written != "status":
                self.service = service
            self.memory, self.written = PlanMemory(), ""
        return service_plan

    @override
    def _apply(self, service_plan: ServicePlan) -> None:
        if self.written == "deployment":
            super()._apply(
                replace(service_plan, drain=DrainPlan(replicas=0), previous_deployments={})
            )
        elif not self.written:
            super()._apply(service_plan)


@pytest.mark.parametrize("written", ["status", "deployment", "nothing"])
def test_an_operator_that_is_killed_between_the_writes_of_a_change_ends_it(written: str) -> None:
    for killed in (0, 3, 4):
        cluster = fleet(minimum=2, of=_KilledFleet)
        watch(cluster, LONG, 20 * killed, floor=2)
        assert isinstance(cluster, _KilledFleet)
        cluster.written = written
        watch(cluster, LONG, 200, floor=2)
        assert variants(cluster) == {FOUR}


def test_an_operator_that_restarts_before_the_load_is_read_goes_on_with_a_change() -> None:
    cluster = fleet(minimum=2, of=LateStatus)
    for load, variant in ((LONG, FOUR), (SHORT, TWO)):
        cluster.fields = {"readings": load}
        cluster.cycle(5)
        assert variants(cluster) == {TWO, FOUR}
        names = {pod.ref for pod in cluster.pods.values() if pod.variant == variant}
        cluster.fields = {}
        for _ in range(60):
            cluster.memory = PlanMemory()
            cluster.cycle(5)
            assert sum(cluster.counts().values()) >= 2
        assert variants(cluster) == {variant}
        assert names <= cluster.pods.keys()
    assert cluster.lost == []


def test_a_type_that_was_left_for_its_speed_is_not_come_back_to_by_its_prediction() -> None:
    cluster = fleet()
    watch(cluster, LONG, 200)
    assert variants(cluster) == {FOUR}
    history = cluster.memory.scaling_history[CHAT]
    assert history.slowness == ()
    speed = SpeedStatus(
        model=LARGE,
        variant=FOUR,
        reason="SlowerThanPredicted",
        itl_ms=PredictedAndMeasured(predicted=10, measured=42),
        tokens_per_second=PredictedAndMeasured(predicted=10, measured=42),
        ratio=4.21,
        requests=1000,
        at=NOW,
    )
    status = cluster.service.status.model_copy(update={"speed": speed})
    cluster.service = replace(cluster.service, status=status)
    cluster.cycle()
    assert dict(cluster.memory.scaling_history[CHAT].slowness) == {FOUR: 4.2}
    # A new leader knows it, once the service runs on another type.
    watch(cluster, SHORT, 300)
    assert variants(cluster) == {TWO}
    cluster.memory = PlanMemory()
    cluster.cycle()
    assert dict(cluster.memory.scaling_history[CHAT].slowness) == {FOUR: 4.2}
    # That of another model says nothing of this one.
    status = status.model_copy(update={"speed": speed.model_copy(update={"model": "hf://a/b"})})
    cluster.service = replace(cluster.service, status=status)
    cluster.cycle()
    assert cluster.memory.scaling_history[CHAT].slowness == ()


def test_an_operator_that_restarts_in_every_cycle_of_a_change_ends_it() -> None:
    cluster = fleet(minimum=2)
    for _ in range(15):
        cluster.memory = PlanMemory()
        watch(cluster, LONG, 20, floor=2)
    assert variants(cluster) == {FOUR}


def hours(cluster: VariantFleet, number: float) -> int:
    """Let hours pass, and return the fewest replicas that served meanwhile."""
    end, fewest = cluster.now + timedelta(hours=number), 99
    while cluster.now < end:
        cluster.cycle(60)
        fewest = min(fewest, sum(cluster.counts().values()))
    return fewest


def test_a_change_whose_replicas_never_get_ready_is_taken_back_and_waits_for_a_day() -> None:
    cluster = fleet(minimum=2)
    cluster.start = timedelta(days=9)
    assert watch(cluster, LONG, 300, floor=2) == {TWO, FOUR}
    progress = [
        each.message for each in cluster.service.status.conditions if "old;" in each.message
    ]
    assert progress == [
        "0 of 2 replicas updated, 2 old; for another instance type, the old ones stay until the "
        "new ones are ready"
    ]
    assert hours(cluster, 1) == 2
    deployments = {each.variant: each.replicas for each in cluster.workloads.values()}
    assert (variants(cluster), deployments) == ({TWO}, {TWO: 2})
    assert hours(cluster, 22) == 2
    assert variants(cluster) == {TWO}
    assert (
        "h100-4gpu was left again before its replicas were ready, and a change waits until"
        in placed(cluster)
    )
    cluster.start = timedelta(minutes=1)
    assert hours(cluster, 3) == 2
    assert variants(cluster) == {FOUR}
    assert cluster.lost == []


@pytest.mark.parametrize("minimum", [1, 2])
def test_a_change_that_a_quota_refuses_stops_nothing_and_is_taken_back(minimum: int) -> None:
    cluster = fleet(minimum=minimum)
    cluster.quota = minimum
    watch(cluster, LONG, 300, floor=minimum)
    assert hours(cluster, 1) == minimum
    assert {each.variant for each in cluster.workloads.values()} == {TWO}


@pytest.mark.parametrize("limit", [{"amount": "5.00"}, {"amount": "9000.00", "gpus": "4"}])
def test_a_change_that_no_budget_pays_for_is_taken_back_at_once(limit: dict[str, Any]) -> None:
    cluster = fleet()
    cluster.fields = {"budgets": (a_budget(**limit),)}
    watch(cluster, LONG, 100)
    assert {each.variant: each.replicas for each in cluster.workloads.values()} == {TWO: 1}
    assert "h100-4gpu was left again before its replicas were ready" in placed(cluster)
    assert hours(cluster, 1) == 1
    assert [each.variant for each in cluster.workloads.values()] == [TWO]
