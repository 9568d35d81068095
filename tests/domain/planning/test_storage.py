"""How large all claims of model files of a tenant may be, and what happens beyond."""

from typing import Any

import pytest

from tessera.api.reasons import Progressing
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tests.batch_builders import STORED
from tests.builders import NOW, a_budget, a_service, a_snapshot, a_spec, plan_of

ROOM = {"storage": "100Gi", "amount": "100000"}


def a_cached(name: str, size: str, uri: str = "", namespace: str = "team-a") -> ObservedService:
    model = {**STORED, "uri": f"s3://models/{uri or name}", "cache": {"size": size}}
    spec = a_spec(model=model, replicas=1)
    return a_service(name, spec, ref=Ref(namespace, name), uid=f"uid-{name}")


def a_fleet(*services: ObservedService, budget: dict[str, Any] | None = None) -> Snapshot:
    budgets = () if budget is None else (a_budget(**budget),)
    return a_snapshot(*services, budgets=budgets)


def claims_of(plan: Plan) -> dict[str, list[int]]:
    return {
        ref.name: [claim.gib for claim in service_plan.claims]
        for ref, service_plan in plan.service_plans.items()
    }


def progress_of(snapshot: Snapshot, service_plan: ServicePlan) -> tuple[str, str]:
    status = service_status(snapshot, service_plan, None, None)
    (progress,) = [each for each in status.conditions if each.type == "Progressing"]
    return progress.reason, progress.message


def test_claims_beyond_the_quota_of_a_tenant_are_not_created_and_say_so() -> None:
    snapshot = a_fleet(a_cached("a", "60Gi"), a_cached("b", "60Gi"), budget=ROOM)
    plan = plan_of(snapshot)
    assert claims_of(plan) == {"a": [60], "b": []}
    refused = plan.service_plans[Ref("team-a", "b")]
    assert refused.preparation is not None
    assert refused.preparation.job_to_create is None
    reason, message = progress_of(snapshot, refused)
    assert reason == Progressing.STORAGE_QUOTA_EXCEEDED
    assert "TenantBudget/team-a: spec.storage is 100Gi" in message
    assert "60 GiB more for s3://models/b have no room. Raise spec.storage" in message


def test_services_with_the_same_files_count_once_and_other_tenants_apart() -> None:
    services = (
        a_cached("a", "60Gi", "same"),
        a_cached("b", "80Gi", "same"),
        a_cached("c", "60Gi", namespace="team-b"),
    )
    assert claims_of(plan_of(a_fleet(*services, budget=ROOM))) == {"a": [60], "b": [80], "c": [60]}
    assert claims_of(plan_of(a_fleet(*services[:1]))) == {"a": [60]}


@pytest.mark.parametrize("size", ["60Gi", "90Gi", "5000Gi"])
def test_a_claim_that_exists_stays_and_grows_within_the_quota_alone(size: str) -> None:
    service = a_cached("a", size)
    (claim,) = plan_of(a_fleet(service)).service_plans[service.ref].claims
    volume = VolumeClaim(
        access_modes=("ReadWriteMany",), uid="uid-claim", gib=60, owners=(service.uid,)
    )
    snapshot = a_snapshot(
        service,
        a_cached("b", "50Gi"),
        budgets=(a_budget(**ROOM),),
        claims={claim.ref: volume},
        at=NOW,
    )
    grown = 60 if size == "5000Gi" else int(size.removesuffix("Gi"))
    plan = plan_of(snapshot)
    assert claims_of(plan) == {"a": [grown], "b": []}
    preparation = plan.service_plans[service.ref].preparation
    assert preparation is not None
    assert preparation.job_to_create is not None
