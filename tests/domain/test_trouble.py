"""Why replicas do not come up: each reason has a case, with the words of whoever refused."""

from typing import Any

import pytest

from tessera.domain.plan import plan
from tessera.domain.reasons import Progressing
from tessera.domain.snapshot import Exit, Pod, Ref, Workload
from tessera.domain.status import service_status
from tessera.domain.trouble import trouble
from tests.builders import a_pod, a_service, a_snapshot, a_workload

QUOTA = (
    'pods "chat-0" is forbidden: exceeded quota: small, requested: '
    "requests.nvidia.com/mig-1g.10gb=1, used: requests.nvidia.com/mig-1g.10gb=1, "
    "limited: requests.nvidia.com/mig-1g.10gb=1"
)
SECURITY = (
    'pods "chat-0" is forbidden: violates PodSecurity "restricted:latest": host namespaces '
    "(hostPID=true)"
)
WEBHOOK = 'admission webhook "policy.example.org" denied the request: no images from outside'


def down(code: int | None = None, reason: str = "Error", words: str = "", **fields: Any) -> Pod:
    """A replica that is not up, after a run that ended with a code."""
    ended = None if code is None else Exit(code=code, reason=reason, words=words)
    return a_pod("chat-0", up=False, ready_since=None, exit=ended, **fields)


CASES: list[tuple[Pod, Workload | None, Progressing, str]] = [
    (
        down(2, words="vllm serve: error: unrecognized arguments: --fast"),
        None,
        Progressing.ENGINE_REFUSED_ARGUMENTS,
        "chat-0: exit code 2: vllm serve: error: unrecognized arguments: --fast",
    ),
    (
        down(1, words="ValueError: block_size"),
        None,
        Progressing.ENGINE_REFUSED_CONFIG,
        "chat-0: exit code 1: ValueError: block_size",
    ),
    (
        down(137, "OOMKilled", "loading weights"),
        None,
        Progressing.ENGINE_OUT_OF_MEMORY,
        "chat-0: exit code 137: loading weights",
    ),
    (
        down(139, words="Segmentation fault"),
        None,
        Progressing.ENGINE_FAILED,
        "chat-0: exit code 139: Segmentation fault",
    ),
    (down(0), None, Progressing.ENGINE_FAILED, "chat-0: exit code 0"),
    (
        down(trouble="ImagePullBackOff", last_words="manifest unknown"),
        None,
        Progressing.IMAGE_UNAVAILABLE,
        "chat-0: manifest unknown",
    ),
    (
        down(trouble="CreateContainerConfigError", last_words='secret "hub" not found'),
        None,
        Progressing.CONTAINER_NOT_CREATED,
        'chat-0: secret "hub" not found',
    ),
    (a_pod("chat-0"), a_workload(refused=QUOTA), Progressing.QUOTA_EXCEEDED, QUOTA),
    (a_pod("chat-0"), a_workload(refused=SECURITY), Progressing.POD_SECURITY_REFUSED, SECURITY),
    (a_pod("chat-0"), a_workload(refused=WEBHOOK), Progressing.PODS_REFUSED, WEBHOOK),
]


@pytest.mark.parametrize(("pod", "workload", "reason", "message"), CASES)
def test_trouble_is_told_in_the_words_of_whoever_refused(
    pod: Pod, workload: Workload | None, reason: Progressing, message: str
) -> None:
    snapshot = a_snapshot(a_service(), pods=(pod,), workloads=(workload or a_workload(2),))
    ref = Ref("team-a", "chat")
    status = service_status(snapshot, plan(snapshot).allotments[ref], None, None)
    told = {one.type: one for one in status.conditions}
    assert (told["Progressing"].status, told["Progressing"].reason) == ("False", reason)
    assert told["Progressing"].message == message
    if pod.ready_since is None:
        assert told["Ready"].message == f"0 of 2 replicas take requests; {reason}: {message}"


def test_every_reason_for_trouble_has_a_case() -> None:
    shown = {reason for *_, reason, _ in CASES}
    others = {
        Progressing.SETTLED,
        Progressing.NOT_PLACED,
        Progressing.APPLY_FAILED,
        Progressing.ENGINE_STALLED,
    }
    assert {reason for reason in Progressing if not reason.holds} - others == shown


def test_a_run_that_ended_stays_the_reason_while_the_next_one_starts() -> None:
    """Between two starts a container waits in CrashLoopBackOff, then runs, then ends."""
    for waits in ("CrashLoopBackOff", None):
        found = trouble([down(1, words="no such model", trouble=waits)], None)
        assert found is not None
        assert found.reason == Progressing.ENGINE_REFUSED_CONFIG


@pytest.mark.parametrize(
    "pod", [down(leaving=True, code=143), a_pod("chat-0", exit=Exit(code=1))], ids=["leaving", "up"]
)
def test_who_leaves_and_who_is_up_again_is_in_no_trouble(pod: Pod) -> None:
    assert trouble([pod], a_workload()) is None


def test_of_a_long_log_the_end_is_told() -> None:
    found = trouble([down(1, words="x" * 5000 + "the cause")], None)
    assert found is not None
    assert found.message.endswith("the cause")
    assert len(found.message) < 2048
