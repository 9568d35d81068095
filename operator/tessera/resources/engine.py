"""The engine's container and its volumes, the same in Deployments and in Jobs."""

from dataclasses import dataclass

from kubernetes import client

from tessera.api.inference_service import EnvVar, InferenceServiceSpec
from tessera.api.template_version import PodTemplateVersion
from tessera.domain.names import ENGINE, PORT
from tessera.domain.perf.sources import MIN_LOAD_MIB_PER_SECOND
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import needs_long_context
from tessera.domain.vllm.extra_args import media_cache_mib
from tessera.domain.vllm.loaders import loader_host_mib
from tessera.resources import platform as surroundings
from tessera.resources.arguments import (
    ADAPTERS,
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_FILE,
    DRAFT,
    MODELS,
    arguments,
    pvc_claim_name,
)
from tessera.resources.defaults import Defaults, defaults

HEALTH = client.V1HTTPGetAction(path="/health", port="http")
_USER = 1000
_CACHE = "/cache"
# Probed more often than later on: until then nothing is served, and a closed port costs nothing.
_START_PERIOD = 2
# Without it the engine refuses a context beyond what it derives from the files.
_LONG_CONTEXT = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_UNREACHABLE_TAINTS = ("not-ready", "unreachable")


@dataclass(frozen=True, slots=True)
class EngineTemplate:
    """The engine of a service or a batch on its hardware, for pods of one template version."""

    name: str
    spec: InferenceServiceSpec
    choice: HardwareChoice
    version: PodTemplateVersion

    @property
    def rules(self) -> Defaults:
        return defaults(self.version.builder_version)

    @property
    def start_seconds(self) -> int:
        """Return how many seconds the engine may take to start."""
        return self.rules.start_seconds + self._weights_mib // MIN_LOAD_MIB_PER_SECOND

    @property
    def _weights_mib(self) -> int:
        return self.choice.fit.memory.weights_mib * self.choice.fit.hardware.devices

    @property
    def _shm_mib(self) -> int:
        """Return the shared memory: tensor parallel ranks communicate through it."""
        is_single = self.choice.fit.hardware.devices == 1
        offload = self.spec.engine.kv_offload
        # Offloaded cache is shared memory too, so that all ranks reach it.
        offload_mib = 0 if offload is None else offload.gib * 1024
        return offload_mib + (self.rules.shm_mib if is_single else self.rules.shm_parallel_mib)

    def container(self) -> client.V1Container:
        """Return a vLLM container with startup and liveness probes."""
        hardware, platform = self.choice.fit.hardware, self.version.platform
        devices = {hardware.resource: str(hardware.devices)}
        # Process, shared memory with offloaded cache, and a tenth of the weights during loading.
        host_mib = self.rules.host_mib + self._shm_mib + self._weights_mib // 10
        host_mib += loader_host_mib(self.spec.engine.loader, hardware.devices)
        host_mib += media_cache_mib(self.spec.engine)
        requests = {"cpu": str(2 * hardware.devices), "memory": f"{host_mib}Mi", **devices}
        return client.V1Container(
            name=ENGINE,
            image=surroundings.engine_image(self.spec, self.version),
            args=arguments(self.name, self.spec, self.choice, self.rules),
            env=_environment(self.spec, self.version, self.choice.fit.max_model_len),
            ports=[client.V1ContainerPort(name="http", container_port=PORT)],
            resources=client.V1ResourceRequirements(requests=requests, limits=devices),
            security_context=restricted(),
            startup_probe=client.V1Probe(
                http_get=HEALTH,
                period_seconds=_START_PERIOD,
                timeout_seconds=5,
                failure_threshold=self.start_seconds // _START_PERIOD,
            ),
            liveness_probe=client.V1Probe(
                http_get=HEALTH, period_seconds=10, timeout_seconds=10, failure_threshold=6
            ),
            termination_message_policy="FallbackToLogsOnError",
            volume_mounts=[*_mounts(self.spec), *surroundings.mounts(platform)],
        )

    def volumes(self) -> list[client.V1Volume]:
        """Return the volumes that the engine mounts."""
        model = self.spec.model
        models = uri_volume(self.spec)
        return [
            empty_volume("shm", medium="Memory", size_limit=f"{self._shm_mib}Mi"),
            empty_volume("cache"),
            empty_volume("tmp"),
            *([models] if models else ()),
            *_chat_template_volumes(self.spec),
            *_draft_volumes(self.spec),
            *(
                claim_volume(f"adapter-{adapter.name}", claim, read_only=True)
                for adapter in model.adapters
                if (claim := pvc_claim_name(adapter.uri)) is not None
            ),
            *surroundings.volumes(self.version.platform),
        ]


def restricted() -> client.V1SecurityContext:
    """Return the securityContext of every container (Pod Security Standard `restricted`)."""
    capabilities = client.V1Capabilities(drop=["ALL"])
    return client.V1SecurityContext(
        allow_privilege_escalation=False, read_only_root_filesystem=True, capabilities=capabilities
    )


def restricted_pod() -> client.V1PodSecurityContext:
    """Return the securityContext of every pod."""
    return client.V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=_USER,
        run_as_group=_USER,
        fs_group=_USER,
        seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
    )


def unreachable_tolerations(unreachable_seconds: int) -> list[client.V1Toleration]:
    """Return tolerations that bound how long a pod stays on an unreachable node (default 300 s)."""
    return [
        client.V1Toleration(
            key=f"node.kubernetes.io/{taint}",
            operator="Exists",
            effect="NoExecute",
            toleration_seconds=unreachable_seconds,
        )
        for taint in _UNREACHABLE_TAINTS
    ]


def uri_volume(spec: InferenceServiceSpec) -> client.V1Volume | None:
    """Return the volume of the PersistentVolumeClaim or image that the model's URI names."""
    scheme, _, rest = spec.model.uri.partition("://")
    if scheme == "oci":
        return client.V1Volume(name="models", image=client.V1ImageVolumeSource(reference=rest))
    model_claim = pvc_claim_name(spec.model.uri)
    return None if model_claim is None else claim_volume("models", model_claim, read_only=True)


def claim_volume(name: str, claim: str, *, read_only: bool | None = None) -> client.V1Volume:
    """Return the volume of a PersistentVolumeClaim."""
    source = client.V1PersistentVolumeClaimVolumeSource(claim_name=claim, read_only=read_only)
    return client.V1Volume(name=name, persistent_volume_claim=source)


def _draft_claim(spec: InferenceServiceSpec) -> str | None:
    """Return the PersistentVolumeClaim of the draft model; None for any other place."""
    draft = spec.engine.draft
    return None if draft is None else pvc_claim_name(draft.uri)


def _draft_volumes(spec: InferenceServiceSpec) -> list[client.V1Volume]:
    claim = _draft_claim(spec)
    return [] if claim is None else [claim_volume("draft", claim, read_only=True)]


def _chat_template_volumes(spec: InferenceServiceSpec) -> list[client.V1Volume]:
    if spec.engine.chat_template is None:
        return []
    template = spec.engine.chat_template.config_map_key_ref
    # A pod whose volume lacks its key hangs without a word in its status; the variable with the
    # same key reports it.
    source = client.V1ConfigMapVolumeSource(
        name=template.name,
        items=[client.V1KeyToPath(key=template.key, path=CHAT_TEMPLATE_FILE)],
        optional=True,
    )
    return [client.V1Volume(name="chat-template", config_map=source)]


def empty_volume(
    name: str, *, medium: str | None = None, size_limit: str | None = None
) -> client.V1Volume:
    """Return a volume that is empty at first and ends with its pod."""
    source = client.V1EmptyDirVolumeSource(medium=medium, size_limit=size_limit)
    return client.V1Volume(name=name, empty_dir=source)


def _environment(
    spec: InferenceServiceSpec, version: PodTemplateVersion, max_model_len: int
) -> list[client.V1EnvVar]:
    """Return the environment; a variable of the service overrides the platform's."""
    names = {variable.name for variable in spec.pod_template.env}
    base = [
        client.V1EnvVar(name="HOME", value=_CACHE),
        # PyTorch reads it where the UID has no passwd entry.
        client.V1EnvVar(name="USER", value=ENGINE),
        client.V1EnvVar(name="HF_HOME", value=f"{_CACHE}/huggingface"),
        client.V1EnvVar(name="VLLM_CACHE_ROOT", value=f"{_CACHE}/vllm"),
        client.V1EnvVar(name="VLLM_NO_USAGE_STATS", value="1"),
    ]
    if defaults(version.builder_version).limits_media:
        # The engine compares the host of a URL alone, and not that to which it is redirected.
        base.append(client.V1EnvVar(name="VLLM_MEDIA_URL_ALLOW_REDIRECTS", value="0"))
    if needs_long_context(spec, max_model_len) and _LONG_CONTEXT not in names:
        base.append(client.V1EnvVar(name=_LONG_CONTEXT, value="1"))
    service_env = [_to_env_var(variable) for variable in spec.pod_template.env]
    platform_env = [
        env_var
        for env_var in surroundings.environment(version.platform)
        if env_var.name not in names
    ]
    return [*base, *token(spec), *_chat_template(spec), *platform_env, *service_env]


def _chat_template(spec: InferenceServiceSpec) -> list[client.V1EnvVar]:
    """Return a variable without which the container is not created; nothing reads it."""
    if spec.engine.chat_template is None:
        return []
    template = spec.engine.chat_template.config_map_key_ref
    key = client.V1ConfigMapKeySelector(name=template.name, key=template.key)
    source = client.V1EnvVarSource(config_map_key_ref=key)
    return [client.V1EnvVar(name="TESSERA_CHAT_TEMPLATE", value_from=source)]


def token(spec: InferenceServiceSpec) -> list[client.V1EnvVar]:
    """Return the variable with the hub's token, taken from its Secret."""
    secret = spec.model.token_secret_ref
    return [] if secret is None else [secret_env_var("HF_TOKEN", secret.name, secret.key)]


def _to_env_var(variable: EnvVar) -> client.V1EnvVar:
    if variable.value_from is None:
        return client.V1EnvVar(name=variable.name, value=variable.value)
    secret = variable.value_from.secret_key_ref
    return secret_env_var(variable.name, secret.name, secret.key)


def secret_env_var(name: str, secret: str, key: str, *, optional: bool = False) -> client.V1EnvVar:
    """Return a variable with the value of a Secret's key."""
    selector = client.V1SecretKeySelector(name=secret, key=key, optional=optional or None)
    return client.V1EnvVar(name=name, value_from=client.V1EnvVarSource(secret_key_ref=selector))


def _mounts(spec: InferenceServiceSpec) -> list[client.V1VolumeMount]:
    mounts = [
        client.V1VolumeMount(name="shm", mount_path="/dev/shm"),  # noqa: S108 - a mount, not a temp file
        client.V1VolumeMount(name="cache", mount_path=_CACHE),
        client.V1VolumeMount(name="tmp", mount_path="/tmp"),  # noqa: S108
    ]
    if not spec.model.uri.startswith("hf://"):
        mounts.append(client.V1VolumeMount(name="models", mount_path=MODELS, read_only=True))
    mounts += [
        client.V1VolumeMount(
            name=f"adapter-{adapter.name}", mount_path=f"{ADAPTERS}/{adapter.name}", read_only=True
        )
        for adapter in spec.model.adapters
        if pvc_claim_name(adapter.uri) is not None
    ]
    if _draft_claim(spec) is not None:
        mounts.append(client.V1VolumeMount(name="draft", mount_path=DRAFT, read_only=True))
    if spec.engine.chat_template is not None:
        mounts.append(
            client.V1VolumeMount(name="chat-template", mount_path=CHAT_TEMPLATE, read_only=True)
        )
    return mounts
