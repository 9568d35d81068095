"""The pods of the runner, the same for batches and for models, and how it gets at model files."""

from dataclasses import dataclass

from kubernetes import client

from tessera.api.model_files import ModelStore
from tessera.api.template_version import Platform
from tessera.domain.model.fetched import FetchedFiles
from tessera.resources import engine
from tessera.resources import platform as surroundings

REPORT_PATH = "/dev/termination-log"
# Keys of the Secret with the credentials of a store, by the scheme of the location.
_CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    ),
    "http": ("BEARER_TOKEN",),
    "https": ("BEARER_TOKEN",),
}
# Web servers that everybody may read may lie beside a bucket whose Secret has no token.
_OPTIONAL_KEYS = (
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "BEARER_TOKEN",
)


@dataclass(frozen=True, slots=True)
class RunnerImage:
    """The image of the runner with its pull policy and secrets."""

    name: str
    pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()
    """Secrets in the namespace of the batch; missing ones are ignored."""
    charges_url: str | None = None
    """Base URL at which gateways take what rows used; None without a gateway."""
    gate_url: str | None = None
    """Base URL at which gateways answer Jobs of gates; None without a gateway."""
    allow_pickles: bool = False
    """Whether it may download weights that can run code when they are loaded."""


def runner_job(
    pod: client.V1PodSpec,
    job_labels: dict[str, str],
    active_deadline_seconds: int,
    annotations: dict[str, str] | None = None,
) -> client.V1JobSpec:
    """Return a Job of one pod, which Kubernetes never tries again."""
    metadata = client.V1ObjectMeta(labels=job_labels, annotations=annotations)
    return client.V1JobSpec(
        active_deadline_seconds=active_deadline_seconds,
        backoff_limit=0,
        completions=1,
        parallelism=1,
        template=client.V1PodTemplateSpec(metadata=metadata, spec=pod),
    )


def runner_pod(
    account: str,
    image: RunnerImage,
    platform: Platform,
    container: client.V1Container,
    volumes: list[client.V1Volume],
) -> client.V1PodSpec:
    """Return a restricted pod of one run of the runner; it runs on any node."""
    return client.V1PodSpec(
        service_account_name=account,
        automount_service_account_token=False,
        enable_service_links=False,
        restart_policy="Never",
        image_pull_secrets=surroundings.pull_secrets(platform, *image.pull_secrets),
        security_context=engine.restricted_pod(),
        containers=[container],
        volumes=volumes,
    )


def runner_container(
    name: str, image: RunnerImage, arguments: list[str], requests: dict[str, str], memory_limit: str
) -> client.V1Container:
    """Return a container of the runner, which knows its address and reports when it ends."""
    field_ref = client.V1ObjectFieldSelector(field_path="status.podIP")
    address = client.V1EnvVarSource(field_ref=field_ref)
    return client.V1Container(
        name=name,
        image=image.name,
        image_pull_policy=image.pull_policy,
        args=arguments,
        env=[client.V1EnvVar(name="POD_IP", value_from=address)],
        resources=client.V1ResourceRequirements(requests=requests, limits={"memory": memory_limit}),
        security_context=engine.restricted(),
        termination_message_path=REPORT_PATH,
        termination_message_policy="FallbackToLogsOnError",
    )


def store_credentials(uri: str, store: ModelStore | None) -> list[client.V1EnvVar]:
    """Return the variables with the credentials of a store; none where the pod has an identity."""
    if store is None or store.secret_name is None:
        return []
    return [
        engine.secret_env_var(key, store.secret_name, key, optional=key in _OPTIONAL_KEYS)
        for key in _CREDENTIALS[uri.partition("://")[0]]
    ]


def location_arguments(uri: str, revision: str | None, store: ModelStore | None) -> list[str]:
    """Return the arguments that name a location."""
    arguments = [f"--uri={uri}", f"--report={REPORT_PATH}"]
    if revision:
        arguments.append(f"--revision={revision}")
    if store is not None and store.endpoint:
        arguments.append(f"--endpoint={store.endpoint}")
    if store is not None and store.region:
        arguments.append(f"--region={store.region}")
    return arguments


def fetch_arguments(files: FetchedFiles, image: RunnerImage, mount: str) -> list[str]:
    """Return the arguments of a download to a mounted volume."""
    pickles = ["--allow-pickles"] if image.allow_pickles else []
    location = location_arguments(files.uri, files.revision, files.store)
    return ["fetch", *location, *pickles, f"--into={mount}/{files.folder}"]
