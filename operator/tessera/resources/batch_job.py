"""Jobs of a batch: the check of its input, and one per attempt.

An attempt is one pod with the engine as a sidecar, which is ready before the runner starts and
terminates after it; an attempt that only publishes has no engine. Its Job never retries it, since
the next attempt needs a new number.
"""

from dataclasses import replace

from kubernetes import client

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.model_files import is_stored
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.batch import names
from tessera.domain.batch.batch_plan import BatchJobRequest
from tessera.domain.batch.spec import BatchModelSource
from tessera.domain.model.fetched import FetchedFiles, fetched_files, located
from tessera.domain.names import BATCH_CHARGES, PORT, RUNNER_APP, VARIANT_LABEL, VLLM
from tessera.domain.observed.batches import Batch
from tessera.domain.placement.candidates import HardwareChoice
from tessera.resources import engine
from tessera.resources import platform as surroundings
from tessera.resources import spot_scheduling as spot
from tessera.resources.api_resources import JOBS
from tessera.resources.manifest import ObjectManifest, labels, owned_manifest
from tessera.resources.runner import (
    REPORT_PATH,
    RunnerImage,
    fetch_arguments,
    runner_container,
    runner_job,
    runner_pod,
    store_credentials,
)
from tessera.resources.scheduling import bind_to_pool

# Mount path of the batch's PersistentVolumeClaim.
_CLAIM_PATH = "/claim"
_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
_CHARGES = "charges"
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


def batch_job_manifest(
    batch: Batch,
    spec: BatchInferenceSpec,
    request: BatchJobRequest,
    image: RunnerImage,
    template_version: PodTemplateVersion,
) -> ObjectManifest:
    """Return the manifest of the Job to create."""
    job_labels = labels(RUNNER_APP, batch.ref.name) | {
        names.BATCH_LABEL: batch.ref.name,
        names.BATCH_UID_LABEL: batch.uid,
        names.ATTEMPT_LABEL: names.CHECK if request.attempt is None else str(request.attempt),
    }
    annotations = None
    platform = template_version.platform
    if request.attempt is None:
        pod = _pod(spec, image, platform, _check_container(batch, spec, request.source, image))
    elif request.choice is None:
        container = _runner(batch, spec, request, image)
        pod = _pod(spec, image, platform, container, _token_volume(request))
    else:
        version = request.source.spec.engine.version
        job_labels |= labels(VLLM, batch.ref.name, version=version)
        job_labels |= {VARIANT_LABEL: request.choice.variant}
        annotations = _NO_EVICTION
        pod = _attempt_pod(batch, spec, request, request.choice, image, template_version)
    seconds = int(request.active_deadline.total_seconds())
    job = runner_job(pod, job_labels, seconds, annotations)
    return owned_manifest(JOBS, batch, request.name, job_labels, job)


def _check_container(
    batch: Batch, spec: BatchInferenceSpec, source: BatchModelSource, image: RunnerImage
) -> client.V1Container:
    arguments = [
        "check",
        *_paths(batch, spec),
        *_model_names(spec, source),
        *(f"--adapter={adapter.name}" for adapter in source.spec.model.adapters),
        *(f"--url={url}" for url in source.urls),
    ]
    requests = {"cpu": "200m", "memory": "256Mi"}
    return _watched_container(names.CHECK, image, arguments, requests, memory_limit="1Gi")


def _pod(
    spec: BatchInferenceSpec,
    image: RunnerImage,
    platform: Platform,
    container: client.V1Container,
    *volumes: client.V1Volume,
) -> client.V1PodSpec:
    claim = engine.claim_volume("claim", spec.claim_name)
    all_volumes = [claim, engine.empty_volume("scratch"), *volumes]
    pod = runner_pod(names.BATCH_ACCOUNT, image, platform, container, all_volumes)
    pod.termination_grace_period_seconds = _GRACE_SECONDS
    return pod


def _attempt_pod(
    batch: Batch,
    spec: BatchInferenceSpec,
    request: BatchJobRequest,
    choice: HardwareChoice,
    image: RunnerImage,
    template_version: PodTemplateVersion,
) -> client.V1PodSpec:
    served = request.source.spec_in(choice.fit.precision)
    source = replace(request.source, spec=served)
    request = replace(request, source=source)
    template = engine.EngineTemplate(source.name, located(served), choice, template_version)
    sidecar = template.container()
    sidecar.restart_policy = "Always"
    runner = _runner(batch, spec, request, image)
    pod = _pod(spec, image, template_version.platform, runner, _token_volume(request))
    pod.affinity = spot.affinity(spot=request.spot_affinity, avoided_node=request.avoided_node)
    fetched = {files.claim_name: files for files in fetched_files(served)}
    volumes, fetches = template.volumes(), list[client.V1Container]()
    for volume in volumes:
        claim = volume.persistent_volume_claim
        files = fetched.get(claim.claim_name) if claim is not None else None
        if claim is not None and files is not None:
            claim.read_only = None  # the engine's own mount is
            fetches.append(_fetch_container(files, volume.name, sidecar, image, template))
    # What is not complete on a shared claim is downloaded there before the engine starts.
    pod.init_containers = [*fetches, sidecar]
    pod.volumes = [*volumes, *(pod.volumes or ())]
    return bind_to_pool(pod, template)


def _fetch_container(
    files: FetchedFiles,
    volume: str,
    sidecar: client.V1Container,
    image: RunnerImage,
    template: engine.EngineTemplate,
) -> client.V1Container:
    """Return the container that downloads files to where the engine mounts them."""
    platform = template.version.platform
    mounts = {mount.name: mount.mount_path for mount in sidecar.volume_mounts or ()}
    arguments = [*fetch_arguments(files, image, mounts[volume]), "--host=$(POD_IP)"]
    requests = {"cpu": "500m", "memory": "256Mi"}
    container = runner_container(f"fetch-{volume}", image, arguments, requests, "1Gi")
    container.env = [
        *(container.env or ()),
        *(
            store_credentials(files.uri, files.store)
            if is_stored(files.uri)
            else engine.token(template.spec)
        ),
        *surroundings.environment(platform),
    ]
    container.volume_mounts = [
        client.V1VolumeMount(name=volume, mount_path=mounts[volume]),
        *surroundings.mounts(platform),
    ]
    return container


def _runner(
    batch: Batch, spec: BatchInferenceSpec, request: BatchJobRequest, image: RunnerImage
) -> client.V1Container:
    arguments = [
        "run",
        *_paths(batch, spec),
        *_model_names(spec, request.source),
        f"--attempt={request.attempt}",
        f"--batch={batch.ref}",
        *_engine_arguments(spec, request),
    ]
    if request.charged and image.charges_url is not None:
        arguments += [f"--charges={image.charges_url}", f"--charges-token={_TOKEN}/{_CHARGES}"]
    requests = {"cpu": "1", "memory": "512Mi"}
    container = _watched_container(names.RUNNER, image, arguments, requests, memory_limit="2Gi")
    token = client.V1VolumeMount(name="token", mount_path=_TOKEN, read_only=True)
    container.volume_mounts = [*(container.volume_mounts or ()), token]
    return container


def _watched_container(
    name: str, image: RunnerImage, arguments: list[str], requests: dict[str, str], memory_limit: str
) -> client.V1Container:
    """Return a container that serves `/progress`, and ends when it hangs."""
    arguments = [*arguments, "--host=$(POD_IP)", f"--port={names.RUNNER_PORT}"]
    container = runner_container(name, image, arguments, requests, memory_limit)
    container.volume_mounts = [
        client.V1VolumeMount(name="claim", mount_path=_CLAIM_PATH),
        client.V1VolumeMount(name="scratch", mount_path="/tmp"),  # noqa: S108 - a mount
    ]
    # A runner whose event loop hangs, as on a frozen volume, does not answer at all.
    container.liveness_probe = client.V1Probe(
        http_get=client.V1HTTPGetAction(path="/healthz", port="progress"),
        period_seconds=30,
        timeout_seconds=10,
        failure_threshold=10,
    )
    container.ports = [client.V1ContainerPort(name="progress", container_port=names.RUNNER_PORT)]
    return container


def _engine_arguments(spec: BatchInferenceSpec, request: BatchJobRequest) -> list[str]:
    choice, model = request.choice, request.source.spec.model
    if choice is None:
        return []
    in_flight = _IN_FLIGHT_PER_SEQUENCE * choice.fit.limits.max_num_seqs
    return [
        f"--engine=http://$(POD_IP):{PORT}",
        f"--concurrency={in_flight}",
        f"--retries={spec.retries}",
        f"--uri={model.uri}",
        *([f"--revision={model.revision}"] if model.revision else []),
    ]


def _paths(batch: Batch, spec: BatchInferenceSpec) -> list[str]:
    return [
        f"--input={_CLAIM_PATH}/{spec.input}",
        f"--output={_CLAIM_PATH}/{spec.output}",
        f"--errors={_CLAIM_PATH}/{names.errors_path(spec)}",
        f"--work={_CLAIM_PATH}/{names.work_path(batch.uid)}",
        f"--report={REPORT_PATH}",
    ]


def _model_names(spec: BatchInferenceSpec, source: BatchModelSource) -> list[str]:
    return [f"--model={source.model}", *(f"--alias={alias}" for alias in spec.model_aliases)]


def _token_volume(request: BatchJobRequest) -> client.V1Volume:
    # The runner reads its batch with this token for fencing; the engine does not get it.
    field_ref = client.V1ObjectFieldSelector(field_path="metadata.namespace")
    namespace = client.V1DownwardAPIVolumeFile(path="namespace", field_ref=field_ref)
    sources = [
        client.V1VolumeProjection(
            service_account_token=client.V1ServiceAccountTokenProjection(
                path="token", expiration_seconds=_TOKEN_SECONDS
            )
        ),
        client.V1VolumeProjection(
            config_map=client.V1ConfigMapProjection(
                name="kube-root-ca.crt", items=[client.V1KeyToPath(key="ca.crt", path="ca.crt")]
            )
        ),
        client.V1VolumeProjection(downward_api=client.V1DownwardAPIProjection(items=[namespace])),
    ]
    if request.charged:
        charges = client.V1ServiceAccountTokenProjection(
            audience=BATCH_CHARGES, path=_CHARGES, expiration_seconds=_TOKEN_SECONDS
        )
        sources.append(client.V1VolumeProjection(service_account_token=charges))
    return client.V1Volume(name="token", projected=client.V1ProjectedVolumeSource(sources=sources))
