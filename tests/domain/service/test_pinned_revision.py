"""Which weights are loaded: the commit that the hub named, once."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_workload
from tessera.api.reasons import RevisionReason
from tessera.api.service_status import InferenceServiceStatus, ModelStatus
from tessera.domain.observed.snapshot import (
    ObservedService,
    Ref,
    Resolution,
    RevisionQuery,
    Snapshot,
)
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.service.pinned_revision import PinnedRevision
from tessera.domain.status.service import service_status
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.children import service_manifests
from tests.builders import (
    SMALL,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    compute_service_plan,
    plan_of,
)

CHAT = Ref("team-a", "chat")
REPOSITORY = SMALL.removeprefix("hf://")
ONE, TWO = "1" * 40, "2" * 40
MAIN = RevisionQuery(REPOSITORY, "main")


def status_of(snapshot: Snapshot) -> InferenceServiceStatus:
    return service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)


def model_of(snapshot: Snapshot) -> ModelStatus:
    model_status = status_of(snapshot).model
    assert model_status is not None
    return model_status


def message_of(model: ModelStatus) -> str:
    assert model.message is not None
    return model.message


def resolutions_of(
    commit: str | None, query: RevisionQuery = MAIN, **fields: Any
) -> dict[RevisionQuery, Resolution]:
    reason = RevisionReason.REVISION_RESOLVED if commit else RevisionReason.HUB_UNREACHABLE
    return {query: Resolution(commit, fields.get("reason", reason), "the hub's words")}


def running(service: ObservedService, **fields: Any) -> Snapshot:
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    objects = {"workloads": (a_workload(2),), "pods": pods, "resolutions": {}, **fields}
    return a_snapshot(service, **objects)


def a_pinned_service(commit: str | None = ONE, **model: Any) -> ObservedService:
    """A service that runs with what the hub said."""
    service = a_service(spec=a_spec(model=model))
    query = RevisionQuery(REPOSITORY, model.get("revision", "main"))
    first = a_snapshot(service, resolutions=resolutions_of(commit, query))
    return replace(service, status=status_of(first))


def revision_of(service_plan: ServicePlan) -> str | None:
    spec = service_plan.located_spec(service_plan.variants[0])
    assert spec is not None
    return spec.model.revision


def test_a_new_service_waits_until_the_hub_was_asked() -> None:
    snapshot = a_snapshot(a_service(), resolutions={})
    assert compute_service_plan(snapshot).pinned_revision.query == MAIN
    status = status_of(snapshot)
    progressing = next(
        condition for condition in status.conditions if condition.type == "Progressing"
    )
    assert (progressing.status, progressing.reason) == ("True", "ResolvingRevision")
    assert model_of(snapshot).reason == "ResolvingRevision"


def test_the_commit_is_pinned_and_stays_whatever_the_hub_says_later() -> None:
    service = a_pinned_service(ONE, revision="main")
    assert service.status.model is not None
    assert (service.status.model.revision, service.status.model.reason) == (ONE, "RevisionResolved")
    service_plan = compute_service_plan(running(service, resolutions=resolutions_of(TWO)))
    assert (revision_of(service_plan), service_plan.pinned_revision.query) == (ONE, None)


def test_a_restarted_operator_asks_nothing_again() -> None:
    service_plan = compute_service_plan(running(a_pinned_service(ONE)))
    assert (revision_of(service_plan), service_plan.pinned_revision.query) == (ONE, None)


@pytest.mark.parametrize("was_reported", [False, True])
def test_a_commit_whose_status_was_not_written_is_read_from_the_deployment(
    *, was_reported: bool
) -> None:
    service = a_service()
    if was_reported:
        service = replace(service, status=status_of(a_snapshot(service, resolutions={})))
    service_plan = compute_service_plan(a_snapshot(service, resolutions=resolutions_of(ONE)))
    (deployment,) = [
        manifest for manifest in service_manifests(service_plan) if manifest.kind is DEPLOYMENTS
    ]
    applied = parse_workload(deployment.body)
    restarted = compute_service_plan(
        running(service, workloads=(replace(a_workload(2), model=applied.model),))
    )
    assert restarted.pinned_revision == PinnedRevision(service_plan.pinned_revision.status)
    assert revision_of(restarted) == ONE


def test_the_deployment_of_a_namesake_pins_nothing() -> None:
    pinned = compute_service_plan(running(a_pinned_service(ONE))).pinned_revision.status
    leftover = replace(a_workload(2), model=pinned, owner_uid="of-a-namesake")
    restarted = compute_service_plan(running(a_service(), workloads=(leftover,)))
    assert revision_of(restarted) is None


def test_a_hub_that_does_not_answer_stops_nothing_and_is_reported() -> None:
    service = a_pinned_service(None, revision="release")
    assert service.status.model is not None
    assert service.status.model.reason == "HubUnreachable"
    assert "spec.model.revision release is used as given" in message_of(service.status.model)
    service_plan = compute_service_plan(running(service))
    assert (revision_of(service_plan), service_plan.pinned_revision.query) == ("release", None)


def test_a_hub_that_comes_back_rolls_no_pods() -> None:
    service_plan = compute_service_plan(
        running(a_pinned_service(None), resolutions=resolutions_of(TWO))
    )
    assert revision_of(service_plan) is None


def test_another_revision_is_asked_for_and_leaves_the_deployment_meanwhile() -> None:
    service = replace(a_pinned_service(ONE), spec=a_spec(model={"revision": "release"}))
    asking = compute_service_plan(running(service))
    assert asking.pinned_revision.query == RevisionQuery(REPOSITORY, "release")
    assert asking.pinned_revision.status == service.status.model
    settled = running(
        service, resolutions=resolutions_of(TWO, RevisionQuery(REPOSITORY, "release"))
    )
    assert revision_of(compute_service_plan(settled)) == TWO


def test_the_annotation_asks_the_hub_again_once() -> None:
    service = replace(a_pinned_service(ONE), update="now")
    update_query = RevisionQuery(REPOSITORY, "main", "now")
    assert (
        compute_service_plan(
            running(service, resolutions=resolutions_of(ONE))
        ).pinned_revision.query
        == update_query
    )
    updated = running(service, resolutions=resolutions_of(TWO, update_query))
    assert revision_of(compute_service_plan(updated)) == TWO
    after = running(replace(service, status=status_of(updated)))
    assert (
        revision_of(compute_service_plan(after)),
        compute_service_plan(after).pinned_revision.query,
    ) == (TWO, None)


def test_an_update_without_a_hub_keeps_the_commit() -> None:
    service = replace(a_pinned_service(ONE), update="now")
    update_query = RevisionQuery(REPOSITORY, "main", "now")
    snapshot = running(service, resolutions=resolutions_of(None, update_query))
    assert revision_of(compute_service_plan(snapshot)) == ONE
    assert f"the commit stays {ONE}" in message_of(model_of(snapshot))


def test_a_commit_needs_no_hub() -> None:
    service = a_service(spec=a_spec(model={"revision": ONE}))
    service_plan = compute_service_plan(a_snapshot(service, resolutions={}))
    assert (revision_of(service_plan), service_plan.pinned_revision.query) == (ONE, None)
    assert model_of(a_snapshot(service, resolutions={})).reason == "CommitSpecified"


def test_a_service_from_before_pins_is_left_as_it_runs_until_the_annotation_asks() -> None:
    old = running(a_service())
    assert (
        revision_of(compute_service_plan(old)),
        compute_service_plan(old).pinned_revision.query,
    ) == (None, None)
    assert "kubectl tessera update chat pins it" in message_of(model_of(old))
    service = replace(old.services[0], status=status_of(old))
    assert (
        compute_service_plan(running(replace(service, update="now"))).pinned_revision.query
        is not None
    )


def test_a_claim_has_no_revision() -> None:
    shape = {
        "parameters": 800_000,
        "layers": 2,
        "attentionHeads": 4,
        "kvHeads": 2,
        "headDim": 32,
        "maxPositionEmbeddings": 2048,
    }
    service = a_service(spec=a_spec("pvc://weights/tiny", model={"shape": shape}))
    snapshot = a_snapshot(service, resolutions={})
    assert compute_service_plan(snapshot).pinned_revision.query is None
    assert status_of(snapshot).model is None


@pytest.mark.parametrize(
    "reason", [RevisionReason.TOKEN_REQUIRED, RevisionReason.REVISION_NOT_FOUND]
)
def test_what_the_hub_refuses_is_used_as_given_and_reported(reason: RevisionReason) -> None:
    model_status = model_of(
        a_snapshot(a_service(), resolutions=resolutions_of(None, reason=reason))
    )
    assert (model_status.revision, model_status.reason) == (None, reason)
    assert message_of(model_status).startswith("the hub's words")
