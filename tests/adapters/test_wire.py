"""Objects as the API server sends them, and what they become."""

import pytest

from tessera.adapters import wire
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
    assert job is not None
    assert pod.run is not None
    assert (job.batch_uid, pod.run.uid) == ("uid-night", "uid-night")


def test_the_annotation_that_asks_for_an_update_is_read() -> None:
    annotations = {"tessera.dev/update": "2026-11-20T12:00:00Z"}
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "annotations": annotations}
    found = wire.service({"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}}})
    assert found is not None
    assert found.update == "2026-11-20T12:00:00Z"


@pytest.mark.parametrize(("surge", "read"), [(1, True), (0, False), ("25%", True)])
def test_the_manner_of_a_rollout_is_read_from_its_deployment(surge: int | str, read: bool) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge}}
    meta = {"name": "chat-a100", "namespace": "team-a", "labels": {}}
    assert wire.workload({"metadata": meta, "spec": {"strategy": strategy}}).surge is read
