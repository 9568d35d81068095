"""Environment variables of every process; no other module reads the environment."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, IPvAnyNetwork, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.api.engine_egress import EngineEgress
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.api.template_version import Platform
from tessera.domain.batch.names import BATCH_ROLE
from tessera.domain.gateway.oidc import OidcIssuer


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TESSERA_", frozen=True, use_attribute_docstrings=True
    )


class _ProcessSettings(_Settings):
    """Settings of every process that runs in a pod for long."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""


class PrometheusSettings(_Settings):
    """Settings of processes that query Prometheus."""

    prometheus_url: str | None = None
    """Base URL of Prometheus; without it replicas keep their number and are never scaled."""

    prometheus_job: str = ""
    """Label `job` of the operator's own metrics; empty means that of the chart's PodMonitor."""

    prometheus_gpu_job: str = ""
    """Label `job` of the DCGM exporters whose energy counts; empty means any."""

    prometheus_secret_directory: Path | None = None
    """Folder with credentials for Prometheus: the files `token`, `username` and `password`,
    `headers` (one `Name: value` a line) and `ca.crt`, each as needed."""

    prometheus_token_file: Path | None = None
    """File with a bearer token for Prometheus, instead of the folder's."""

    prometheus_ca_file: Path | None = None
    """File with the certificate authority of Prometheus, instead of the folder's."""

    namespace: str = "tessera-system"
    """The operator's own namespace."""

    @property
    def prometheus_access(self) -> PrometheusAccess:
        """Return how Prometheus is queried."""
        return PrometheusAccess(
            namespace=self.namespace,
            job=self.prometheus_job,
            gpu_job=self.prometheus_gpu_job,
            secret_directory=self.prometheus_secret_directory,
            token_file=self.prometheus_token_file,
            ca_file=self.prometheus_ca_file,
        )


class Settings(PrometheusSettings, _ProcessSettings):
    """Settings of the operator: `TESSERA_*` variables, which the chart sets."""

    monitoring_namespaces: tuple[str, ...] = ("monitoring",)
    """Namespaces whose pods may scrape the engines' metrics, by a NetworkPolicy."""

    monitor_labels: Mapping[str, str] = Field(default_factory=dict)
    """Labels of the engines' PodMonitors as JSON, by which Prometheus selects them."""

    pod_name: str = "tessera-operator"
    """The operator's own pod: its identity in the leader election."""

    watch_namespaces: tuple[str, ...] = ()
    """The only namespaces in which objects are listed, watched and written; empty means all."""

    batch_image: str = "tessera/batch:latest"
    """Image of the batch runner."""

    batch_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """imagePullPolicy of that image; without it Kubernetes decides by the tag."""

    batch_charges_url: str | None = None
    """Base URL at which gateways take what rows of batches used; None without a gateway."""

    gate_url: str | None = None
    """Base URL at which Jobs of gates ask gateways; None without a gateway."""

    batch_pull_secrets: tuple[str, ...] = ()
    """Pull secrets for that image; they have to exist in the namespaces of the batches."""

    allow_pickles: bool = False
    """Whether weights that can run code when they are loaded may be downloaded to claims."""

    allowed_pod_keys: frozenset[str] = frozenset()
    """Labels and annotations that `spec.podTemplate` may have beside keys without a prefix, as
    JSON: keys, and `prefix/*`."""

    platform: Platform = Field(default_factory=Platform)
    """Registry mirror, proxies, certificates and other surroundings of engines, as JSON."""

    engine_egress: EngineEgress = Field(default_factory=EngineEgress)
    """Where the engines of services may connect to, as JSON."""

    classes: ServiceClasses = BUILT_IN_CLASSES
    """Defaults of services by `spec.class`, as JSON; what is left out is built in."""

    catalogs_file: Path | None = None
    """JSON with GPUs and models that the installation adds to the catalog; a change needs a new
    process."""

    batch_role: str = BATCH_ROLE
    """ClusterRole that lets a batch's runner read its BatchInference; each release has its own."""

    require_budget: bool = False
    """Whether a namespace without a TenantBudget gets nothing new."""

    gated_namespaces: frozenset[str] = frozenset()
    """Namespaces in which an InferenceService has to have a QualityGate, as JSON."""

    gated_classes: frozenset[str] = frozenset()
    """Classes of services that have to have one in every namespace, as JSON."""

    hpa_enabled: bool = False
    """Whether HorizontalPodAutoscalers are written; the chart then grants permissions for it."""

    mig_enabled: bool = False
    """Whether GPUs may be repartitioned; the chart then grants the permissions for it."""

    node_agent: bool = True
    """Whether the release runs tessera-node; otherwise NodeLayouts of silent agents are deleted."""

    mig_manager_namespace: str | None = None
    """Namespace of the GPU operator; without it nothing is written for mig-manager."""

    webhook_service: str | None = None
    """Name of the webhooks' Service, and of the Secret with its certificate; None disables them."""

    webhook_configuration: str = "tessera-operator"
    """The ValidatingWebhookConfiguration that carries the CA bundle."""

    webhook_certificate_owner: Literal["tessera", "cert-manager"] = "tessera"
    """Who issues and renews the certificate; one from cert-manager is only read."""

    webhook_certificate_duration: Annotated[timedelta, Field(ge=timedelta(seconds=1))] = timedelta(
        days=90
    )
    """Validity of a certificate; it is renewed after two thirds of that."""

    webhook_certificate_poll_interval: Annotated[timedelta, Field(gt=timedelta())] = timedelta(
        seconds=10
    )
    """Interval at which each process reads the certificate; a new one is served after six."""

    webhook_port: Annotated[int, Field(ge=1, le=65535)] = 9443
    """Port of the webhook server."""

    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of `/metrics`."""

    gateway_account: str | None = None
    """ServiceAccount of the gateways in the operator's namespace, which may report their requests;
    None disables the port."""

    providers_enabled: bool = False
    """Whether gateways send requests to outside providers."""

    demand_port: Annotated[int, Field(ge=1, le=65535)] = 8443
    """Port at which gateways report."""

    probes_port: Annotated[int, Field(ge=1, le=65535)] = 8081
    """Port of `/healthz`."""

    stall_seconds: Annotated[float, Field(gt=0)] = 120
    """Seconds an engine may hold requests without a step before its replica is replaced."""

    @property
    def partition_backends(self) -> frozenset[str]:
        """Return the backends that may partition GPUs."""
        backends = {"Agent"} | ({"MigManager"} if self.mig_manager_namespace else set())
        return frozenset(backends) if self.mig_enabled else frozenset()


class CommandSettings(PrometheusSettings):
    """Settings of the commands at a terminal; `--prometheus` and `--gateway` override the URLs."""

    gateway_url: str | None = None
    """Base URL of the metrics port of a gateway."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """The kubeconfig, unless `--kubeconfig` is given; by default that of the home directory."""

    pod_address: Annotated[str | None, Field(validation_alias="KUBERNETES_SERVICE_HOST")] = None
    """Set inside a pod, where the ServiceAccount is used if there is no kubeconfig."""


class RunnerSettings(BaseSettings):
    """Settings of the batch runner that do not come as arguments."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    hub_endpoint: Annotated[str | None, Field(validation_alias="HF_ENDPOINT")] = None
    """Base URL of the model hub, if it is not the public one."""

    hub_token: Annotated[str | None, Field(validation_alias="HF_TOKEN")] = None
    """The user's token for the hub."""

    bearer_token: Annotated[str | None, Field(validation_alias="BEARER_TOKEN")] = None
    """The user's token for the web server of an `https://` model."""

    kubeconfig: Annotated[str | None, Field(validation_alias="KUBECONFIG")] = None
    """A kubeconfig to use instead of the pod's ServiceAccount."""


class NodeSettings(_ProcessSettings):
    """Settings of the node agent."""

    node_name: str
    """The node on which the agent runs, and the name of its NodeLayout."""

    partition: bool = False
    """Whether the agent partitions GPUs as the NodeLayout's spec says; otherwise it only
    reports."""

    pod_resources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """Socket of the kubelet's PodResources API, which says which pod uses which device."""

    lock_directory: Path = Path("/run/tessera")
    """Folder on the host for locks, so that two agents never partition one GPU at the same time."""

    poll_interval_seconds: Annotated[float, Field(gt=0)] = 5
    """Seconds between two queries of the driver and the kubelet."""

    probes_port: Annotated[int, Field(ge=0, le=65535)] = 8082
    """Port of `/healthz`."""


class GatewaySettings(_ProcessSettings):
    """Settings of the gateway: `TESSERA_*` variables, which the chart sets."""

    namespace: str = "tessera-system"
    """The gateway's own namespace."""

    keys_namespaces: tuple[str, ...] = ()
    """Namespaces of the Secrets of keys, as JSON; without them the gateway's own with `-keys`. Keys
    outside the first are read with a warning."""

    providers_namespace: str | None = None
    """Namespace of the Secrets with keys of outside providers, in which there is nothing else;
    without it no request is sent to providers."""

    providers_allowed_ranges: tuple[IPvAnyNetwork, ...] = ()
    """Ranges of addresses that providers and their proxies may have besides public ones, as
    JSON."""

    providers_ca_file: Path | None = None
    """File with certificate authorities of providers, beside those of the system."""

    pod_name: str = "tessera-gateway"
    """The gateway's own pod, by which it reports to the operator."""

    watch_namespaces: tuple[str, ...] = ()
    """The only namespaces whose services are offered; empty means all."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    """Port of the API; HTTPS with a TLS directory, HTTP otherwise."""

    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port of `/metrics`."""

    batches_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port at which runners of batches tell what their rows used; None disables it."""

    gates_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the API for Jobs of gates, without TLS; None disables it."""

    tls_directory: Path | None = None
    """Folder with the certificate that clients see: `tls.crt` and `tls.key`."""

    state_directory: Path = Path("/var/lib/tessera")
    """Folder of the SQLite file, and of usage records that the database did not take yet."""

    database_url: SecretStr | None = None
    """URL of a PostgreSQL database; without it SQLite in the state folder is used."""

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """Days after which usage records are deleted."""

    trace_endpoint: str | None = None
    """URL of a collector that takes spans by OTLP over HTTP; without it there are none."""

    operator_host: str | None = None
    """Name in the certificate of the operator, to which requests are reported; without it services
    at zero are not started."""

    operator_directory: Path = Path("/etc/tessera/operator")
    """Folder with `token`, which the operator takes, and `ca.crt`, by which it is known."""

    drain_seconds: Annotated[float, Field(gt=0)] = 300
    """Seconds that streams have to end after a stop was asked for."""

    default_rate_limits: RateLimitsSpec = RateLimitsSpec()
    """Limits of tenants whose TenantBudget has no `rateLimits`, as JSON."""

    token_audience: str | None = None
    """Audience of the ServiceAccount tokens that are accepted; without it none are."""

    oidc: tuple[OidcIssuer, ...] = ()
    """Issuers of OIDC tokens that are accepted, as JSON."""

    announce_seconds: Annotated[float, Field(ge=0)] = 5
    """Seconds between the moment at which a stopping gateway is no longer ready and the one from
    which it accepts no connection, so that no client is sent to it anymore."""

    classes: ServiceClasses = BUILT_IN_CLASSES
    """Defaults of services by `spec.class`, as JSON; the same as those of the operator."""

    catalogs_file: Path | None = None
    """JSON with GPUs and models that the installation adds to the catalog; the operator's."""
