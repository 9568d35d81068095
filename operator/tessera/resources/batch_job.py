"""Jobs of a batch: the check of its input, and one per attempt.

An attempt is one pod with the engine as a sidecar, which is ready before the runner starts and
terminates after it. Its Job never retries it, since the next attempt needs a new number.
"""

from dataclasses import dataclass

from kubernetes.client import (
    V1ConfigMapProjection,
    V1Container,
    V1ContainerPort,
    V1DownwardAPIProjection,
    V1DownwardAPIVolumeFile,
    V1EmptyDirVolumeSource,
    V1EnvVar,
    V1EnvVarSource,
    V1Job,
    V1JobSpec,
    V1KeyToPath,
    V1ObjectFieldSelector,
    V1ObjectMeta,
    V1PersistentVolumeClaimVolumeSource,
    V1PodSpec,
    V1PodTemplateSpec,
    V1ProjectedVolumeSource,
    V1ResourceRequirements,
    V1ServiceAccountTokenProjection,
    V1Volume,
    V1VolumeMount,
    V1VolumeProjection,
)

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.recipe import PodTemplateVersion
from tessera.domain.batch.batch_plan import BatchJobRequest
from tessera.domain.batch.names import (
    ATTEMPT_LABEL,
    BATCH_ACCOUNT,
    BATCH_LABEL,
    BATCH_UID_LABEL,
    CHECK,
    RUNNER,
    RUNNER_PORT,
    attempt_label,
    errors_path,
    work_path,
)
from tessera.domain.names import PORT, VARIANT_LABEL
from tessera.domain.observed.batches import Batch
from tessera.domain.placement.placement import HardwareChoice
from tessera.resources import engine
from tessera.resources import platform as surroundings
from tessera.resources import spot_scheduling as spot
from tessera.resources.api_resources import JOBS
from tessera.resources.manifest import ObjectManifest, labels, manifest, owner_of, owner_reference
from tessera.resources.scheduling import bind_to_pool

# Mount path of the batch's PersistentVolumeClaim.
_CLAIM_PATH = "/claim"
_REPORT_PATH = "/dev/termination-log"
_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
_TOKEN_SECONDS = 3600
# GKE leaves a pod 15 s on preemption: 2 s go to the runner's last rows, 10 s to its engine.
_GRACE_SECONDS = 12
# Rows in flight per concurrent request of the engine, so that its queue is never empty.
_IN_FLIGHT_PER_SEQUENCE = 2
# An attempt that is evicted for consolidation pays for its rows in flight again.
_NO_EVICTION = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


@dataclass(frozen=True, slots=True)
class RunnerImage:
    """The image of the runner with its pull policy and secrets."""

    name: str
    pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()
    """Secrets in the namespace of the batch; missing ones are ignored."""


def batch_job_manifest(
    batch: Batch,
    spec: BatchInferenceSpec,
    request: BatchJobRequest,
    image: RunnerImage,
    template_version: PodTemplateVersion,
) -> ObjectManifest:
    """Return the manifest of the Job to create."""
    job_labels = labels() | {
        BATCH_LABEL: batch.ref.name,
        BATCH_UID_LABEL: batch.uid,
        ATTEMPT_LABEL: attempt_label(request.attempt),
    }
    annotations = None
    pod = _check_pod(batch, spec, image, template_version)
    if request.attempt is not None and request.choice is not None:
        job_labels |= {VARIANT_LABEL: request.choice.variant}
        annotations = _NO_EVICTION
        pod = _attempt_pod(batch, spec, request, request.choice, image, template_version)
    model = V1Job(
        metadata=V1ObjectMeta(
            name=request.name,
            namespace=batch.ref.namespace,
            labels=job_labels,
            owner_references=[owner_reference(owner_of(batch), controller=True)],
        ),
        spec=V1JobSpec(
            active_deadline_seconds=int(request.active_deadline.total_seconds()),
            backoff_limit=0,
            completions=1,
            parallelism=1,
            template=V1PodTemplateSpec(
                metadata=V1ObjectMeta(labels=job_labels, annotations=annotations), spec=pod
            ),
        ),
    )
    return manifest(JOBS, batch.ref.namespace, request.name, model)


def _check_pod(
    batch: Batch, spec: BatchInferenceSpec, image: RunnerImage, template_version: PodTemplateVersion
) -> V1PodSpec:
    arguments = ["check", *_paths(batch, spec), f"--report={_REPORT_PATH}"]
    requests = {"cpu": "200m", "memory": "256Mi"}
    container = _container(CHECK, image, arguments, requests, memory_limit="1Gi")
    return V1PodSpec(
        service_account_name=BATCH_ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",
        image_pull_secrets=surroundings.pull_secrets(
            template_version.platform, *image.pull_secrets
        ),
        termination_grace_period_seconds=_GRACE_SECONDS,
        security_context=engine.restricted_pod(),
        containers=[container],
        volumes=[_claim_volume(spec), _scratch_volume()],
    )


def _attempt_pod(
    batch: Batch,
    spec: BatchInferenceSpec,
    request: BatchJobRequest,
    choice: HardwareChoice,
    image: RunnerImage,
    template_version: PodTemplateVersion,
) -> V1PodSpec:
    source = request.source
    sidecar = engine.engine(source.name, source.spec, choice, template_version)
    sidecar.restart_policy = "Always"
    pod = V1PodSpec(
        service_account_name=BATCH_ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",
        image_pull_secrets=surroundings.pull_secrets(
            template_version.platform, *image.pull_secrets
        ),
        affinity=spot.affinity() if request.spot_affinity else None,
        termination_grace_period_seconds=_GRACE_SECONDS,
        security_context=engine.restricted_pod(),
        init_containers=[sidecar],
        containers=[_runner(batch, spec, request, choice, image)],
        volumes=[
            *engine.volumes(source.name, source.spec, choice, template_version),
            _claim_volume(spec),
            _scratch_volume(),
            _token_volume(),
        ],
    )
    return bind_to_pool(pod, source.spec, choice, template_version)


def _runner(
    batch: Batch,
    spec: BatchInferenceSpec,
    request: BatchJobRequest,
    choice: HardwareChoice,
    image: RunnerImage,
) -> V1Container:
    in_flight = _IN_FLIGHT_PER_SEQUENCE * choice.fit.limits.max_num_seqs
    arguments = [
        "run",
        *_paths(batch, spec),
        f"--errors={_CLAIM_PATH}/{errors_path(spec)}",
        f"--report={_REPORT_PATH}",
        f"--attempt={request.attempt}",
        f"--batch={batch.ref}",
        f"--engine=http://$(POD_IP):{PORT}",
        f"--model={request.source.model}",
        f"--concurrency={in_flight}",
        f"--retries={spec.retries}",
        "--host=$(POD_IP)",
        f"--port={RUNNER_PORT}",
    ]
    requests = {"cpu": "1", "memory": "512Mi"}
    container = _container(RUNNER, image, arguments, requests, memory_limit="2Gi")
    address = V1EnvVarSource(field_ref=V1ObjectFieldSelector(field_path="status.podIP"))
    container.env = [V1EnvVar(name="POD_IP", value_from=address)]
    container.ports = [V1ContainerPort(name="progress", container_port=RUNNER_PORT)]
    token = V1VolumeMount(name="token", mount_path=_TOKEN, read_only=True)
    container.volume_mounts = [*(container.volume_mounts or ()), token]
    return container


def _container(
    name: str, image: RunnerImage, arguments: list[str], requests: dict[str, str], memory_limit: str
) -> V1Container:
    return V1Container(
        name=name,
        image=image.name,
        image_pull_policy=image.pull_policy,
        args=arguments,
        resources=V1ResourceRequirements(requests=requests, limits={"memory": memory_limit}),
        security_context=engine.restricted(),
        termination_message_path=_REPORT_PATH,
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=[
            V1VolumeMount(name="claim", mount_path=_CLAIM_PATH),
            V1VolumeMount(name="scratch", mount_path="/tmp"),  # noqa: S108 - a mount
        ],
    )


def _paths(batch: Batch, spec: BatchInferenceSpec) -> list[str]:
    return [
        f"--input={_CLAIM_PATH}/{spec.input}",
        f"--output={_CLAIM_PATH}/{spec.output}",
        f"--work={_CLAIM_PATH}/{work_path(batch.uid)}",
    ]


def _claim_volume(spec: BatchInferenceSpec) -> V1Volume:
    source = V1PersistentVolumeClaimVolumeSource(claim_name=spec.claim_name)
    return V1Volume(name="claim", persistent_volume_claim=source)


def _scratch_volume() -> V1Volume:
    return V1Volume(name="scratch", empty_dir=V1EmptyDirVolumeSource())


def _token_volume() -> V1Volume:
    # The runner reads its batch with this token for fencing; the engine does not get it.
    namespace = V1DownwardAPIVolumeFile(
        path="namespace", field_ref=V1ObjectFieldSelector(field_path="metadata.namespace")
    )
    sources = [
        V1VolumeProjection(
            service_account_token=V1ServiceAccountTokenProjection(
                path="token", expiration_seconds=_TOKEN_SECONDS
            )
        ),
        V1VolumeProjection(
            config_map=V1ConfigMapProjection(
                name="kube-root-ca.crt", items=[V1KeyToPath(key="ca.crt", path="ca.crt")]
            )
        ),
        V1VolumeProjection(downward_api=V1DownwardAPIProjection(items=[namespace])),
    ]
    return V1Volume(name="token", projected=V1ProjectedVolumeSource(sources=sources))
