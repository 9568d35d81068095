"""What is written for gates is accepted by a real API server, and read again as it was written."""

from dataclasses import replace
from datetime import timedelta

from tessera.adapters.kube.client import KubeCluster
from tessera.api.ref import Ref
from tessera.api.rollout import BeforeAndAfter, RolloutRecord
from tessera.api.service_status import InferenceServiceStatus
from tessera.api.template_version import Platform
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, QUALITY_GATES
from tessera.domain.observed.gates import ObservedGate, ServiceRevision
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.quality.gate_jobs import GateJobRequest
from tessera.domain.quality.gates import GatePlan
from tessera.domain.status.rollouts import gate_status
from tessera.resources.gate_job import answers_claim_manifest, gate_job_manifest, shared_manifests
from tessera.resources.manifest import partial_manifest, wire_format
from tessera.resources.revisions import revision_manifest
from tessera.resources.runner import RunnerImage
from tests.builders import NOW, a_spec
from tests.domain.quality.gate_world import GateWorld, a_gate, a_report, a_stratum, a_trial


async def test_verdicts_and_versions_are_written_and_read_again(cluster: KubeCluster) -> None:
    suite = {"suite": {"configMap": {"name": "suite"}}}
    meta = {"name": "written", "namespace": "default"}
    await cluster.apply(partial_manifest(QUALITY_GATES, meta, spec=suite))
    world = GateWorld(a_trial())
    strata = [a_stratum(candidate=0.85, loss=-5), a_stratum("math")]
    world.end(a_report(world.ask("Candidate"), strata=strata))
    plan: GatePlan = world.plan()
    status = gate_status(plan, NOW)
    body = partial_manifest(QUALITY_GATES, meta, status=wire_format(status))
    applied = await cluster.apply(body, subresource="status")
    assert isinstance(applied.plan_input, ObservedGate)
    assert applied.plan_input.status == status
    assert [each.reason for each in status.verdicts] == ["Passed"]


async def test_how_changes_ended_is_written_and_read_again(cluster: KubeCluster) -> None:
    meta = {"name": "recorded", "namespace": "default"}
    spec = {"model": {"uri": "hf://a/b"}}
    await cluster.apply(partial_manifest(INFERENCE_SERVICES, meta, spec=spec))
    column = BeforeAndAfter.model_validate({"before": "0.8", "after": "0.75"})
    record = RolloutRecord(
        revision="recorded-1",
        digest="d" * 64,
        changes=("spec.model.revision",),
        reason="Failed",
        ended_at=NOW,
        quality=column,
        usd_per_million_tokens=column,
        is_refused=True,
    )
    status = InferenceServiceStatus(stable_revision="recorded-0", rollouts=(record,))
    body = partial_manifest(INFERENCE_SERVICES, meta, status=wire_format(status))
    applied = await cluster.apply(body, subresource="status")
    assert isinstance(applied.plan_input, ObservedService)
    assert applied.plan_input.status == status


async def test_the_objects_of_a_gate_are_accepted(cluster: KubeCluster) -> None:
    meta = {"name": "objects", "namespace": "default"}
    suite = {"suite": {"configMap": {"name": "suite"}}}
    owner = await cluster.apply(partial_manifest(QUALITY_GATES, meta, spec=suite))
    gate = a_gate(ref=Ref("default", "objects"), uid=owner.uid)
    request: GateJobRequest = GateWorld().ask("Baseline")
    request = replace(
        request,
        run=replace(request.run, gate=gate, service=Ref("default", "chat")),
        active_deadline=timedelta(hours=1),
    )
    job = gate_job_manifest(request, RunnerImage("tessera/batch:test"), Platform())
    manifests = (*shared_manifests([gate], ["chat"], "tessera-system"), job)
    for manifest in (*manifests, answers_claim_manifest(gate)):
        assert manifest is not None
        applied = await cluster.apply(manifest)
        assert applied.key == manifest.key


async def test_a_version_gets_its_number_and_stays_as_it_was_recorded(cluster: KubeCluster) -> None:
    meta = {"name": "versioned", "namespace": "default"}
    spec = {"model": {"uri": "hf://a/b"}, "engine": {"extraArgs": ["--seed=7"]}}
    owner = await cluster.apply(partial_manifest(INFERENCE_SERVICES, meta, spec=spec))
    revision = ServiceRevision(
        ref=Ref("default", "versioned-1"),
        service=Ref("default", "versioned"),
        service_uid=owner.uid,
        number=0,
        digest="",
        spec=a_spec("hf://a/b", engine={"extraArgs": ["--seed=7"]}),
        builder_version=3,
    )
    recorded = (await cluster.apply(revision_manifest(revision))).plan_input
    assert isinstance(recorded, ServiceRevision)
    assert recorded.number == 0
    promoted = await cluster.apply(revision_manifest(replace(recorded, number=2)))
    assert promoted.plan_input == replace(recorded, number=2)
