"""Objects as the API server sends them, and what they become."""

from tessera.adapters import wire
from tessera.domain.batch.facts import BatchJob
from tessera.domain.model.facts import ErrandJob, ErrandRun
from tessera.domain.ref import Ref
from tessera.resources.kinds import INFERENCE_SERVICES


def test_a_service_on_its_way_out_is_not_planned() -> None:
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "resourceVersion": "7"}
    body = {"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}}}
    leaving = body | {"metadata": meta | {"deletionTimestamp": "2026-11-20T12:00:00Z"}}
    assert wire.seen(INFERENCE_SERVICES, body).value is not None
    assert wire.seen(INFERENCE_SERVICES, leaving).value is None


def test_pods_and_jobs_of_a_batch_carry_its_uid() -> None:
    labels = {"tessera.dev/batch": "night", "tessera.dev/batch-uid": "uid-night"}
    meta = {
        "name": "night-a1",
        "namespace": "team-a",
        "uid": "uid-night-a1",
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "labels": labels,
    }
    job, pod = wire.job({"metadata": meta}), wire.pod({"metadata": meta})
    assert isinstance(job, BatchJob)
    assert pod.run is not None
    assert (job.batch_uid, pod.run.uid) == ("uid-night", "uid-night")


def test_the_pod_of_an_errand_is_no_replica_and_brings_its_report() -> None:
    labels = {"tessera.dev/errand": "shape", "tessera.dev/errand-for": "chat"}
    meta = {
        "name": "chat-shape-1",
        "namespace": "team-a",
        "uid": "uid-1",
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "labels": labels,
        "ownerReferences": [{"uid": "uid-job", "controller": True}],
    }
    ended = {"exitCode": 3, "message": "no", "finishedAt": "2026-11-20T12:00:05Z"}
    status = {"containerStatuses": [{"state": {"terminated": ended}}]}
    job, pod = wire.job({"metadata": meta}), wire.pod({"metadata": meta, "status": status})
    assert isinstance(job, ErrandJob)
    assert (job.service, job.task) == (Ref("team-a", "chat"), "shape")
    assert pod.service.name == ""
    assert pod.errand == ErrandRun(
        service=Ref("team-a", "chat"), owner="uid-job", exit_code=3, report="no"
    )
