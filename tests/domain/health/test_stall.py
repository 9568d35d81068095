"""Which engines are stalled, which only seem to be, and when one is replaced."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tessera.api.service_status import InferenceServiceStatus, ReplacementStatus
from tessera.domain.config import STALL_TIMEOUT, Config
from tessera.domain.health.stall import (
    REPLACEMENT_INTERVAL,
    EngineProgress,
    Stall,
    max_prefill_time,
    stall_timeout_for,
    updated_progress,
)
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import (
    EngineReading,
    InFlight,
    ObservedService,
    Pod,
    Readings,
    Ref,
    Snapshot,
)
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.sizing.sizing import ReplicaFit
from tests.builders import (
    MEDIUM,
    NOW,
    PlanInputs,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    compute_service_plan,
    plan_of,
)
from tests.properties import applies, examples

FROZEN = EngineProgress(steps=900.0, since=at(-150), busy_since=at(-140))
PAIR = (a_pod("chat-0"), a_pod("chat-1"))


def reading(
    steps: float = 900.0, scraped: float = -1, *, awake: bool | None = True
) -> EngineReading:
    return EngineReading(steps=steps, scraped_at=at(scraped), awake=awake)


def a_fleet(
    *pods: Pod,
    engine_progress: dict[str, EngineProgress] | None = None,
    load: dict[str, InFlight] | None = None,
    read: dict[str, EngineReading] | None = None,
    service: ObservedService | None = None,
    stall_timeout: timedelta = STALL_TIMEOUT,
    **fields: Any,
) -> PlanInputs:
    """Build two replicas, the first with 3 requests and without a step for 140 s."""
    pods = pods or PAIR
    first = pods[0].ref.name
    plain = {pod.ref.name: reading() for pod in pods}
    snapshot = a_snapshot(
        service or a_service(),
        **{
            "pods": pods,
            "workloads": (a_workload(len(pods)),),
            "readings": Readings(at=NOW, engines=_by_ref(plain if read is None else read)),
            "in_flight": _by_ref({first: InFlight(at(-5), 3)} if load is None else load),
            **fields,
        },
    )
    progress = {first: FROZEN} if engine_progress is None else engine_progress
    return PlanInputs(
        snapshot,
        Config(stall_timeout=stall_timeout),
        PlanMemory(engine_progress=_by_ref(progress)),
    )


def _by_ref(named: dict[str, Any]) -> dict[Ref, Any]:
    return {Ref("team-a", name): value for name, value in named.items()}


def stall_of(inputs: PlanInputs) -> Stall:
    return plan_of(*inputs).service_plans[Ref("team-a", "chat")].stall


def replaced_pod(inputs: PlanInputs) -> str | None:
    replacement = stall_of(inputs).replacement
    return None if replacement is None else replacement.pod


def suspects(inputs: PlanInputs) -> list[str]:
    return [suspect.pod.ref.name for suspect in plan_of(*inputs).suspects]


def fit_of(snapshot: Snapshot) -> ReplicaFit:
    choice: HardwareChoice | None = compute_service_plan(snapshot).choice
    assert choice is not None
    return choice.fit


def after(seconds: float, **fields: Any) -> ObservedService:
    """A service of which a replica was replaced so long ago."""
    record = {"pod": "chat-9", "uid": "uid-chat-9", "message": "it stood still", **fields}
    status = InferenceServiceStatus(replacement=ReplacementStatus(at=at(-seconds), **record))
    return a_service(status=status)


def test_an_engine_with_requests_and_no_steps_is_replaced_and_the_numbers_are_named() -> None:
    replacement = stall_of(a_fleet()).replacement
    assert replacement is not None
    assert (replacement.pod, replacement.uid, replacement.at) == ("chat-0", "uid-chat-0", NOW)
    assert replacement.message == (
        "chat-0 holds requests, and its engine made no step since 2026-11-20T11:57:40Z; "
        "replaced with 3 requests in flight"
    )


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"load": {"chat-0": InFlight(at(-5), 0)}}, "it holds nothing: it is idle"),
        ({"load": {}}, "nobody could ask it"),
        ({"load": {"chat-0": InFlight(at(-31), 3)}}, "that was long ago"),
        ({"read": {"chat-0": reading(901.0)}}, "it took a step"),
        ({"read": {}}, "nobody knows its steps"),
        ({"read": {"chat-0": reading(scraped=-60)}}, "they were counted too long ago"),
        ({"read": {"chat-0": reading(awake=False)}}, "it sleeps, or is paused"),
        ({"readings": None}, "there is no reading at all"),
        ({"engine_progress": {}}, "the watch has just begun, as after a restart"),
        (
            {"engine_progress": {"chat-0": replace(FROZEN, busy_since=at(-30))}},
            "its first request came late",
        ),
        ({"stall_timeout": timedelta(seconds=150)}, "it gets longer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_only_looks_like_a_stall_is_none(fields: dict[str, Any], why: str) -> None:
    assert (replaced_pod(a_fleet(**fields)), why) == (None, why)


@pytest.mark.parametrize(
    "pod",
    [
        a_pod("chat-0", ready_since=None, containers_ready=False),
        a_pod("chat-0", serving=False, draining_since=at(-5), ready_since=None),
        a_pod("chat-0", terminating=True),
    ],
    ids=["starting", "draining", "leaving"],
)
def test_a_replica_that_takes_no_requests_is_not_watched(pod: Pod) -> None:
    decision = plan_of(*a_fleet(pod, PAIR[1]))
    assert pod.ref not in decision.engine_progress
    assert decision.service_plans[Ref("team-a", "chat")].stall == Stall()


ON_TWO_POOLS = a_snapshot(
    a_service(spec=a_spec(scaling={"minReplicas": 2, "maxReplicas": 8})),
    pools=(a_pool("reserved", "1.00"), a_pool("burst", "3.00", tier="OnDemand")),
    nodes=(a_node("reserved", whole=1), a_node("burst", whole=1)),
    pods=(
        a_pod("chat-0", variant="reserved-1gpu", node="reserved-0"),
        a_pod("chat-1", variant="burst-1gpu", node="burst-0"),
    ),
    workloads=(a_workload(1, variant="reserved-1gpu"), a_workload(1, variant="burst-1gpu")),
)


@pytest.mark.parametrize("stalled", ["chat-0", "chat-1"])
def test_engines_of_every_variant_are_watched_and_their_peers_are_of_any(stalled: str) -> None:
    assert replaced_pod(_stalled_on_two_pools(stalled)) == stalled


def test_no_second_replica_of_the_floor_is_replaced_while_one_drains() -> None:
    inputs = _stalled_on_two_pools("chat-0")
    first, second = inputs.snapshot.pods
    draining = replace(second, draining_since=at(-5), serving=False, ready_since=None)
    stall = stall_of(inputs._replace(snapshot=replace(inputs.snapshot, pods=(first, draining))))
    assert stall.blocker is not None
    assert "it is replaced once 1 other replica can serve requests, now 0" in stall.blocker


def _stalled_on_two_pools(stalled: str) -> PlanInputs:
    snapshot = replace(
        ON_TWO_POOLS,
        readings=Readings(at=NOW, engines=_by_ref({"chat-0": reading(), "chat-1": reading()})),
        in_flight=_by_ref({stalled: InFlight(at(-5), 3)}),
    )
    progress = PlanMemory(engine_progress=_by_ref({stalled: FROZEN}))
    return PlanInputs(snapshot, Config(stall_timeout=STALL_TIMEOUT, gateways=True), progress)


def test_the_longest_prompt_of_all_is_waited_for() -> None:
    """Of the steps that read a prompt of 128k tokens only the last one counts."""
    long = a_spec(
        MEDIUM,
        context={"maxModelLen": 131072},
        slo={"ttftP95": "600s", "itlP95": "500ms"},
        precision={"variants": [{"precision": "fp8"}]},
    )
    whole = a_snapshot(a_service(spec=long), nodes=(a_node(whole=1),))
    short = a_snapshot(a_service())
    patience = timedelta(seconds=30)
    assert stall_timeout_for(max_prefill_time(fit_of(short)), FROZEN, patience) == patience
    assert max_prefill_time(fit_of(whole)) > timedelta(seconds=8)
    longest = max_prefill_time(fit_of(whole))
    assert stall_timeout_for(longest, FROZEN, patience) == 4 * longest


def test_an_engine_that_never_took_a_step_may_compile_for_five_times_as_long() -> None:
    fresh = replace(FROZEN, steps=0.0)
    none_yet = {"chat-0": reading(0.0)}
    assert replaced_pod(a_fleet(engine_progress={"chat-0": fresh}, read=none_yet)) is None
    late = EngineProgress(steps=0.0, since=at(-700), busy_since=at(-602))
    assert replaced_pod(a_fleet(engine_progress={"chat-0": late}, read=none_yet)) == "chat-0"


def test_slow_scrapes_prove_nothing_until_one_is_young_enough() -> None:
    """Requests came 140 s ago, and the newest scrape is only 110 s younger than they are."""
    assert replaced_pod(a_fleet(read={"chat-0": reading(scraped=-30)})) is None


def test_two_replicas_at_once_go_one_after_the_other_the_longest_first() -> None:
    longer = replace(FROZEN, busy_since=at(-145))
    both = {"chat-0": FROZEN, "chat-1": longer}
    load = dict.fromkeys(both, InFlight(at(-5), 1))
    assert replaced_pod(a_fleet(engine_progress=both, load=load)) == "chat-1"


def test_at_most_one_replica_of_a_service_is_replaced_in_ten_minutes() -> None:
    stall = stall_of(a_fleet(service=after(599)))
    assert stall.replacement is None
    assert stall.blocker is not None
    assert "chat-0 holds requests" in stall.blocker
    assert (
        "chat-9 was replaced recently, the next replacement is allowed from 12:00:01Z. "
        "To replace it now: kubectl delete pod -n team-a chat-0" in stall.blocker
    )
    assert replaced_pod(a_fleet(service=after(REPLACEMENT_INTERVAL.total_seconds()))) == "chat-0"


def test_a_replacement_that_was_written_down_and_not_carried_out_is_carried_out() -> None:
    service = after(30, pod="chat-0", uid="uid-chat-0")
    replacement = stall_of(a_fleet(service=service)).replacement
    assert replacement is not None
    assert (replacement.at, replacement.message) == (at(-30), "it stood still")


def test_none_is_replaced_while_others_of_min_replicas_are_missing() -> None:
    starting = a_pod("chat-1", ready_since=None, containers_ready=False)
    stall = stall_of(a_fleet(PAIR[0], starting))
    assert stall.replacement is None
    assert stall.blocker is not None
    assert "1 other replica can serve requests, now 0. To replace it" in stall.blocker
    beyond = a_service(spec=a_spec(scaling={"minReplicas": 1}))
    assert replaced_pod(a_fleet(PAIR[0], starting, service=beyond)) == "chat-0"


def test_the_only_replica_of_a_service_is_replaced_too() -> None:
    alone = a_service(spec=a_spec(replicas=1))
    assert replaced_pod(a_fleet(PAIR[0], service=alone)) == "chat-0"


def test_only_stalled_engines_are_probed_and_busy_ones_more_often() -> None:
    idle = replace(FROZEN, busy_since=None)

    def asked(watch: EngineProgress, age: float, **fields: Any) -> bool:
        load = {"chat-0": InFlight(at(-age), int(watch.busy_since is not None))}
        return suspects(a_fleet(engine_progress={"chat-0": watch}, load=load, **fields)) == [
            "chat-0"
        ]

    assert asked(FROZEN, 11)
    assert not asked(FROZEN, 9)
    assert asked(idle, 31)
    assert not asked(idle, 11)
    assert not asked(idle, 31, read={"chat-0": reading(901.0)})


def test_an_engine_with_a_longer_timeout_is_probed_as_often_as_a_decision_needs_it() -> None:
    """Otherwise the newest reading would always be too old."""
    late = {"chat-0": EngineProgress(steps=0.0, since=at(-700), busy_since=at(-300))}
    load = {"chat-0": InFlight(at(-11), 3)}
    assert suspects(a_fleet(engine_progress=late, load=load, read={"chat-0": reading(0.0)})) == [
        "chat-0"
    ]


def test_a_timeout_that_is_shorter_than_a_cycle_still_ends() -> None:
    """A reading arrives in the cycle after its request, five seconds later."""
    requests_seen = {"chat-0": InFlight(at(-5.1), 3)}
    assert replaced_pod(a_fleet(load=requests_seen, stall_timeout=timedelta(seconds=8))) == "chat-0"


def test_a_reading_without_requests_restarts_the_wait() -> None:
    requests_seen = updated_progress(FROZEN, reading(), InFlight(at(-20), 0))
    assert requests_seen == replace(FROZEN, busy_since=None)
    assert updated_progress(requests_seen, reading(), InFlight(at(-10), 2)) == replace(
        FROZEN, busy_since=at(-10)
    )


def test_a_reading_from_before_the_last_step_is_ignored() -> None:
    moved = updated_progress(FROZEN, reading(901.0, -10), InFlight(at(-20), 3))
    assert moved == EngineProgress(steps=901.0, since=at(-10))


def test_engine_progress_is_carried_to_the_next_cycle() -> None:
    decision = plan_of(*a_fleet())
    assert decision.engine_progress == {
        PAIR[0].ref: FROZEN,
        PAIR[1].ref: EngineProgress(steps=900.0, since=at(-1)),
    }


def test_a_cached_plan_sees_a_stalled_engine_and_is_else_the_same_object() -> None:
    incremental = Incremental()
    calm = a_fleet(load={}, engine_progress={}, service=a_service(spec=a_spec(replicas=2)))
    for _ in range(2):
        history = plan_of(*calm, incremental=incremental).scaling_history
        calm = PlanInputs(
            replace(calm.snapshot, at=at(5)), memory=PlanMemory(scaling_history=history)
        )
    assert (
        plan_of(*calm, incremental=incremental).service_plans
        is plan_of(*calm, incremental=incremental).service_plans
    )
    frozen = PlanInputs(
        replace(calm.snapshot, in_flight={PAIR[0].ref: InFlight(NOW, 3)}),
        memory=replace(calm.memory, engine_progress={PAIR[0].ref: FROZEN}),
    )
    replacement = (
        plan_of(*frozen, incremental=incremental)
        .service_plans[Ref("team-a", "chat")]
        .stall.replacement
    )
    assert replacement is not None
    assert replacement.pod == PAIR[0].ref.name
    assert (
        plan_of(*calm, incremental=incremental).service_plans[Ref("team-a", "chat")].stall
        == Stall()
    )


readings = st.lists(
    st.tuples(
        st.sampled_from([0] * 9 + [1]),
        st.sampled_from([None, 1, 1, 1, 1, 2, 2, 2, 0]),
        st.integers(1, 20),
    ),
    min_size=5,
    max_size=40,
)


@applies(30)
@settings(max_examples=examples(50), suppress_health_check=[HealthCheck.filter_too_much])
@given(seen=readings)
def test_a_replaced_engine_had_requests_and_took_no_step_for_the_whole_timeout(
    seen: Sequence[tuple[int, int | None, int]],
) -> None:
    """Each reading has steps, requests (None: not probed) and seconds since the last one."""
    watches: dict[Ref, EngineProgress] = {}
    load: dict[str, InFlight] = {}
    now, steps, moved, empty = 0, 1000.0, 0, 0
    replacements = 0
    for steps_taken, requests, seconds in seen:
        now, steps = now + seconds, steps + steps_taken
        moved = now if steps_taken or not watches else moved
        if requests is not None:
            load = {"chat-0": InFlight(at(now), requests)}
            empty = now if requests == 0 else empty
        inputs = a_fleet(
            at=at(now),
            load=load,
            stall_timeout=timedelta(seconds=40),
            read={"chat-0": reading(steps, now)},
            engine_progress={ref.name: watch for ref, watch in watches.items()},
        )
        decision = plan_of(*inputs)
        watches = dict(decision.engine_progress)
        if decision.service_plans[Ref("team-a", "chat")].stall.replacement is not None:
            assert now - moved >= 40
            assert now - empty >= 40 or empty == 0
            assert load["chat-0"].requests > 0
            replacements += 1
    assume(replacements)
