"""Objects as the API server sends them, and what they become."""

from typing import Any

import pytest

from tessera.adapters import wire
from tessera.domain.snapshot import Exit
from tessera.resources.kinds import INFERENCE_SERVICES

ENDED = {"terminated": {"exitCode": 2, "reason": "Error", "message": "no such flag\n"}}
WAITS = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}


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


@pytest.mark.parametrize(
    ("state", "last"),
    [(ENDED, {}), (WAITS, ENDED), ({"running": {}}, ENDED)],
    ids=["ended", "waits", "runs again"],
)
def test_the_last_exit_of_an_engine_is_known_until_it_is_ready_again(
    state: dict[str, Any], last: dict[str, Any]
) -> None:
    def exit_of(*, ready: bool) -> Exit | None:
        container = {"name": "engine", "ready": ready, "state": state, "lastState": last}
        meta = {
            "name": "chat-0",
            "namespace": "team-a",
            "uid": "uid-chat-0",
            "creationTimestamp": "2026-11-20T12:00:00Z",
        }
        return wire.pod({"metadata": meta, "status": {"containerStatuses": [container]}}).exit

    assert exit_of(ready=False) == Exit(code=2, reason="Error", words="no such flag")
    assert exit_of(ready=True) is None


def test_why_no_pods_can_be_created_is_read_from_their_deployment() -> None:
    meta = {"name": "chat-a100", "namespace": "team-a"}
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": 'pods "chat-0" is forbidden: exceeded quota: small',
    }
    refused = wire.workload({"metadata": meta, "status": {"conditions": [failure]}})
    assert refused.refused == 'pods "chat-0" is forbidden: exceeded quota: small'
    over = failure | {"status": "False"}
    assert wire.workload({"metadata": meta, "status": {"conditions": [over]}}).refused is None
