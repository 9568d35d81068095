"""A policy is one module and a line in the table: plan and explanation know nothing else of it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import pytest

from tessera.api.inference_service import ScalingPolicyName
from tessera.api.reasons import ScalingReason
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.scaling.decisions import (
    changed,
    current_replicas,
    desired_replicas,
    with_recent_decisions,
)
from tessera.domain.scaling.policies.by_name import POLICIES
from tessera.domain.scaling.state import Decided, ScaleDecision, ScalingHistory, ServiceLoad
from tessera.domain.scaling.target import ScaleTarget
from tests.builders import (
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
Names = tuple[tuple[str, str], ...]


class PeakConcurrency:
    """As many replicas as the most running requests so far fill with four each."""

    def decide(
        self, target: ScaleTarget, load: ServiceLoad, history: ScalingHistory
    ) -> ScaleDecision:
        peak = max(cast(float, history.memory or 0.0), load.running or 0.0)
        replicas = min(desired_replicas(peak, 4), target.spec.max_replicas)
        history = replace(with_recent_decisions(target.spec, load, history), memory=peak)
        decided = Decided(replicas, ScalingReason.STEADY, f"at most {peak:.0f} at once")
        current = current_replicas(load, history)
        return replace(changed(decided, load.at, current, history), assessment=peak)

    def inputs(self, *_: object) -> tuple[object, ...]:
        return ()

    def restore(
        self, _target: ScaleTarget, _readings: Sequence[ServiceLoad], history: ScalingHistory
    ) -> ScalingHistory:
        return history

    def numbers(self, _target: ScaleTarget, load: ServiceLoad, decision: ScaleDecision) -> Names:
        return (("peak", f"{decision.assessment}"), ("now", f"{load.running}"))

    def would_change(
        self, _target: ScaleTarget, _load: ServiceLoad, decision: ScaleDecision
    ) -> Iterator[str]:
        yield f"more than {4 * decision.replicas} requests at once"


@pytest.fixture
def third_policy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(cast(dict[str, Any], POLICIES), "PeakConcurrency", PeakConcurrency())
    return "PeakConcurrency"


def test_the_table_has_every_policy_of_the_api() -> None:
    assert set(POLICIES) == set(get_args(ScalingPolicyName))


def test_a_third_policy_decides_and_is_explained(third_policy: str) -> None:
    spec = a_spec(scaling={"minReplicas": 1, "maxReplicas": 8})
    scaling = spec.scaling.model_copy(update={"policy": third_policy})
    pods = (a_pod("chat-0"), a_pod("chat-1"))

    def fleet(second: float, running: float) -> Snapshot:
        return a_snapshot(
            a_service(spec=spec.model_copy(update={"scaling": scaling})),
            pods=pods,
            workloads=(a_workload(replicas=2),),
            at=at(second),
            readings=replace(readings_of(pods, running=running), at=at(second)),
        )

    busy = plan_of(fleet(0, running=10))
    calm = plan_of(fleet(60, running=1), memory=PlanMemory().after(busy))
    scales = [decided.service_plans[CHAT].scale for decided in (busy, calm)]
    assert [(scale.replicas, scale.message) for scale in scales] == [(5, "at most 20 at once")] * 2
    explained = {each.topic: each for each in explain(fleet(60, running=1), calm, CHAT)}["scaling"]
    assert dict(explained.numbers) == {
        "replicas": "5 desired",
        "bounds": "1 to 8",
        "peak": "20",
        "now": "2",
    }
    assert explained.would_change == ("more than 20 requests at once",)
