"""Which weights are loaded: the commit that the hub named, once."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.inference_service import InferenceServiceStatus, ModelStatus
from tessera.api.reasons import RevisionReason
from tessera.domain.observed.snapshot import (
    ObservedService,
    Ref,
    Resolution,
    RevisionQuery,
    Snapshot,
)
from tessera.domain.service_plan import ServicePlan
from tessera.domain.status.service import service_status
from tests.builders import (
    SMALL,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    allotted,
    plan_of,
)

CHAT = Ref("team-a", "chat")
REPOSITORY = SMALL.removeprefix("hf://")
ONE, TWO = "1" * 40, "2" * 40
MAIN = RevisionQuery(REPOSITORY, "main")


def status_of(snapshot: Snapshot) -> InferenceServiceStatus:
    return service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)


def model_of(snapshot: Snapshot) -> ModelStatus:
    found = status_of(snapshot).model
    assert found is not None
    return found


def words(model: ModelStatus) -> str:
    assert model.message is not None
    return model.message


def answered(
    commit: str | None, question: RevisionQuery = MAIN, **fields: Any
) -> dict[RevisionQuery, Resolution]:
    reason = RevisionReason.REVISION_RESOLVED if commit else RevisionReason.HUB_UNREACHABLE
    return {question: Resolution(commit, fields.get("reason", reason), "the hub's words")}


def running(service: ObservedService, **fields: Any) -> Snapshot:
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    told = {"workloads": (a_workload(2),), "pods": pods, "resolutions": {}, **fields}
    return a_snapshot(service, **told)


def pinned(commit: str | None = ONE, **model: Any) -> ObservedService:
    """A service that runs with what the hub said."""
    service = a_service(spec=a_spec(model=model))
    question = RevisionQuery(REPOSITORY, model.get("revision", "main"))
    first = a_snapshot(service, resolutions=answered(commit, question))
    return replace(service, status=status_of(first))


def revision(allotment: ServicePlan) -> str | None:
    assert allotment.effective_spec is not None
    return allotment.effective_spec.model.revision


def test_a_new_service_waits_until_the_hub_was_asked() -> None:
    snapshot = a_snapshot(a_service(), resolutions={})
    assert allotted(snapshot).pinned_revision.query == MAIN
    status = status_of(snapshot)
    progressing = next(one for one in status.conditions if one.type == "Progressing")
    assert (progressing.status, progressing.reason) == ("True", "ResolvingRevision")
    assert model_of(snapshot).reason == "ResolvingRevision"


def test_the_commit_is_pinned_and_stays_whatever_the_hub_says_later() -> None:
    service = pinned(ONE, revision="main")
    assert service.status.model is not None
    assert (service.status.model.revision, service.status.model.reason) == (ONE, "RevisionResolved")
    got = allotted(running(service, resolutions=answered(TWO)))
    assert (revision(got), got.pinned_revision.query) == (ONE, None)


def test_a_restarted_operator_asks_nothing_again() -> None:
    got = allotted(running(pinned(ONE)))
    assert (revision(got), got.pinned_revision.query) == (ONE, None)


def test_a_hub_that_does_not_answer_stops_nothing_and_is_told() -> None:
    service = pinned(None, revision="release")
    assert service.status.model is not None
    assert service.status.model.reason == "HubUnreachable"
    assert "spec.model.revision release is used as given" in words(service.status.model)
    got = allotted(running(service))
    assert (revision(got), got.pinned_revision.query) == ("release", None)


def test_a_hub_that_comes_back_rolls_no_pods() -> None:
    got = allotted(running(pinned(None), resolutions=answered(TWO)))
    assert revision(got) is None


def test_another_revision_is_asked_for_and_leaves_the_deployment_meanwhile() -> None:
    service = replace(pinned(ONE), spec=a_spec(model={"revision": "release"}))
    asking = allotted(running(service))
    assert asking.pinned_revision.query == RevisionQuery(REPOSITORY, "release")
    assert asking.pinned_revision.status == service.status.model
    settled = running(service, resolutions=answered(TWO, RevisionQuery(REPOSITORY, "release")))
    assert revision(allotted(settled)) == TWO


def test_the_annotation_asks_the_hub_again_once() -> None:
    service = replace(pinned(ONE), update="now")
    asked = RevisionQuery(REPOSITORY, "main", "now")
    assert allotted(running(service, resolutions=answered(ONE))).pinned_revision.query == asked
    updated = running(service, resolutions=answered(TWO, asked))
    assert revision(allotted(updated)) == TWO
    after = running(replace(service, status=status_of(updated)))
    assert (revision(allotted(after)), allotted(after).pinned_revision.query) == (TWO, None)


def test_an_update_without_a_hub_keeps_the_commit() -> None:
    service = replace(pinned(ONE), update="now")
    asked = RevisionQuery(REPOSITORY, "main", "now")
    snapshot = running(service, resolutions=answered(None, asked))
    assert revision(allotted(snapshot)) == ONE
    assert f"the commit stays {ONE}" in words(model_of(snapshot))


def test_a_commit_needs_no_hub() -> None:
    service = a_service(spec=a_spec(model={"revision": ONE}))
    got = allotted(a_snapshot(service, resolutions={}))
    assert (revision(got), got.pinned_revision.query) == (ONE, None)
    assert model_of(a_snapshot(service, resolutions={})).reason == "CommitSpecified"


def test_a_service_from_before_pins_is_left_as_it_runs_until_the_annotation_asks() -> None:
    old = running(a_service())
    assert (revision(allotted(old)), allotted(old).pinned_revision.query) == (None, None)
    assert "kubectl tessera update chat pins it" in words(model_of(old))
    told = replace(old.services[0], status=status_of(old))
    assert allotted(running(replace(told, update="now"))).pinned_revision.query is not None


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
    assert allotted(snapshot).pinned_revision.query is None
    assert status_of(snapshot).model is None


@pytest.mark.parametrize(
    "reason", [RevisionReason.TOKEN_REQUIRED, RevisionReason.REVISION_NOT_FOUND]
)
def test_what_the_hub_refuses_is_used_as_given_and_told(reason: RevisionReason) -> None:
    got = model_of(a_snapshot(a_service(), resolutions=answered(None, reason=reason)))
    assert (got.revision, got.reason) == (None, reason)
    assert words(got).startswith("the hub's words")
