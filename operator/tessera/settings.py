"""The environment of every process; nothing else reads it."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tessera.api.recipe import Platform
from tessera.domain.batch.names import BATCH_ROLE


class Settings(BaseSettings):
    """Read from `TESSERA_*` variables, which the chart sets."""

    model_config = SettingsConfigDict(
        env_prefix="TESSERA_", frozen=True, use_attribute_docstrings=True
    )

    prometheus_url: str | None = None
    """Base URL of Prometheus; without it replicas are kept and never scaled."""

    monitoring_namespaces: tuple[str, ...] = ("monitoring",)
    """Namespaces whose pods may read the engines' metrics."""

    namespace: str = "tessera-system"
    """The operator's own namespace."""

    pod_name: str = "tessera-operator"
    """The operator's own pod: its identity in the election."""

    watch_namespaces: tuple[str, ...] = ()
    """The only namespaces that are listed, watched and written in; empty means all."""

    batch_image: str = "tessera/batch:latest"
    """Image of the batch runner."""

    batch_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When that image is pulled; without it Kubernetes decides by the tag."""

    batch_pull_secrets: tuple[str, ...] = ()
    """Secrets for that image; they have to be in the namespaces of the batches."""

    platform: Platform = Field(default_factory=Platform)
    """The surroundings of engines, as JSON."""

    batch_role: str = BATCH_ROLE
    """The ClusterRole that lets a batch's runner read its batch; each release has its own."""

    mig_enabled: bool = False
    """GPUs may be cut anew; the chart grants the rights for it."""

    mig_manager_namespace: str | None = None
    """Namespace of the GPU operator; without it nothing is written for mig-manager."""

    webhook_service: str | None = None
    """Service of admission, and the Secret with its certificate; without it there is none."""

    webhook_configuration: str = "tessera-operator"
    """The ValidatingWebhookConfiguration whose callers have to trust the certificate."""

    webhook_certificate_owner: Literal["tessera", "cert-manager"] = "tessera"
    """Who makes and renews the certificate; what is not ours is only read."""

    webhook_certificate_duration: Annotated[timedelta, Field(ge=timedelta(seconds=1))] = timedelta(
        days=90
    )
    """How long a certificate holds; it is renewed when two thirds of that are over."""

    webhook_certificate_poll_interval: Annotated[timedelta, Field(gt=timedelta())] = timedelta(
        seconds=10
    )
    """Every so often each process reads the certificate; a new one waits six times as long."""

    webhook_port: Annotated[int, Field(ge=1, le=65535)] = 9443
    """Port of the admission server."""

    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of `/metrics`."""

    probes_port: Annotated[int, Field(ge=1, le=65535)] = 8081
    """Port of `/healthz`."""

    stall_seconds: Annotated[float, Field(gt=0)] = 120
    """How long an engine may hold requests without a step before its replica is replaced."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""

    @property
    def partition_backends(self) -> frozenset[str]:
        """The backends that may cut GPUs."""
        backends = {"agent"} | ({"migManager"} if self.mig_manager_namespace else set())
        return frozenset(backends) if self.mig_enabled else frozenset()


class CommandSettings(BaseSettings):
    """What commands at a terminal read."""

    model_config = SettingsConfigDict(
        env_prefix="TESSERA_", frozen=True, use_attribute_docstrings=True
    )

    prometheus_url: str | None = None
    """Base URL of Prometheus, where `--prometheus` is not given."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """The kubeconfig, where `--kubeconfig` is not given; else that of the home directory."""

    pod_address: Annotated[str | None, Field(validation_alias="KUBERNETES_SERVICE_HOST")] = None
    """Set in a pod: without a kubeconfig its ServiceAccount is used there."""


class RunnerSettings(BaseSettings):
    """The environment of the batch runner; all else comes as arguments."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    hub_endpoint: Annotated[str | None, Field(validation_alias="HF_ENDPOINT")] = None
    """Base URL of the model hub, where it is not the public one."""

    hub_token: Annotated[str | None, Field(validation_alias="HF_TOKEN")] = None
    """The user's token for the hub."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""


class NodeSettings(BaseSettings):
    """The environment of the agent of a node."""

    model_config = SettingsConfigDict(
        env_prefix="TESSERA_", frozen=True, use_attribute_docstrings=True
    )

    node_name: str
    """The node that it runs on, and the name of its NodeLayout."""

    partition: bool = False
    """Whether it carries out what the spec of the NodeLayout says; otherwise it only looks."""

    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """Socket of the kubelet that says which pod holds which device."""

    lock_directory: Path = Path("/run/tessera")
    """Folder of the machine, so that two agents never cut one GPU at the same time."""

    poll_interval_seconds: Annotated[float, Field(gt=0)] = 5
    """How often the driver and the kubelet are asked."""

    probes_port: Annotated[int, Field(ge=0, le=65535)] = 8082
    """Port of `/healthz`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""
