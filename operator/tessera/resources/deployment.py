"""The Deployment of one variant: engines on slices or whole GPUs, restricted and drainable."""

from kubernetes.client import (
    V1Capabilities,
    V1Container,
    V1ContainerPort,
    V1Deployment,
    V1DeploymentSpec,
    V1DeploymentStrategy,
    V1EmptyDirVolumeSource,
    V1EnvVar,
    V1EnvVarSource,
    V1HTTPGetAction,
    V1LabelSelector,
    V1Lifecycle,
    V1LifecycleHandler,
    V1ObjectMeta,
    V1PersistentVolumeClaimVolumeSource,
    V1PodReadinessGate,
    V1PodSecurityContext,
    V1PodSpec,
    V1PodTemplateSpec,
    V1Probe,
    V1ResourceRequirements,
    V1RollingUpdateDeployment,
    V1SeccompProfile,
    V1SecretKeySelector,
    V1SecurityContext,
    V1SleepAction,
    V1Toleration,
    V1Volume,
    V1VolumeMount,
)

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.names import (
    ENGINE,
    PORT,
    SERVICE_LABEL,
    SERVING_GATE,
    VARIANT_LABEL,
    deployment_name,
)
from tessera.domain.placement import Choice
from tessera.domain.plan import Allotment
from tessera.resources.arguments import MODELS, arguments, claim, seconds
from tessera.resources.kinds import DEPLOYMENTS
from tessera.resources.manifest import Manifest, labels, manifest, owner

ACCOUNT = "tessera-engine"
_PRE_STOP_SECONDS = 5
"""Time for endpoints to forget a pod before its engine is told to stop."""
_EXIT_SECONDS = 10
"""vLLM needs 5 to 6 seconds to exit after its last token."""
_USER = 1000
_CACHE = "/cache"
_START_SECONDS = 600
_LOAD_MIB_PER_SECOND = 100
"""Slowest loading of weights that still counts as starting."""
_HEALTH = V1HTTPGetAction(path="/health", port="http")


def deployment(
    allotment: Allotment, spec: InferenceServiceSpec, choice: Choice, node_selector: dict[str, str]
) -> Manifest:
    """The Deployment of the chosen variant, with the number of replicas that drain allows."""
    service = allotment.service
    name = deployment_name(service.ref.name, choice.variant)
    identity = {SERVICE_LABEL: service.ref.name, VARIANT_LABEL: choice.variant}
    told = labels(service.ref.name) | identity
    model = V1Deployment(
        metadata=V1ObjectMeta(
            name=name,
            namespace=service.ref.namespace,
            labels=told,
            owner_references=[owner(service, controller=True)],
        ),
        spec=V1DeploymentSpec(
            replicas=allotment.drain.keep,
            revision_history_limit=3,
            progress_deadline_seconds=_start_seconds(choice),
            selector=V1LabelSelector(match_labels=identity),
            strategy=V1DeploymentStrategy(
                type="RollingUpdate",
                rolling_update=V1RollingUpdateDeployment(
                    max_surge=1 if allotment.surge else 0,
                    max_unavailable=0 if allotment.surge else 1,
                ),
            ),
            template=V1PodTemplateSpec(
                metadata=V1ObjectMeta(labels=told),
                spec=_pod(service.ref.name, spec, choice, node_selector),
            ),
        ),
    )
    return manifest(DEPLOYMENTS, service.ref.namespace, name, model)


def _pod(
    name: str, spec: InferenceServiceSpec, choice: Choice, node_selector: dict[str, str]
) -> V1PodSpec:
    drain = seconds(spec.drain.timeout)
    return V1PodSpec(
        service_account_name=ACCOUNT,
        automount_service_account_token=False,
        enable_service_links=False,
        node_selector=node_selector,
        tolerations=[V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
        readiness_gates=[V1PodReadinessGate(condition_type=SERVING_GATE)],
        termination_grace_period_seconds=_PRE_STOP_SECONDS + drain + _EXIT_SECONDS,
        security_context=V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=_USER,
            run_as_group=_USER,
            fs_group=_USER,
            seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
        ),
        containers=[_engine(name, spec, choice)],
        volumes=_volumes(spec, choice),
    )


def _engine(name: str, spec: InferenceServiceSpec, choice: Choice) -> V1Container:
    devices = {choice.fit.hardware.resource: str(choice.fit.hardware.devices)}
    return V1Container(
        name=ENGINE,
        image=spec.engine.image or f"vllm/vllm-openai:v{spec.engine.version}",
        args=arguments(name, spec, choice),
        env=_environment(spec),
        ports=[V1ContainerPort(name="http", container_port=PORT)],
        resources=V1ResourceRequirements(
            requests={
                "cpu": str(2 * choice.fit.hardware.devices),
                "memory": f"{_host_mib(choice)}Mi",
                **devices,
            },
            limits=devices,
        ),
        security_context=V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=V1Capabilities(drop=["ALL"]),
        ),
        startup_probe=V1Probe(
            http_get=_HEALTH, period_seconds=2, failure_threshold=_start_seconds(choice) // 2
        ),
        readiness_probe=V1Probe(
            http_get=_HEALTH, period_seconds=5, timeout_seconds=5, failure_threshold=3
        ),
        liveness_probe=V1Probe(
            http_get=_HEALTH, period_seconds=10, timeout_seconds=10, failure_threshold=6
        ),
        lifecycle=V1Lifecycle(
            pre_stop=V1LifecycleHandler(sleep=V1SleepAction(seconds=_PRE_STOP_SECONDS))
        ),
        termination_message_policy="FallbackToLogsOnError",
        volume_mounts=_mounts(spec),
    )


def _environment(spec: InferenceServiceSpec) -> list[V1EnvVar]:
    told = [
        V1EnvVar(name="HOME", value=_CACHE),
        V1EnvVar(name="USER", value=ENGINE),  # PyTorch asks for it where the user has no entry
        V1EnvVar(name="HF_HOME", value=f"{_CACHE}/huggingface"),
        V1EnvVar(name="VLLM_CACHE_ROOT", value=f"{_CACHE}/vllm"),
        V1EnvVar(name="VLLM_NO_USAGE_STATS", value="1"),
    ]
    if spec.model.token_secret_ref is not None:
        key = V1SecretKeySelector(
            name=spec.model.token_secret_ref.name, key=spec.model.token_secret_ref.key
        )
        told.append(V1EnvVar(name="HF_TOKEN", value_from=V1EnvVarSource(secret_key_ref=key)))
    return told


def _volumes(spec: InferenceServiceSpec, choice: Choice) -> list[V1Volume]:
    volumes = [
        V1Volume(
            name="shm",
            empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=f"{_shm_mib(choice)}Mi"),
        ),
        V1Volume(name="cache", empty_dir=V1EmptyDirVolumeSource()),
        V1Volume(name="tmp", empty_dir=V1EmptyDirVolumeSource()),
    ]
    if (name := claim(spec.model.uri)) is not None:
        source = V1PersistentVolumeClaimVolumeSource(claim_name=name, read_only=True)
        volumes.append(V1Volume(name="models", persistent_volume_claim=source))
    return volumes


def _mounts(spec: InferenceServiceSpec) -> list[V1VolumeMount]:
    mounts = [
        V1VolumeMount(name="shm", mount_path="/dev/shm"),  # noqa: S108 - a mount, not a temp file
        V1VolumeMount(name="cache", mount_path=_CACHE),
        V1VolumeMount(name="tmp", mount_path="/tmp"),  # noqa: S108
    ]
    if claim(spec.model.uri) is not None:
        mounts.append(V1VolumeMount(name="models", mount_path=MODELS, read_only=True))
    return mounts


def _shm_mib(choice: Choice) -> int:
    """Tensor parallel ranks talk through shared memory; a single one needs little."""
    return 2048 if choice.fit.hardware.devices == 1 else 8192


def _host_mib(choice: Choice) -> int:
    """Process, shared memory, and a tenth of the weights at a time while they load."""
    weights = choice.fit.memory.weights_mib * choice.fit.hardware.devices
    return 4096 + _shm_mib(choice) + weights // 10


def _start_seconds(choice: Choice) -> int:
    weights = choice.fit.memory.weights_mib * choice.fit.hardware.devices
    return _START_SECONDS + weights // _LOAD_MIB_PER_SECOND
