"""Speculation and prefix caching wait for a gate, which asks them for latency and cost alone."""

from dataclasses import replace
from typing import Any

from tessera.api.model_files import ModelShape
from tessera.api.service_status import (
    CandidateStatus,
    DraftModelStatus,
    InferenceServiceStatus,
    ModelStatus,
)
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.planning.trials import change_trial
from tessera.domain.quality.candidates import split_candidates
from tessera.domain.quality.change import gated_digest
from tessera.domain.quality.trial import ChangeTrial
from tests.builders import NOW, a_model_job, a_service, a_snapshot
from tests.domain.quality.gated_fleet import (
    A_CHANGE,
    GATE,
    GatedVariantFleet,
    a_first_revision,
    a_gate_spec,
    a_gated_fleet,
    a_gated_spec,
)
from tests.domain.quality.test_candidates import expect_floor
from tests.domain.quality.test_precisions import LISTED, a_fleet_with_untried_fp8
from tests.domain.service.test_model_files import SHAPE
from tests.domain.variant_fleet import CHAT

UNCACHED: dict[str, Any] = {"prefixCaching": False}
N_GRAMS: dict[str, Any] = {"speculation": {"method": "NGram"}}


def trial_of(fleet: GatedVariantFleet) -> ChangeTrial:
    fleet.cycle()
    snapshot = fleet.snapshot()
    gates = {gate.ref: gate for gate in snapshot.gates}
    trial = change_trial(fleet.plans[CHAT], snapshot, gates, fleet.plans)
    assert trial is not None, fleet.describe()
    assert trial.gate_ref == GATE.name
    return trial


def test_such_an_edit_alone_is_tried_for_latency_and_rolled_out_once_it_passed() -> None:
    for engine in (UNCACHED, N_GRAMS, UNCACHED | N_GRAMS):
        fleet = a_gated_fleet()
        stable = fleet.state.digest
        fleet.edit(engine=engine)
        expect_floor(fleet, 60, 2)
        trial = trial_of(fleet)
        assert (fleet.state.phase, fleet.serving()) == ("Candidate", {stable: 2})
        assert trial.is_of_latency
        assert trial.candidate.digest != trial.baseline.digest
        assert len(fleet.tried_pods()) == 1

        fleet.decide_on_candidate("Passed")
        expect_floor(fleet, 120, 2)
        assert fleet.serving() == {fleet.state.digest: 2}
        assert fleet.state.digest != stable


def test_a_slower_one_is_refused_and_the_stable_version_goes_on_as_it_is() -> None:
    fleet = a_gated_fleet()
    before = dict(fleet.workloads)
    fleet.edit(engine=N_GRAMS)
    fleet.run(60)
    fleet.decide_on_candidate("Slower")
    expect_floor(fleet, 60, 2)
    assert (fleet.state.phase, fleet.workloads) == ("Refused", before)


def test_with_a_change_of_answers_quality_is_asked_as_well() -> None:
    fleet = a_gated_fleet()
    fleet.edit(engine={**A_CHANGE["engine"], **UNCACHED})
    fleet.run(60)
    assert not trial_of(fleet).is_of_latency
    assert fleet.state.changes == ("spec.engine.extraArgs", "spec.engine.prefixCaching")


def test_another_builder_may_change_answers_and_no_new_version_is_of_latency() -> None:
    fleet = a_gated_fleet()
    (ref, stable), *_ = fleet.revisions.items()
    fleet.revisions[ref] = replace(stable, builder_version=stable.builder_version + 1)
    fleet.edit(engine=UNCACHED)
    fleet.run(60)
    assert not trial_of(fleet).is_of_latency


def test_precisions_stay_as_they_are_since_none_of_them_answers_otherwise() -> None:
    fleet = a_gated_fleet()
    fleet.edit(**LISTED)
    fleet.run(60)
    fleet.decide_on_candidate("Passed")
    fleet.run(120)
    for stays in (fleet, a_fleet_with_untried_fp8()):
        before, spec = stays.state.untried, stays.service.spec
        assert spec is not None
        written = spec.engine.model_dump(by_alias=True, exclude_unset=True, mode="json")
        stays.edit(**LISTED, engine={**written, **UNCACHED})
        stays.run(60)
        assert trial_of(stays).is_of_latency
        stays.decide_on_candidate("Passed")
        stays.run(120)
        assert (stays.state.phase, stays.state.untried) == ("Stable", before)


def drafted(uri: str) -> Any:
    return a_gated_spec(engine={"speculation": {"method": "DraftModel", "model": {"uri": uri}}})


def known(uri: str) -> ModelStatus:
    """Return what a version knows that has read the draft there."""
    shape = ModelShape.model_validate(SHAPE)
    draft = DraftModelStatus(uri=uri, shape=shape, source=f"{uri}/config.json")
    return ModelStatus(uri=drafted(uri).model.uri, draft=draft)


def test_each_version_reads_its_own_draft_model_and_hands_it_over() -> None:
    service = a_service(spec=drafted("hf://org/new"))
    old = replace(service, spec=drafted("hf://org/old"))
    first = replace(
        a_first_revision(old),
        spec=drafted("hf://org/old"),
        digest=gated_digest(drafted("hf://org/old")),
    )
    jobs = [a_model_job("draft", each)["model_jobs"][0] for each in (old, service)]
    gate = ObservedGate(ref=GATE, uid="uid", generation=1, spec=a_gate_spec())
    snapshot = a_snapshot(service, revisions=(first,), gates=(gate,), model_jobs=tuple(jobs))

    fleet = split_candidates(snapshot, 1)
    assert [job.service for job in fleet.snapshot.model_jobs] == [CHAT, CHAT.candidate]

    tried = CandidateStatus(
        revision="chat-2",
        digest=gated_digest(drafted("hf://org/new")),
        since=NOW,
        model=known("hf://org/new"),
    )
    status = InferenceServiceStatus(model=known("hf://org/old"), candidate=tried)
    for revisions, uri in (
        ((first,), "old"),
        ((replace(first, spec=drafted("hf://org/new")),), "new"),
    ):
        now = tuple(replace(each, digest=gated_digest(each.spec)) for each in revisions)
        services = (replace(service, status=status),)
        split = split_candidates(replace(snapshot, services=services, revisions=now), 1)
        (in_force, *_) = split.snapshot.services
        assert in_force.status.model is not None
        assert in_force.status.model.draft == known(f"hf://org/{uri}").draft
