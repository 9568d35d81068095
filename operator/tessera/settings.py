"""The environment of the operator; nothing else reads it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tessera.api.recipe import Platform


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

    batch_image: str = "tessera/batch:latest"
    """Image of the batch runner."""

    batch_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When that image is pulled; without it Kubernetes decides by the tag."""

    batch_pull_secrets: tuple[str, ...] = ()
    """Secrets for that image; they have to be in the namespaces of the batches."""

    platform: Platform = Platform()
    """The surroundings of engines, as JSON."""

    webhook_certificates: Path | None = None
    """Folder with `tls.crt` and `tls.key`; without it there is no admission server."""

    webhook_port: Annotated[int, Field(ge=1, le=65535)] = 9443
    """Port of the admission server."""

    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of `/metrics`."""

    probes_port: Annotated[int, Field(ge=1, le=65535)] = 8081
    """Port of `/healthz`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""


class CommandSettings(BaseSettings):
    """What commands at a terminal read."""

    model_config = SettingsConfigDict(
        env_prefix="TESSERA_", frozen=True, use_attribute_docstrings=True
    )

    prometheus_url: str | None = None
    """Base URL of Prometheus, where `--prometheus` is not given."""


class RunnerSettings(BaseSettings):
    """The environment of the batch runner; all else comes as arguments."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    hub_endpoint: Annotated[str | None, Field(validation_alias="HF_ENDPOINT")] = None
    """Base URL of the model hub, where it is not the public one."""

    hub_token: Annotated[str | None, Field(validation_alias="HF_TOKEN")] = None
    """The user's token for the hub."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""
