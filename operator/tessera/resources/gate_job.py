"""Objects of gates: the Job that asks a version, the claim of its answers, what its pods reach.

The pods have no rights, and no way but to the engines of their namespace, or to
gateways alone, with a token for these, where they answer.
"""

from collections.abc import Sequence

from kubernetes import client

from tessera.api.quality_gate import QualityGateSpec, Suite
from tessera.api.template_version import Platform
from tessera.domain import names
from tessera.domain.batch.names import RUNNER_PORT
from tessera.domain.gateway.access import version_name
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.quality import names as gate_names
from tessera.domain.quality.gate_jobs import GateEndpoint, GateJobRequest
from tessera.resources import engine, namespace_objects
from tessera.resources.api_resources import CLAIMS, JOBS
from tessera.resources.manifest import ObjectManifest, labels, owned_manifest, owner_of
from tessera.resources.runner import (
    REPORT_PATH,
    RunnerImage,
    runner_container,
    runner_job,
    runner_pod,
)

# Value of `COMPONENT`: it is no engine, whose policies would open more to it.
_COMPONENT = "gate"
_SUITE, _ANSWERS, _TOKEN, _SUITE_FILE = "/suite", "/answers", "/token", "suite.jsonl"
_TOKEN_SECONDS = 3600
_REQUESTS = {"cpu": "500m", "memory": "256Mi"}
# 400 prompts are scored in 2 CPU s; a suite of 1 MiB and its answers fit many times.
_MEMORY_LIMIT = "2Gi"


def gate_job_manifest(
    request: GateJobRequest, image: RunnerImage, platform: Platform
) -> ObjectManifest:
    """Return the manifest of the Job to create."""
    run = request.run
    gate, role = run.gate, run.role.lower()
    gateway = gateway_of(request, image)
    job_labels = labels(names.RUNNER_APP, gate.ref.name, component=_COMPONENT) | {
        gate_names.GATE_LABEL: gate.ref.name,
        gate_names.GATE_SERVICE_LABEL: run.service.name,
        gate_names.GATE_ROLE_LABEL: role,
    }
    container = runner_container(
        gate_names.GATE_CONTAINER, image, _arguments(request, gateway), _REQUESTS, _MEMORY_LIMIT
    )
    container.ports = [client.V1ContainerPort(name="progress", container_port=RUNNER_PORT)]
    container.volume_mounts = [
        client.V1VolumeMount(name="suite", mount_path=_SUITE, read_only=True),
        client.V1VolumeMount(name="answers", mount_path=_ANSWERS),
        client.V1VolumeMount(name="scratch", mount_path="/tmp"),  # noqa: S108 - a mount
    ]
    volumes = [
        _suite_volume(run.spec.suite),
        engine.claim_volume("answers", gate_names.answers_claim_name(gate.ref.name)),
        engine.empty_volume("scratch"),
    ]
    if gateway is not None:
        volumes.append(_token_volume())
        container.volume_mounts.append(
            client.V1VolumeMount(name="token", mount_path=_TOKEN, read_only=True)
        )
    pod = runner_pod(gate_names.GATE_ACCOUNT, image, platform, container, volumes)
    # Whatever serves users may take its place: what is answered stays on the claim.
    pod.priority_class_name = "tessera-batch" if platform.priority_classes else None
    job = runner_job(pod, job_labels, int(request.active_deadline.total_seconds()))
    annotations = {gate_names.GATE_DIGEST_ANNOTATION: run.digest}
    return owned_manifest(JOBS, gate, request.name, job_labels, job, annotations=annotations)


def gateway_of(request: GateJobRequest, image: RunnerImage) -> str | None:
    """Return the URL of the gateways that a Job asks; None where it asks engines itself.

    Gateways answer no sender without a tenant.
    """
    return image.gate_url if request.has_tenant else None


def _arguments(request: GateJobRequest, gateway: str | None) -> list[str]:
    run, spec, suite = request.run, request.run.spec, request.run.spec.suite
    version = version_name(run.service.name, run.role)
    path = suite.claim.path if suite.claim is not None else _SUITE_FILE
    optional = {
        "suite-digest": suite.digest,
        "baseline": run.baseline,
        "baseline-digest": request.baseline_digest,
        "answers-digest": request.answers_digest,
        "min-score": spec.min_score if run.is_first else None,
        "max-output-tokens": request.endpoint.max_output_tokens,
    }
    judge = request.judge
    return [
        "gate",
        f"--gate={run.gate.ref}",
        f"--role={run.role.lower()}",
        f"--version={run.digest}",
        *_endpoint("", request.endpoint, gateway, version),
        *(_judge_endpoint(spec, judge, gateway) if judge is not None else ()),
        *([f"--token-file={_TOKEN}/token"] if gateway is not None else []),
        f"--suite={_SUITE}/{path}",
        *(f"--{name}={value}" for name, value in optional.items() if value not in (None, "")),
        *(f"--prompts={name}={count}" for name, count in sorted(suite.prompts.items())),
        f"--scorer={run.scorer}",
        f"--task={request.task}",
        f"--answers={_ANSWERS}",
        f"--max-drop-points={spec.max_drop_points}",
        f"--max-relative-drop={spec.max_relative_drop}",
        f"--min-prompts={spec.min_prompts}",
        f"--repeats={spec.repeats}",
        f"--report={REPORT_PATH}",
        "--host=$(POD_IP)",
        f"--port={RUNNER_PORT}",
    ]


def _judge_endpoint(spec: QualityGateSpec, judge: GateEndpoint, gateway: str | None) -> list[str]:
    name = spec.judge.service if spec.judge is not None else ""
    return _endpoint("judge-", judge, gateway, version_name(name, "Baseline"))


def _endpoint(prefix: str, endpoint: GateEndpoint, gateway: str | None, name: str) -> list[str]:
    """Return where a version is asked: at a gateway by a name for gates, or itself by its own."""
    if gateway is not None:
        variant = [f"--{prefix}variant={endpoint.variant}"] if endpoint.variant else []
        return [f"--{prefix}url={gateway}", f"--{prefix}model={name}", *variant]
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return [f"--{prefix}url=http://{host}:{names.PORT}", f"--{prefix}model={endpoint.model}"]


def _token_volume() -> client.V1Volume:
    token = client.V1ServiceAccountTokenProjection(
        audience=gate_names.GATE_AUDIENCE, path="token", expiration_seconds=_TOKEN_SECONDS
    )
    source = client.V1VolumeProjection(service_account_token=token)
    return client.V1Volume(name="token", projected=client.V1ProjectedVolumeSource(sources=[source]))


def _suite_volume(suite: Suite) -> client.V1Volume:
    if suite.claim is not None:
        return engine.claim_volume("suite", suite.claim.claim_name, read_only=True)
    source = suite.config_map
    if source is None:
        raise ValueError("spec.suite names no file")
    # A missing ConfigMap would leave the pod without a word; the runner says that the file is.
    items = [client.V1KeyToPath(key=source.key, path=_SUITE_FILE)]
    volume = client.V1ConfigMapVolumeSource(name=source.name, items=items, optional=True)
    return client.V1Volume(name="suite", config_map=volume)


def answers_claim_manifest(gate: ObservedGate) -> ObjectManifest | None:
    """Return the claim of the answers, which is deleted with the gate; None without a spec."""
    if gate.spec is None:
        return None
    answers = gate.spec.answers
    spec = client.V1PersistentVolumeClaimSpec(
        access_modes=["ReadWriteOnce"],
        storage_class_name=answers.storage_class_name,
        resources=client.V1VolumeResourceRequirements(requests={"storage": answers.size}),
    )
    name = gate_names.answers_claim_name(gate.ref.name)
    claim_labels = labels(names.RUNNER_APP, gate.ref.name, component=_COMPONENT)
    return owned_manifest(CLAIMS, gate, name, claim_labels, spec)


def shared_manifests(
    gates: Sequence[ObservedGate],
    closed: Sequence[str],
    operator_namespace: str,
    *,
    gateway: str | None = None,
) -> tuple[ObjectManifest, ...]:
    """Return what the Jobs of all gates of a namespace share.

    `closed` are the services that are tried or judge, and that only gateways reach otherwise. With
    the URL of a `gateway` nothing else is open to the Jobs.
    """
    owners = [owner_of(gate) for gate in gates]
    shared = [
        namespace_objects.service_account(owners, gate_names.GATE_ACCOUNT),
        namespace_objects.gate_network_policy(owners, operator_namespace, gateway),
    ]
    if closed and gateway is None:
        shared.append(namespace_objects.gate_engines_policy(owners, closed))
    return tuple(shared)
