"""What the model of a service needs before its engines: Jobs without a GPU, and a claim."""

from kubernetes.client import (
    V1Container,
    V1ContainerPort,
    V1EmptyDirVolumeSource,
    V1EnvVar,
    V1EnvVarSource,
    V1Job,
    V1JobSpec,
    V1ObjectFieldSelector,
    V1ObjectMeta,
    V1PersistentVolumeClaim,
    V1PersistentVolumeClaimSpec,
    V1PersistentVolumeClaimVolumeSource,
    V1PodSpec,
    V1PodTemplateSpec,
    V1ResourceRequirements,
    V1Volume,
    V1VolumeMount,
    V1VolumeResourceRequirements,
)

from tessera.api.inference_service import InferenceServiceSpec, ModelShape
from tessera.api.recipe import Platform, PodTemplateVersion
from tessera.domain.batch.spec import SHARED
from tessera.domain.checks import shape_of
from tessera.domain.footprint import weight_bytes
from tessera.domain.model.errands import ModelJob
from tessera.domain.model.names import (
    MODEL_JOB_CONTAINER,
    MODEL_JOB_LABEL,
    MODEL_JOB_SERVICE_LABEL,
    claim_name,
    folder_of,
)
from tessera.domain.names import ENGINE_ACCOUNT, PORT
from tessera.domain.placement import HardwareChoice
from tessera.domain.snapshot import ObservedService
from tessera.resources import engine, surroundings
from tessera.resources.arguments import MODELS, model_path
from tessera.resources.job import Image
from tessera.resources.kinds import CLAIMS, JOBS
from tessera.resources.manifest import Manifest, labels, manifest, owner_of, reference
from tessera.resources.scheduling import scheduled

_REPORT = "/dev/termination-log"
_LASTING = {"shape": 600, "fetch": 12 * 3600}
"""Seconds after which a Job is given up, and begun anew."""
_GIB = 2**30
_MARGIN = 1.2
"""A claim without a size holds so many times the weights."""


def errand(
    service: ObservedService,
    wanted: ModelJob,
    choice: HardwareChoice | None,
    image: Image,
    recipe: PodTemplateVersion,
) -> Manifest:
    """The Job to create. A fetch runs on nodes of the chosen pool, where its claim is read later;
    a small read runs anywhere."""
    told = labels() | {MODEL_JOB_LABEL: wanted.task, MODEL_JOB_SERVICE_LABEL: service.ref.name}
    pod = _pod(service.ref.name, wanted, image, recipe.platform)
    if wanted.task == "fetch" and choice is not None:
        pod = scheduled(pod, wanted.spec, choice, recipe)
    model = V1Job(
        metadata=V1ObjectMeta(
            name=wanted.name,
            namespace=service.ref.namespace,
            labels=told,
            owner_references=[reference(owner_of(service), controller=True)],
        ),
        spec=V1JobSpec(
            active_deadline_seconds=_LASTING[wanted.task],
            backoff_limit=0,
            completions=1,
            parallelism=1,
            template=V1PodTemplateSpec(metadata=V1ObjectMeta(labels=told), spec=pod),
        ),
    )
    return manifest(JOBS, service.ref.namespace, wanted.name, model)


def claim(service: ObservedService, spec: InferenceServiceSpec) -> Manifest:
    """The claim of a service's models; it goes with the service."""
    name, cache = claim_name(service.ref.name), spec.model.cache
    model = V1PersistentVolumeClaim(
        metadata=V1ObjectMeta(
            name=name,
            namespace=service.ref.namespace,
            labels=labels(),
            owner_references=[reference(owner_of(service), controller=True)],
        ),
        spec=V1PersistentVolumeClaimSpec(
            access_modes=[SHARED],
            storage_class_name=cache.storage_class_name,
            resources=V1VolumeResourceRequirements(
                requests={"storage": cache.size or _size(shape_of(spec))}
            ),
        ),
    )
    return manifest(CLAIMS, service.ref.namespace, name, model)


def _size(shape: ModelShape | None) -> str:
    bits = weight_bytes(shape.parameters, shape.bits_per_weight) if shape else 0
    return f"{int(bits * _MARGIN / _GIB) + 1}Gi"


def _pod(name: str, wanted: ModelJob, image: Image, platform: Platform) -> V1PodSpec:
    fetches = wanted.task == "fetch"
    home = V1Volume(name="home", empty_dir=V1EmptyDirVolumeSource())
    files = _claim(name) if fetches else engine.own_volume(wanted.spec)
    return V1PodSpec(
        service_account_name=ENGINE_ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",
        image_pull_secrets=surroundings.pull_secrets(platform, *image.pull_secrets),
        security_context=engine.restricted_pod(),
        containers=[_container(wanted, image, platform, mounted=files is not None)],
        volumes=[home, *([files] if files else ()), *surroundings.volumes(platform)],
    )


def _claim(name: str) -> V1Volume:
    source = V1PersistentVolumeClaimVolumeSource(claim_name=claim_name(name))
    return V1Volume(name="models", persistent_volume_claim=source)


def _container(wanted: ModelJob, image: Image, platform: Platform, *, mounted: bool) -> V1Container:
    spec, fetches = wanted.spec, wanted.task == "fetch"
    files = V1VolumeMount(name="models", mount_path=MODELS, read_only=not fetches)
    found = V1Container(
        name=MODEL_JOB_CONTAINER,
        image=image.name,
        image_pull_policy=image.pull_policy,
        args=_arguments(wanted, mounted=mounted),
        env=[*_environment(), *engine.token(spec), *surroundings.environment(platform)],
        resources=V1ResourceRequirements(
            requests={"cpu": "500m" if fetches else "100m", "memory": "256Mi"},
            limits={"memory": "1Gi"},
        ),
        security_context=engine.restricted(),
        termination_message_path=_REPORT,
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=[
            V1VolumeMount(name="home", mount_path="/tmp"),  # noqa: S108 - a mount
            *([files] if mounted else ()),
            *surroundings.mounts(platform),
        ],
    )
    if fetches:
        found.ports = [V1ContainerPort(name="progress", container_port=PORT)]
    return found


def _arguments(wanted: ModelJob, *, mounted: bool) -> list[str]:
    model = wanted.spec.model
    told = [wanted.task, f"--uri={model.uri}", f"--report={_REPORT}"]
    if model.revision:
        told.append(f"--revision={model.revision}")
    if wanted.task == "fetch":
        folder = f"{MODELS}/{folder_of(model)}"
        return [*told, f"--into={folder}", "--host=$(POD_IP)", f"--port={PORT}"]
    return [*told, f"--path={model_path(model.uri)}"] if mounted else told


def _environment() -> list[V1EnvVar]:
    address = V1EnvVarSource(field_ref=V1ObjectFieldSelector(field_path="status.podIP"))
    return [V1EnvVar(name="HOME", value="/tmp"), V1EnvVar(name="POD_IP", value_from=address)]  # noqa: S108 - a mount
