"""What is explained, and that what it says would change a decision does change it."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.adapters.kube import object_parsing as wire
from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.budget_reasons import WithinBudget
from tessera.api.reasons import PlacementReason, Progressing, Ready, ScalingReason
from tessera.api.service_status import InferenceServiceStatus, ScalingStatus, StartStatus
from tessera.domain.config import Config
from tessera.domain.explain.budget import explain_budget
from tessera.domain.explain.explain import explain
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Readings, Ref, Snapshot
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.reporting.decision import Decision
from tessera.domain.scaling.state import ScalingHistory, TimestampedReplicas
from tessera.domain.status.service import service_status
from tests.builders import (
    A100,
    H100,
    NOW,
    SMALL,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
    readings_of,
)
from tests.cli.partitioned_cluster import a_plan
from tests.domain.random_fleets import nodes, services
from tests.domain.refused_services import SERVICES, RefusalCase
from tests.properties import examples

CHAT = Ref("team-a", "chat")
SLICE = {"nvidia.com/mig-1g.10gb": 1}


def decisions(snapshot: Snapshot) -> dict[str, Decision]:
    return {decision.topic: decision for decision in explain(snapshot, plan_of(snapshot), CHAT)}


def pods_of(count: int) -> tuple[Pod, ...]:
    return tuple(
        a_pod(f"chat-{index}", node="a100-0", devices=SLICE, bound=at(-60))
        for index in range(count)
    )


def running(count: int = 2, waiting: float = 0.0, activity: float = 0.5, **fields: Any) -> Snapshot:
    """A service with so many replicas, all needed, each with so many requests waiting."""
    pods = pods_of(count)
    scaling = {"minReplicas": 1, "maxReplicas": 6, "queue": {"target": 10}}
    windows = {
        "policy": "QueueAndActivity",
        "scaleUp": {"stabilizationWindow": "0s", "pods": 9},
        "scaleDown": {"stabilizationWindow": "0s"},
    }
    spec = a_spec(scaling=scaling | windows | fields.pop("scaling", {}), **fields.pop("spec", {}))
    return a_snapshot(
        a_service(spec=spec),
        **{
            "pods": pods,
            "workloads": (a_workload(replicas=count),),
            "readings": readings_of(pods, waiting=waiting, running=20, activity=activity),
            **fields,
        },
    )


def replicas(snapshot: Snapshot) -> int:
    return plan_of(snapshot).service_plans[CHAT].scale.replicas


def with_load(snapshot: Snapshot, waiting: float, activity: float, running: float = 0) -> Snapshot:
    """The replicas share the requests."""
    count = len(snapshot.pods)
    readings = readings_of(
        snapshot.pods, waiting=waiting / count, running=running / count, activity=activity
    )
    return replace(snapshot, readings=readings)


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_a_running_service_is_explained_from_the_spec_to_the_answer() -> None:
    explained = explain(running(), plan_of(running()), CHAT)
    topics = [
        *("accepted", "placed", "sizing", "speed", "slo", "balance", "scaling", "budget"),
        *("rollout", "ready"),
    ]
    assert [decision.topic for decision in explained] == topics
    assert all(
        decision.message and decision.would_change
        for decision in explained
        if decision.topic != "accepted"
    )


@given(count=st.integers(1, 5), target=st.integers(1, 60), activity=st.floats(0, 1))
def test_the_queue_that_is_said_to_add_replicas_adds_them_and_one_less_does_not(
    count: int, target: int, activity: float
) -> None:
    scaling = {"queue": {"target": target}, "minReplicas": count}
    snapshot = running(count, activity=activity, scaling=scaling)
    (condition,) = [
        hint for hint in decisions(snapshot)["scaling"].would_change if "would add" in hint
    ]
    least, more = numbers_in(condition)[0], numbers_in(condition)[-1]
    assert replicas(with_load(snapshot, least, activity)) == count + more
    assert replicas(with_load(snapshot, least - 1, activity)) == count


@given(count=st.integers(2, 6), target=st.integers(1, 60))
def test_the_load_that_is_said_to_remove_replicas_removes_them_and_a_bit_more_does_not(
    count: int, target: int
) -> None:
    snapshot = running(count, waiting=target * 0.9, scaling={"queue": {"target": target}})
    (condition,) = [
        hint for hint in decisions(snapshot)["scaling"].would_change if "would remove" in hint
    ]
    most = numbers_in(condition)[0]
    assert replicas(with_load(snapshot, 0, 1.0, most)) < count
    assert replicas(with_load(snapshot, 0, 0.0, most + 1)) == count
    assert replicas(with_load(snapshot, 1, 0.0, most)) == count


@pytest.mark.parametrize(
    ("service_class", "target", "origin"),
    [
        ("Interactive", "3", "which are served within spec.slo.ttftP95"),
        ("Standard", "9.75", "which are served within spec.slo.ttftP95"),
        ("Batch", "50", "the default of class Batch"),
    ],
)
def test_a_queue_target_that_the_spec_omits_depends_on_the_class_and_the_hardware(
    service_class: str, target: str, origin: str
) -> None:
    snapshot = running(2, scaling={"queue": {}}, spec={"class": service_class})
    for waiting, more in ((2 * float(target), 2), (2 * float(target) * 1.1 + 1, 3)):
        assert replicas(with_load(snapshot, waiting, 0.0)) == more
    numbers = dict(decisions(snapshot)["scaling"].numbers)
    assert f"(target {target} per replica, {origin})" in numbers["waiting requests"]
    assert f"target {target} per replica" in decisions(snapshot)["scaling"].message


def test_at_the_bounds_it_names_them() -> None:
    would_change = decisions(running(6, waiting=100, scaling={"minReplicas": 6}))[
        "scaling"
    ].would_change
    assert would_change == (
        "spec.scaling.maxReplicas above 6 would let a queue add more",
        "spec.scaling.minReplicas below 6 would allow fewer replicas",
    )


def test_without_readings_the_status_has_the_word_and_the_numbers_say_what_is_not_known() -> None:
    snapshot = running()
    service_plan = plan_of(snapshot).service_plans[CHAT]
    status = service_status(snapshot, service_plan, None, None)
    service = replace(snapshot.services[0], status=status)
    for readings in (None, Readings(at=NOW, problem="refused")):
        decision = decisions(replace(snapshot, services=(service,), readings=readings))["scaling"]
        assert (decision.reason, decision.replayed) == (ScalingReason.STEADY, "")
        assert dict(decision.numbers)["waiting requests"].startswith("unknown")
        assert any("would add" in hint for hint in decision.would_change)


def with_reported_scaling(snapshot: Snapshot, **scaling: Any) -> Snapshot:
    """The snapshot with what the operator wrote ten minutes earlier."""
    fields = {"desired_replicas": 2, "message": "90 waiting", "observed_at": at(-600), **scaling}
    status = InferenceServiceStatus(scaling=ScalingStatus(**fields))
    return replace(snapshot, services=(replace(snapshot.services[0], status=status),))


def test_the_message_about_the_replicas_has_the_metrics_of_now() -> None:
    steady = decisions(with_reported_scaling(running(), reason=ScalingReason.STEADY))["scaling"]
    assert (steady.reason, steady.replayed) == (ScalingReason.STEADY, "")
    assert steady.message.startswith("0 waiting")


def test_a_window_is_that_of_the_status_with_the_time_left() -> None:
    window = ScalingStatus(
        desired_replicas=4,
        reason="ScaleDownStabilized",
        message="4 replicas; 1 is enough since 11:58:00 UTC, so 3 go at 12:03:00 UTC",
        observed_at=at(-120),
        change_at=at(180),
    )
    # The history has the count alone, as for a command: to it the window begins now.
    scaling = {"policy": "Capacity", "scaleDown": {"stabilizationWindow": "300s"}}
    snapshot = with_load(running(4, scaling=scaling), waiting=0, activity=0)
    (service,) = snapshot.services
    status = service.status.model_copy(update={"scaling": window})
    decision = decisions(replace(snapshot, services=(replace(service, status=status),)))["scaling"]
    assert (decision.reason, decision.message) == (window.reason, window.message)
    assert ("time left", "180s, until 12:03:00 UTC") in decision.numbers


def test_metrics_from_the_status_say_of_when_they_are() -> None:
    added = ScalingReason.QUEUE_ABOVE_TARGET
    decision = decisions(with_reported_scaling(running(), reason=added))["scaling"]
    assert decision.message == "90 waiting (at 2026-11-20 11:50:00 UTC)"
    assert decision.replayed.startswith("Steady: 0 waiting")
    unread = with_reported_scaling(running(readings=None), reason=added)
    assert decisions(unread)["scaling"].message == "90 waiting (at 2026-11-20 11:50:00 UTC)"


def test_activity_is_named_where_it_decides() -> None:
    slow = {"scaleUp": {"stabilizationWindow": "60s"}}
    busy = with_load(running(2, scaling=slow), 3, 1.0, 20)
    hints = decisions(busy)["scaling"].would_change
    assert hints[0] == (
        "3 waiting requests for 60s, with activity 1.00 above 0.75, will add replicas"
    )
    idle = with_load(running(2, scaling=slow), 300, 1.0, 20)
    assert "activity" not in decisions(idle)["scaling"].would_change[0]


def test_a_load_that_removes_replicas_already_is_said_to() -> None:
    slow = {"scaleDown": {"stabilizationWindow": "300s"}}
    idle = with_load(running(3, scaling=slow), 0, 0.1, 2)
    assert decisions(idle)["scaling"].would_change[1] == (
        "0 waiting and 2 running requests for 300s will remove replicas"
    )


def test_a_step_of_the_scale_up_is_named_where_it_decides() -> None:
    step = {"scaleUp": {"stabilizationWindow": "0s", "pods": 1, "period": "60s"}}
    snapshot = running(2, waiting=100, scaling=step)
    history = ScalingHistory(
        decisions=(TimestampedReplicas(at(-9), 1), TimestampedReplicas(at(-5), 2))
    )
    limited = plan_of(snapshot, memory=PlanMemory(scaling_history={CHAT: history}))
    explained = {decision.topic: decision for decision in explain(snapshot, limited, CHAT)}
    assert explained["scaling"].reason == ScalingReason.SCALE_UP_LIMIT
    assert explained["scaling"].would_change[0] == (
        "spec.scaling.scaleUp.pods above 1, or the end of the 60s in which that many were added"
    )


def with_second_pool(price: str, **fields: Any) -> Snapshot:
    return a_snapshot(
        a_service(),
        pools=(a_pool(), a_pool("h100", price)),
        nodes=(a_node(slices={"1g.10gb": 7}), a_node("h100", whole=2, product=H100)),
        **fields,
    )


def test_the_price_that_is_said_to_make_another_pool_the_cheapest_does() -> None:
    (condition,) = (
        hint
        for hint in decisions(with_second_pool("3.00"))["placed"].would_change
        if "h100" in hint
    )
    limit = numbers_in(condition)[0]
    cheaper, dearer = (plan_of(with_second_pool(f"{limit + step:.2f}")) for step in (-0.01, 0.01))
    assert cheaper.service_plans[CHAT].choice.variant == "h100-1gpu"  # type: ignore[union-attr]
    assert dearer.service_plans[CHAT].choice.variant == "a100-1g-10gb"  # type: ignore[union-attr]


def test_the_plan_of_layouts_says_why_a_service_has_such_slices() -> None:
    why = "isolation gpu keeps others off for 2.00 USD an hour"
    assignment = {"service": str(CHAT), "profile": "1g.10gb", "replicas": 2, "message": why}
    other = {"service": "team-b/chat", "profile": "1g.10gb", "replicas": 1, "message": "another"}
    target = a_plan(services=[assignment, other])
    status = AcceleratorPoolStatus.model_validate({"mig": {"target": target}})
    pools = [replace(a_pool(mig={"mode": "Propose"}), status=status)]
    snapshot = running(pools=tuple(pools))
    assert dict(decisions(snapshot)["placed"].numbers)["layouts"] == why
    assert "layouts" not in dict(decisions(running())["placed"].numbers)


def test_cheaper_hardware_does_not_move_a_running_service_and_it_says_so() -> None:
    decision = decisions(with_second_pool("0.10", workloads=(a_workload(),)))["placed"]
    why = {option.name: option.message for option in decision.alternatives}
    assert why["a100-1g-10gb"] == "chosen"
    assert why["h100-1gpu"].startswith("no more expensive, but a replica of h100-1gpu carries")
    assert "without the gateway both get as many requests" in why["h100-1gpu"]
    assert any("the service would be placed on h100-1gpu" in hint for hint in decision.would_change)


def test_every_hardware_of_the_fleet_has_a_reason_why_not() -> None:
    other = a_spec(placement={"pools": ["full"]}, scaling={"minReplicas": 2, "maxReplicas": 2})
    other_pods = tuple(
        a_pod(f"other-{index}", "other", "full-1g-10gb", node="full-0", devices=SLICE)
        for index in range(2)
    )
    snapshot = a_snapshot(
        a_service(spec=a_spec(placement={"pools": ["a100", "big", "full", "empty", "spot"]},
                              **{"class": "Standard"})),
        a_service("other", spec=other),
        pods=other_pods,
        workloads=(a_workload(2, "other", "full-1g-10gb"),),
        pools=(
            a_pool(),
            a_pool("big"),
            a_pool("empty"),
            a_pool("full", "0.50"),
            a_pool("unnamed"),
            a_pool("spot", tier="Spot"),
        ),
        nodes=(
            a_node(slices={"1g.10gb": 7}),
            a_node("big", whole=1),
            a_node("full", {"1g.10gb": 2}),
            a_node("unnamed", {"1g.10gb": 7}),
            a_node("spot", {"1g.10gb": 7}),
        ),
    )  # fmt: skip
    decision = decisions(snapshot)["placed"]
    why = {option.name: option.message for option in decision.alternatives}
    assert why["a100-1g-10gb"] == "chosen"
    assert why["big-1gpu"] == "7.0 times the price, stranded slices included"
    assert why["full-1g-10gb"] == "full: 0 free, 2 required at the start"
    assert why["unnamed-1g-10gb"] == "spec.placement.pools does not list the pool"
    assert why["spot-1g-10gb"] == "spec.placement.tiers does not list Spot"
    assert "matches no node" in why["empty"]
    assert any("2 more free 1g.10gb in full" in hint for hint in decision.would_change)


def test_a_model_that_fits_nowhere_has_the_missing_memory_of_every_hardware() -> None:
    spec = a_spec("hf://meta-llama/Llama-3.1-70B-Instruct")
    explained = decisions(a_snapshot(a_service(spec=spec)))
    assert explained["placed"].reason == PlacementReason.TOO_LARGE
    (option,) = explained["placed"].alternatives
    assert option.message.startswith("too small: needs devices of ")
    assert option.message.endswith("these have 9728 MiB")
    assert "153663 MiB" in explained["placed"].would_change[0]
    assert "sizing" not in explained


def test_an_objective_that_is_said_to_allow_more_allows_it() -> None:
    hint = decisions(running())["sizing"].would_change[0]
    field, requests, tokens = hint.split()[0], *numbers_in(hint)[-2:]
    assert field == "spec.slo.itlP95"
    promised = hint.split()[2]
    looser = running(spec={"slo": {"itlP95": promised}})
    choice = plan_of(looser).service_plans[CHAT].choice
    assert choice is not None
    limits = choice.fit.limits
    assert (limits.max_num_seqs, round(limits.tokens_per_second)) == (requests, tokens)


def with_budget(*limits: str, count: int = 2, **fields: Any) -> Snapshot:
    """Build replicas with `minReplicas` 1, a queue that needs six, and hour and month limits."""
    windows = zip(("Hour", "Month"), limits, strict=False)
    budget_limits = [{"window": window, "amount": amount} for window, amount in windows]
    return running(count, waiting=30, budgets=(a_budget(limits=budget_limits),), **fields)


@pytest.mark.parametrize(
    ("limits", "fields"),
    [
        (("0.31",), {}),
        (("0.31", "50.00"), {}),
        (("9.00", "66.00"), {}),
        (("0.60",), {"scaling": {"minReplicas": 3}}),
        (("0.10",), {"spec": {"drain": {"timeout": "30s"}}}),
    ],
)
def test_the_limits_that_are_said_to_pay_one_more_replica_pay_it(
    limits: tuple[str, ...], fields: dict[str, Any]
) -> None:
    explained = decisions(with_budget(*limits, **fields))
    assert explained["budget"].reason in (
        WithinBudget.BUDGET_EXHAUSTED,
        WithinBudget.MIN_REPLICAS_EXCEED_BUDGET,
    )
    assert explained["scaling"].reason == ScalingReason.BUDGET_EXHAUSTED
    assert (
        explained["scaling"].would_change[0].startswith("This ends when the TenantBudget has room")
    )
    hint, later = explained["budget"].would_change
    raised = list(limits)
    for index, amount in re.findall(r"spec\.limits\[(\d)\]\.amount of (\d+\.\d+)", hint):
        raised[int(index)] = amount
    assert replicas(with_budget(*limits, **fields)) < replicas(with_budget(*raised, **fields))
    assert later.startswith(("from 2026-", "the next windows do not cover it either"))


def test_a_budget_with_enough_money_says_so() -> None:
    assert decisions(with_budget("90.00"))["budget"].would_change == (
        "the limits already cover 1 more replica for 10 minutes",
    )


def test_money_of_another_currency_names_the_pools_to_use() -> None:
    decision = decisions(running(budgets=(a_budget(currency="EUR"),)))["budget"]
    assert decision.would_change == ("pools priced in EUR in spec.placement.pools",)


def test_replicas_without_a_node_are_explained_with_what_is_missing() -> None:
    snapshot = running(2)
    stuck = a_pod("chat-9", unschedulable="0/1 nodes", ready_since=None, containers_ready=False)
    decision = decisions(replace(snapshot, pods=(*snapshot.pods, stuck)))["placed"]
    assert decision.reason == PlacementReason.UNSCHEDULABLE
    assert decision.would_change[0] == "1 more free 1g.10gb in a100, or 1 replica fewer"


def test_replicas_that_wait_for_a_new_node_are_explained_with_what_exists() -> None:
    template = {"product": A100, "gpus": 1, "migLayout": {"1g.10gb": 7}, "maxNodes": 4}
    snapshot = running(2, pools=(a_pool(nodeTemplate=template),))
    stuck = a_pod("chat-9", unschedulable="0/1 nodes", ready_since=None, containers_ready=False)
    decision = decisions(replace(snapshot, pods=(*snapshot.pods, stuck)))["placed"]
    nodes_text = "1 of 4 nodes exist, expected start 300s"
    assert decision.reason == PlacementReason.NODES_STARTING
    assert decision.would_change[0] == f"a new node in a100 ({nodes_text})"
    assert dict(decision.numbers)["nodes"] == nodes_text
    assert dict(decision.numbers)["free capacity"] == "5 of 7 replicas in the pool"


def test_replicas_without_a_node_are_told_which_hardware_is_free() -> None:
    snapshot = running(2)
    stuck = a_pod("chat-9", unschedulable="0/1 nodes", ready_since=None, containers_ready=False)
    snapshot = replace(snapshot, pods=(*snapshot.pods, stuck))
    assert "is free" not in decisions(snapshot)["placed"].message
    free = replace(snapshot, nodes=(*snapshot.nodes, a_node(name="a100-1", whole=1)))
    decision = decisions(free)["placed"]
    assert "; whole GPU of AcceleratorPool/a100 is free" in decision.message
    assert decision.would_change[1].startswith("whole GPU of a100 at 2.0000 USD per hour is free")
    notebook = a_pod("other", service="", node="a100-1", devices={"nvidia.com/gpu": 1})
    taken = replace(free, pods=(*free.pods, notebook))
    assert "is free" not in decisions(taken)["placed"].message


def test_pools_that_are_not_named_and_would_fit_are_named() -> None:
    snapshot = with_second_pool("3.00")
    snapshot = replace(snapshot, services=(a_service(spec=a_spec(placement={"pools": ["a100"]})),))
    (hint,) = decisions(snapshot)["placed"].would_change
    assert hint.startswith("h100 in spec.placement.pools: the model fits there too")


def test_without_a_budget_it_says_that_nothing_limits_the_spend() -> None:
    decision = decisions(running())["budget"]
    assert decision.reason == WithinBudget.NO_BUDGET
    assert decision.would_change == ("a TenantBudget with team-a in spec.tenant.namespaces",)


def test_where_a_budget_is_required_it_says_that_nothing_is_added_without_one() -> None:
    snapshot = running()
    plan = plan_of(snapshot, Config(require_budget=True))
    decision = explain_budget(snapshot, plan, plan.service_plans[CHAT])
    assert decision.reason == WithinBudget.BUDGET_REQUIRED
    assert decision.would_change == ("a valid TenantBudget with team-a in its spec",)


def test_a_draining_replica_is_named_with_what_would_let_it_end() -> None:
    snapshot = running(3, readings=readings_of(pods_of(3)))
    pods = (replace(snapshot.pods[0], serving=False, draining_since=at(-20)), *snapshot.pods[1:])
    decision = decisions(replace(snapshot, pods=pods))["drain"]
    assert dict(decision.numbers)["chat-0"] == "20 s without new requests"
    assert "spec.drain.timeout of 60s" in decision.would_change[0]


def starting(seconds: tuple[int, int, int], **fields: Any) -> Decision:
    """Explain the rollout of a service whose only replica took so long, phase by phase."""
    schedule, image, engine = seconds
    bound = at(-2000 + schedule)
    pod = replace(
        pods_of(1)[0],
        created=at(-2000),
        bound=bound,
        started=bound + timedelta(seconds=image),
        ready_since=bound + timedelta(seconds=image + engine),
    )
    fleet = running(1, pods=(pod, *fields.pop("others", ())), **fields)
    return decisions(fleet)["rollout"]


CACHED = {"model": {"cache": {"type": "PersistentVolumeClaim"}}}


@pytest.mark.parametrize(
    ("seconds", "fields", "change"),
    [
        ((2, 40, 60), {}, None),
        ((300, 40, 90), {}, "a free device on a node, or a higher spec.scaling.minReplicas,"),
        ((2, 140, 20), {}, "spec.prePull of AcceleratorPool/a100, which pulls images in advance,"),
        ((2, 140, 20), {"pools": (a_pool(prePull=True),)}, "a registry and volumes near the nodes"),
        (
            (2, 40, 168),
            {},
            "spec.model.cache.type PersistentVolumeClaim, which downloads the files once,",
        ),
        ((2, 40, 168), {"spec": CACHED}, "another spec.engine.loader"),
        (
            (2, 40, 168),
            {"spec": {**CACHED, "engine": {"loader": {"type": "RunaiStreamer"}}}},
            "files on faster volumes",
        ),
    ],
)
def test_slow_starts_have_their_slowest_phase_and_what_shortens_it(
    seconds: tuple[int, int, int], fields: dict[str, Any], change: str | None
) -> None:
    rollout = starting(seconds, **fields)
    schedule, image, engine = seconds
    assert dict(rollout.numbers)["starts"] == (
        f"take {sum(seconds)} s: schedule {schedule} s, image {image} s, engine {engine} s"
    )
    slowest = ("schedule", "image", "engine")[seconds.index(max(seconds))]
    shorter = f"{change} would shorten starts, whose slowest phase is {slowest}"
    assert list(rollout.would_change[1:]) == ([] if change is None else [shorter])


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("files", "spec.model.cache.type PersistentVolumeClaim, which downloads the files once,"),
        ("load", "another spec.engine.loader"),
        ("compile", "faster or less busy processors of the nodes"),
    ],
)
def test_the_log_says_which_part_of_the_engine_is_slowest(part: str, change: str) -> None:
    seconds = {"files": 20, "load": 21, "compile": 22} | {part: 90}
    log = f"""Time spent downloading weights for acme/llama: {seconds["files"]}.2 seconds
        Model loading took 13.63 GiB memory and {seconds["files"] + seconds["load"]}.3 seconds
        init engine (profile, create kv cache, warmup model) took {seconds["compile"] + 9}.0 s
        """.replace(".0 s", f".0 s (compilation: {seconds['compile']}.0 s)")
    recorded = StartStatus(
        pod="chat-0", variant="a100", created_at=NOW, seconds=200, schedule_seconds=2
    )
    pod = replace(
        pods_of(1)[0], bound=at(-300), started=at(-290), ready_since=at(-100), created=at(-302)
    )
    fleet = running(1, pods=(pod,))
    [service] = fleet.services
    status = service.status.model_copy(update={"start": recorded})
    fleet = replace(fleet, services=(replace(service, status=status),))
    explained = explain(fleet, plan_of(fleet), CHAT, log)
    [rollout] = [decision for decision in explained if decision.topic == "rollout"]
    assert dict(rollout.numbers)["engine's start"] == (
        ", ".join(f"{each} {span} s" for each, span in seconds.items())
        + ", warm-up 9 s, by the log of chat-0"
    )
    assert rollout.would_change[1] == (
        f"{change} would shorten starts, whose slowest phase is {part}"
    )


def test_a_replica_that_starts_is_named_with_its_phase() -> None:
    pending = replace(
        pods_of(1)[0], ref=Ref("team-a", "chat-9"), created=at(-700), bound=at(-690),
        ready_since=None, containers_ready=False,
    )  # fmt: skip
    young = replace(pending, ref=Ref("team-a", "chat-8"), bound=at(-5))
    rollout = starting((2, 40, 60), others=(pending, young))
    assert dict(rollout.numbers)["starting"] == (
        "chat-9: image for 690 s, the longest of 2 replicas"
    )
    assert "whose slowest phase is image" in rollout.would_change[1]


def test_a_full_pool_replaces_in_place_and_a_free_slice_would_change_it() -> None:
    full = running(2, nodes=(a_node(slices={"1g.10gb": 2}),))
    decision = decisions(full)["rollout"]
    assert dict(decision.numbers)["strategy"].startswith("in place")
    assert decision.would_change[0].startswith("with 1 free 1g.10gb in a100")
    roomy = decisions(running(2, nodes=(a_node(slices={"1g.10gb": 3}),)))["rollout"]
    assert dict(roomy.numbers)["strategy"].startswith("surge")


def test_where_the_status_differs_from_the_plan_both_are_shown() -> None:
    snapshot = running()
    status = service_status(
        snapshot, plan_of(snapshot).service_plans[CHAT], None, "the API server said no"
    )
    before = replace(snapshot, services=(replace(snapshot.services[0], status=status),))
    assert decisions(before)["rollout"].reason == Progressing.APPLY_FAILED
    assert decisions(before)["rollout"].replayed.startswith("RolloutComplete: ")
    explained = decisions(replace(before, nodes=()))
    assert explained["placed"].reason == PlacementReason.PLACED
    assert explained["placed"].replayed.startswith("NoHardware: ")
    assert explained["placed"].since == NOW


def test_without_a_plan_the_status_alone_speaks() -> None:
    snapshot = running()
    status = service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)
    before = replace(snapshot, services=(replace(snapshot.services[0], status=status),))
    explained = {decision.topic: decision for decision in explain(before, None, CHAT)}
    assert explained["ready"].reason == Ready.PROBE_PENDING
    assert explained["scaling"].reason == status.scaling.reason  # type: ignore[union-attr]
    assert dict(explained["scaling"].numbers)["hardware"] == "a100-1g-10gb"
    assert explained["budget"].reason == WithinBudget.NO_BUDGET
    assert explain(running(), None, CHAT) == ()


def test_further_conditions_are_shown_as_they_are() -> None:
    snapshot = running()
    status = service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)
    more = status.conditions[0].model_copy(update={"type": "UpdateAvailable", "message": "new"})
    status = status.model_copy(update={"conditions": (*status.conditions, more)})
    before = replace(snapshot, services=(replace(snapshot.services[0], status=status),))
    assert decisions(before)["UpdateAvailable"].message == "new"
    topics = [decision.topic for decision in explain(before, None, CHAT)]
    assert "UpdateAvailable" in topics


@given(
    observed_services=services,
    hardware=nodes,
    budget=st.sampled_from(["0.10", "1.00", "50.00"]),
    replicas=st.integers(0, 4),
    waiting=st.integers(0, 200),
)
@settings(max_examples=examples(60))
def test_every_service_of_any_fleet_is_explained_and_its_choice_is_among_the_hardware(
    observed_services: list[ObservedService],
    hardware: tuple[Node, ...],
    budget: str,
    replicas: int,
    waiting: int,
) -> None:
    pods = tuple(
        a_pod(
            f"{service.ref.name}-{index}",
            service.ref.name,
            node="a100-0",
            devices=SLICE,
            bound=at(-60),
        )
        for service in observed_services
        for index in range(replicas)
    )
    snapshot = a_snapshot(
        *observed_services,
        pools=(a_pool("a100", "1.60"), a_pool("h100", "2.50")),
        nodes=hardware,
        pods=pods,
        workloads=tuple(a_workload(replicas, service.ref.name) for service in observed_services),
        readings=readings_of(pods, waiting=waiting, activity=0.9),
        budgets=(a_budget(amount=budget),),
    )
    decided = plan_of(snapshot)
    for ref, service_plan in decided.service_plans.items():
        explained = {decision.topic: decision for decision in explain(snapshot, decided, ref)}
        chosen = {
            option.name
            for option in explained["placed"].alternatives
            if option.message.startswith("chosen")
        }
        assert chosen == {each.choice.variant for each in service_plan.used_variants}
        assert explained["scaling"].reason == service_plan.scale.reason
        assert all(decision.reason and decision.message for decision in explained.values())


def test_a_service_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        explain(running(), plan_of(running()), Ref("team-a", "other"))


@pytest.mark.parametrize("case", SERVICES, ids=lambda case: str(case.reason))
def test_every_refusal_is_explained_with_the_words_of_the_status(case: RefusalCase) -> None:
    body = yaml.safe_load(case.manifest)
    service = wire.parse_own(INFERENCE_SERVICES, body)
    assert service is not None
    snapshot = Snapshot(
        at=NOW + timedelta(seconds=1),
        services=(service,),
        pools=case.pools,
        nodes=case.nodes,
        pods=case.pods,
    )
    reasons = {
        decision.topic: decision.reason
        for decision in explain(snapshot, plan_of(snapshot), service.ref)
    }
    status: InferenceServiceStatus = service_status(
        snapshot, plan_of(snapshot).service_plans[service.ref], None, None
    )
    condition_reasons = {condition.type: condition.reason for condition in status.conditions}
    explained = [reasons["accepted"], reasons["placed"], reasons["ready"]]
    assert explained == [
        condition_reasons["Accepted"],
        condition_reasons["Placed"],
        condition_reasons["Ready"],
    ]
    assert (
        reasons.get("rollout", condition_reasons["Progressing"]) == condition_reasons["Progressing"]
    )


@pytest.mark.parametrize(
    ("uri", "model", "words"),
    [
        ("hf://acme/own", {}, "reads the config.json of hf://acme/own"),
        (SMALL, {"cache": {"type": "PersistentVolumeClaim"}}, "are on claim model-"),
        (SMALL, {"adapters": [{"name": "sql", "uri": "hf://acme/sql-lora"}]}, "MiB"),
        ("oci://registry.acme/own:1", {}, "reads the config.json of oci://registry.acme/own:1"),
    ],
)
def test_models_that_are_read_fetched_or_adapted_are_explained(
    uri: str, model: dict[str, Any], words: str
) -> None:
    explained = decisions(a_snapshot(a_service(spec=a_spec(uri, model=model))))
    texts = [
        text
        for decision in explained.values()
        for text in (decision.message, *(pair[1] for pair in decision.numbers))
    ]
    assert any(words in text for text in texts)
