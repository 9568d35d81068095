"""Why replicas do not start: each reason has a case, with the words of its source, and with
the fix where that is known."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.reasons import Progressing
from tessera.domain.health.startup_failure import startup_failure
from tessera.domain.observed.snapshot import ContainerExit, Pod, Ref, Workload
from tessera.domain.status.service import service_status
from tests.builders import MEDIUM, a_node, a_pod, a_service, a_snapshot, a_spec, a_workload, plan_of

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
GATED = """huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-68)
Cannot access gated repo for url https://huggingface.co/meta-llama/x/resolve/main/config.json.
Access to model meta-llama/x is restricted. You must have access to it and be authenticated."""
FORBIDDEN = """OSError: You are trying to access a gated repo.
403 Client Error. (Request ID: Root=1-68) Access to model meta-llama/x is restricted and you are
not in the authorized list. Visit https://huggingface.co/meta-llama/x to ask for access."""
HTTPX = "Client error '401 Unauthorized' for url 'https://hub.acme/meta-llama/x/config.json'"
TOKEN = {"tokenSecretRef": {"name": "hub", "key": "key"}}


def a_failed_pod(
    code: int | None = None, reason: str = "Error", log: str = "", **fields: Any
) -> Pod:
    """A replica that is not up, after a run that ended with a code."""
    last_exit = None if code is None else ContainerExit(code=code, reason=reason, log_tail=log)
    return a_pod("chat-0", containers_ready=False, ready_since=None, last_exit=last_exit, **fields)


def a_pod_without_container(message: str) -> Pod:
    """A replica whose container the kubelet cannot make."""
    return a_failed_pod(waiting_reason="CreateContainerConfigError", container_message=message)


# As vLLM 0.32 writes them.
SHORTAGES = [
    (
        "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to "
        "free memory for weights, increasing --tensor-parallel-size, or using --quantization. "
        "(original error: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total "
        "capacity of 23.52 GiB of which 1.12 GiB is free.)",
        Progressing.WEIGHTS_OUT_OF_MEMORY,
        "set spec.engine.tensorParallelSize",
    ),
    (
        'File "gpu_model_runner.py", line 5403, in load_model\n'
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 768.00 MiB.",
        Progressing.WEIGHTS_OUT_OF_MEMORY,
        "allow fp8 in spec.precision.variants",
    ),
    (
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine.",
        Progressing.KV_CACHE_OUT_OF_MEMORY,
        "raise spec.engine.gpuMemoryUtilization from 0.92",
    ),
    (
        "ValueError: To serve at least one request with the models's max seq len (131072), "
        "(16.00 GiB KV cache is needed, which is larger than the available KV cache memory "
        "(9.55 GiB). Based on the available memory, the estimated maximum model length is 78192.",
        Progressing.KV_CACHE_OUT_OF_MEMORY,
        "lower it to at most 78192",
    ),
    (
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy "
        "requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization`.",
        Progressing.ACTIVATIONS_OUT_OF_MEMORY,
        "from 0.92 to 0.87",
    ),
    (
        'File "gpu_model_runner.py", line 3977, in execute_model\n'
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        Progressing.ACTIVATIONS_OUT_OF_MEMORY,
        "lower maxNumBatchedTokens or maxNumSeqs",
    ),
    (
        "ValueError: Free memory on device cuda:0 (3.27/15.98 GiB) on startup is less than "
        "desired GPU memory utilization (0.92, 14.7 GiB). Decrease GPU memory utilization or "
        "reduce GPU memory used by other processes.",
        Progressing.DEVICE_MEMORY_IN_USE,
        "another process",
    ),
]

CASES: list[tuple[Pod, Workload | None, Progressing, str]] = [
    (
        a_failed_pod(2, log="vllm serve: error: unrecognized arguments: --fast"),
        None,
        Progressing.INVALID_ENGINE_ARGUMENTS,
        "spec.engine.version: correct it, or spec.engine.image; this engine does not accept the "
        "arguments that Tessera sets; "
        "chat-0: exit code 2: vllm serve: error: unrecognized arguments: --fast",
    ),
    (
        a_failed_pod(1, log="ValueError: block_size"),
        None,
        Progressing.ENGINE_START_FAILED,
        "chat-0: exit code 1: ValueError: block_size",
    ),
    (
        a_failed_pod(137, "OOMKilled", "loading weights"),
        None,
        Progressing.OOM_KILLED,
        "chat-0: exit code 137: loading weights",
    ),
    (
        a_failed_pod(139, log="Segmentation fault"),
        None,
        Progressing.ENGINE_FAILED,
        "chat-0: exit code 139: Segmentation fault",
    ),
    (a_failed_pod(0), None, Progressing.ENGINE_FAILED, "chat-0: exit code 0"),
    (
        a_failed_pod(waiting_reason="ImagePullBackOff", container_message="manifest unknown"),
        None,
        Progressing.IMAGE_PULL_FAILED,
        "chat-0: manifest unknown",
    ),
    (
        a_failed_pod(
            waiting_reason="CreateContainerConfigError", container_message='secret "hub" not found'
        ),
        None,
        Progressing.CREATE_CONTAINER_ERROR,
        'chat-0: secret "hub" not found',
    ),
    (a_pod("chat-0"), a_workload(replica_failure=QUOTA), Progressing.QUOTA_EXCEEDED, QUOTA),
    (
        a_pod("chat-0"),
        a_workload(replica_failure=SECURITY),
        Progressing.POD_SECURITY_VIOLATION,
        SECURITY,
    ),
    (a_pod("chat-0"), a_workload(replica_failure=WEBHOOK), Progressing.FAILED_CREATE, WEBHOOK),
]


@pytest.mark.parametrize(("pod", "workload", "reason", "message"), CASES)
def test_a_startup_failure_is_reported_in_the_words_of_its_source(
    pod: Pod, workload: Workload | None, reason: Progressing, message: str
) -> None:
    snapshot = a_snapshot(a_service(), pods=(pod,), workloads=(workload or a_workload(2),))
    ref = Ref("team-a", "chat")
    status = service_status(snapshot, plan_of(snapshot).service_plans[ref], None, None)
    conditions = {condition.type: condition for condition in status.conditions}
    assert (conditions["Progressing"].status, conditions["Progressing"].reason) == ("False", reason)
    assert conditions["Progressing"].cause == message
    if pod.ready_since is None:
        assert conditions["Ready"].message == f"0 of 2 replicas ready; {reason}: {message}"


def test_every_reason_for_trouble_has_a_case() -> None:
    shown = {reason for *_, reason, _ in CASES}
    advised = {
        Progressing.SECRET_NOT_FOUND,
        Progressing.CONFIG_MAP_NOT_FOUND,
        Progressing.HUB_ACCESS_DENIED,
        *(reason for _, reason, _ in SHORTAGES),
    }
    others = {
        Progressing.ROLLOUT_COMPLETE,
        Progressing.NOT_PLACED,
        Progressing.APPLY_FAILED,
        Progressing.ENGINE_STALLED,
        Progressing.FIELD_MANAGER_CONFLICT,
        Progressing.MODEL_FETCH_FAILED,
        Progressing.PROGRESS_DEADLINE_EXCEEDED,
        Progressing.WAITING_FOR_DEVICE,
        Progressing.DISRUPTION_NOT_ALLOWED,
        Progressing.BUDGET_EXHAUSTED,
        Progressing.GPU_QUOTA_EXCEEDED,
        Progressing.STORAGE_QUOTA_EXCEEDED,
        Progressing.NO_SURGE_CAPACITY,
        Progressing.NO_BASELINE,
        Progressing.GATE_NOT_FOUND,
        Progressing.GATE_NOT_ACCEPTED,
        Progressing.GATE_INCONCLUSIVE,
        Progressing.ROLLED_BACK,
        Progressing.VECTORS_CHANGE,
    }
    assert {reason for reason in Progressing if not reason.is_true} - others == shown | advised


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--fast",), "correct or remove --fast"),
        (("--fast=1", "--faster"), "correct or remove --fast"),
        (("--seed=x",), "correct the argument that the engine names"),
    ],
)
def test_an_argument_that_the_engine_does_not_know_is_named_with_its_field(
    arguments: tuple[str, ...], advice: str
) -> None:
    words = "vllm serve: error: unrecognized arguments: --fast"
    spec = a_spec(engine={"extraArgs": list(arguments)})
    failure = startup_failure(spec, [a_failed_pod(2, log=words)], ())
    assert failure is not None
    assert failure.message == f"spec.engine.extraArgs: {advice}; chat-0: exit code 2: {words}"


def test_a_run_that_ended_stays_the_reason_while_the_next_one_starts() -> None:
    """Between two starts a container waits in CrashLoopBackOff, then runs, then ends."""
    for waits in ("CrashLoopBackOff", None):
        failure = startup_failure(
            None, [a_failed_pod(1, log="no such model", waiting_reason=waits)], ()
        )
        assert failure is not None
        assert failure.reason == Progressing.ENGINE_START_FAILED


@pytest.mark.parametrize(
    "pod",
    [a_failed_pod(terminating=True, code=143), a_pod("chat-0", last_exit=ContainerExit(code=1))],
    ids=["leaving", "up"],
)
def test_a_terminating_or_recovered_replica_is_no_failure(pod: Pod) -> None:
    assert startup_failure(None, [pod], [a_workload()]) is None


def test_of_a_long_log_the_end_is_reported() -> None:
    failure = startup_failure(None, [a_failed_pod(1, log="x" * 5000 + "the cause")], ())
    assert failure is not None
    assert failure.message.endswith("the cause")
    assert len(failure.message) < 2048


def progressing_condition(pod: Pod, **model: object) -> tuple[str, str]:
    service = a_service(spec=a_spec(MEDIUM, replicas=1, model=model))
    pod = replace(pod, variant="a100-3g-40gb")
    snapshot = a_snapshot(service, nodes=(a_node(slices={"3g.40gb": 1}),), pods=(pod,))
    status = service_status(
        snapshot, plan_of(snapshot).service_plans[Ref("team-a", "chat")], None, None
    )
    (progressing,) = [
        condition for condition in status.conditions if condition.type == "Progressing"
    ]
    return progressing.reason, progressing.cause


@pytest.mark.parametrize(
    "words", ['secret "hub" not found', "couldn't find key key in Secret team-a/hub"]
)
def test_a_missing_secret_is_named_with_the_command_that_makes_it(words: str) -> None:
    reason, message = progressing_condition(a_pod_without_container(words), **TOKEN)
    assert reason == "SecretNotFound"
    assert "kubectl create secret generic hub -n team-a --from-literal=key=<token>" in message
    assert words in message


@pytest.mark.parametrize(
    "words",
    [
        "container has runAsNonRoot and image will run as root",
        'secret "trace" not found',
        'secret "hub-2" not found',
        "couldn't find key trace in Secret team-a/hub",
    ],
)
def test_what_else_the_kubelet_refuses_is_reported_in_its_words(words: str) -> None:
    assert progressing_condition(a_pod_without_container(words), **TOKEN) == (
        "CreateContainerError",
        f"chat-0: {words}",
    )


@pytest.mark.parametrize("words", [GATED, HTTPX])
def test_a_gated_model_without_a_token_asks_for_one(words: str) -> None:
    reason, message = progressing_condition(a_failed_pod(1, log=words))
    assert reason == "HubAccessDenied"
    assert "401" in message
    assert "accept the terms of meta-llama/Llama-3.1-8B-Instruct" in message
    assert "name a Secret" in message


def test_an_unknown_token_is_distinguished_from_one_without_access() -> None:
    _, unknown = progressing_condition(a_failed_pod(1, log=GATED), **TOKEN)
    _, denied = progressing_condition(a_failed_pod(1, log=FORBIDDEN), **TOKEN)
    assert "does not know the token in Secret hub, key key" in unknown
    assert "the account of the token in Secret hub may not read" in denied


@pytest.mark.parametrize("code", [1, 2, 139])
def test_a_refusal_is_known_by_its_words_whatever_the_exit_code(code: int) -> None:
    reason, message = progressing_condition(a_failed_pod(code, log=HTTPX))
    assert reason == "HubAccessDenied"
    assert message.endswith(f"chat-0: exit code {code}: {HTTPX}")


def test_a_library_that_the_image_lacks_is_named_by_its_loader() -> None:
    pod = a_failed_pod(1, log="ImportError: Please install tensorizer via pip")
    spec = a_spec(engine={"loader": {"type": "Tensorizer"}})
    for each, advice in ((a_spec(), "chat-0: exit"), (spec, "spec.engine.loader: this image")):
        failure = startup_failure(each, [pod], ())
        assert failure is not None
        assert failure.reason == Progressing.ENGINE_START_FAILED
        assert failure.message.startswith(advice)


def test_what_the_kernel_killed_was_not_refused_by_the_hub() -> None:
    assert progressing_condition(a_failed_pod(137, "OOMKilled", log=HTTPX))[0] == "OOMKilled"


@pytest.mark.parametrize(("words", "expected", "remedy"), SHORTAGES)
def test_what_the_memory_did_not_suffice_for_is_told_apart_with_its_remedy(
    words: str, expected: Progressing, remedy: str
) -> None:
    reason, message = progressing_condition(a_failed_pod(1, log=words))
    assert reason == expected
    assert remedy in message
    assert message.rstrip(".").endswith(" ".join(words.rstrip(".").split("\n")))


def test_what_the_kernel_killed_ran_out_of_host_memory() -> None:
    killed = a_failed_pod(137, "OOMKilled", log="torch.OutOfMemoryError: CUDA out of memory")
    assert progressing_condition(killed)[0] == "OOMKilled"


@pytest.mark.parametrize(
    "words",
    ['configmap "templates" not found', "couldn't find key chat.jinja in ConfigMap a/templates"],
)
def test_a_missing_chat_template_is_named_with_the_command_that_makes_it(words: str) -> None:
    template = {"configMapKeyRef": {"name": "templates", "key": "chat.jinja"}}
    spec = a_spec(MEDIUM, engine={"chatTemplate": template})
    failure = startup_failure(spec, [a_pod_without_container(words)], ())
    assert failure is not None
    assert failure.reason is Progressing.CONFIG_MAP_NOT_FOUND
    command = "kubectl create configmap templates -n team-a --from-file=chat.jinja=<file>"
    assert command in failure.message
    other = startup_failure(a_spec(MEDIUM), [a_pod_without_container(words)], ())
    assert other is not None
    assert other.reason is Progressing.CREATE_CONTAINER_ERROR


def test_a_log_that_ends_after_its_cause_is_named_with_the_command_for_the_whole() -> None:
    words = "RuntimeError: Engine core initialization failed. See root cause above."
    reason, message = progressing_condition(a_failed_pod(1, log=words))
    assert reason == "EngineStartFailed"
    assert message.startswith(
        "the cause is above the end of the log: kubectl logs chat-0 -n team-a -c engine --previous"
    )


def test_an_engine_that_fails_for_another_reason_is_reported_with_the_end_of_its_log() -> None:
    words = "OSError: no such file"
    assert progressing_condition(a_failed_pod(1, log=words)) == (
        "EngineStartFailed",
        f"chat-0: exit code 1: {words}",
    )
