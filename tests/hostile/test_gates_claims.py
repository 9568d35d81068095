"""Claims of gates' answers: as large as the tenant's quota of storage leaves, and no larger."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tessera.api.gate_reasons import GateAccepted
from tessera.api.reasons import Progressing
from tessera.api.ref import Ref
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.quality.names import answers_claim_name
from tessera.domain.status.rollouts import gate_status
from tests.builders import a_budget, plan_of
from tests.domain.quality.gated_fleet import (
    A_CHANGE,
    GATE,
    a_gate_spec,
    a_gated_fleet,
    a_gated_spec,
)
from tests.domain.variant_fleet import CHAT
from tests.hostile.score import SCORE

QUOTA_GIB = 16


@cache
def a_changed_fleet() -> Snapshot:
    """Return a fleet in which the Job of a gate is due, and whose tenant has a quota of storage."""
    fleet = a_gated_fleet()
    fleet.service = replace(fleet.service, spec=a_gated_spec(**A_CHANGE))
    budget = a_budget(storage=f"{QUOTA_GIB}Gi", amount="100000")
    for _ in range(40):
        fleet.cycle()
        pods = tuple(replace(pod, address="10.0.0.1") for pod in fleet.snapshot().pods)
        snapshot = replace(fleet.snapshot(), pods=pods, budgets=(budget,))
        if plan_of(snapshot).gates[GATE].create is not None:
            return snapshot
    raise AssertionError("no Job of the gate is due")


def with_answers(snapshot: Snapshot, gib: int, gate: str = GATE.name) -> Snapshot:
    """Return the snapshot with a gate whose claim has another size; it is added if it is new."""
    (first,) = [each for each in snapshot.gates if each.ref == GATE]
    changed = replace(
        first,
        ref=Ref(GATE.namespace, gate),
        uid=f"uid-{gate}",
        generation=first.generation + 1,
        spec=a_gate_spec(answers={"size": f"{gib}Gi"}),
    )
    others = [each for each in snapshot.gates if each.ref != changed.ref]
    return replace(snapshot, gates=(*others, changed))


def with_claim(snapshot: Snapshot, gate: str, gib: int) -> Snapshot:
    ref = Ref(GATE.namespace, answers_claim_name(gate))
    volume = VolumeClaim(access_modes=("ReadWriteOnce",), gib=gib, owners=(f"uid-{gate}",))
    claims: Mapping[Ref, VolumeClaim] = {**snapshot.claims, ref: volume}
    return replace(snapshot, claims=claims)


def progress_of(plan: Plan) -> Any:
    gated = plan.service_plans[CHAT].gated
    assert gated is not None
    assert gated.trial is not None
    return gated.trial.progressing


@pytest.mark.parametrize("gib", [QUOTA_GIB + 1, 9999])
def test_a_claim_of_answers_beyond_the_quota_is_not_created_and_says_so(gib: int) -> None:
    plan = plan_of(with_answers(a_changed_fleet(), gib))
    gate_plan = plan.gates[GATE]
    SCORE.add(int(gate_plan.create is not None))
    assert gate_plan.create is None
    assert gate_plan.accepted.reason is GateAccepted.STORAGE_QUOTA_EXCEEDED
    assert f"{gib} GiB more for its answers have no room" in gate_plan.accepted.message
    progress = progress_of(plan)
    assert progress.reason is Progressing.GATE_NOT_ACCEPTED
    assert f"TenantBudget/team-a: spec.storage is {QUOTA_GIB}Gi" in progress.message


def test_a_claim_of_answers_within_the_quota_is_created() -> None:
    assert plan_of(with_answers(a_changed_fleet(), QUOTA_GIB)).gates[GATE].create is not None


def test_many_gates_have_one_quota() -> None:
    snapshot = with_claim(with_answers(a_changed_fleet(), 10, "other"), "other", 10)
    refused = plan_of(with_answers(snapshot, 7)).gates[GATE]
    SCORE.add(int(refused.create is not None))
    assert refused.create is None
    assert plan_of(with_answers(snapshot, 6)).gates[GATE].create is not None


def test_a_claim_that_exists_is_used_as_before_and_grows_within_the_quota_alone() -> None:
    snapshot = with_claim(a_changed_fleet(), GATE.name, 40)
    assert plan_of(with_answers(snapshot, 40)).gates[GATE].create is not None
    assert plan_of(with_answers(snapshot, 41)).gates[GATE].create is None


def test_a_gate_without_room_goes_on_once_the_quota_is_larger() -> None:
    snapshot = with_answers(a_changed_fleet(), 20)
    refused = plan_of(snapshot).gates[GATE]
    status = gate_status(refused, snapshot.at)

    def seen(gate: ObservedGate) -> ObservedGate:
        return replace(gate, status=status) if gate.ref == GATE else gate

    snapshot = replace(snapshot, gates=tuple(map(seen, snapshot.gates)))
    assert plan_of(snapshot).gates[GATE].create is None
    larger = a_budget(storage="20Gi", amount="100000")
    gate_plan = plan_of(replace(snapshot, budgets=(larger,))).gates[GATE]
    assert gate_plan.create is not None
    assert gate_plan.accepted.reason is not GateAccepted.STORAGE_QUOTA_EXCEEDED
