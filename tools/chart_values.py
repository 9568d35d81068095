"""The chart's values: the source of `values.yaml` and of its schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tessera.api.recipe import Platform


class Values(BaseModel):
    """Base: camelCase, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


class Image(Values):
    """The operator's image."""

    repository: str = "tessera/operator"
    """Name of the image."""

    tag: str = ""
    """Tag; empty means the chart's appVersion."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled."""


class BatchImage(Values):
    """The image of the batch runner, which also reads and fetches models for services."""

    repository: str = "tessera/batch"
    """Name of the image."""

    tag: str = ""
    """Tag; empty means the chart's appVersion."""


class NodeImage(Values):
    """The agent's image."""

    repository: str = "tessera/node"
    """Name of the image."""

    tag: str = ""
    """Tag; empty means the chart's appVersion."""


class NodeAgent(Values):
    """tessera-node: an agent on nodes with MIG GPUs."""

    enabled: bool = False
    """Run the agent. It tells in NodeLayouts how GPUs are cut and which pods are on them, and
    runs as root with SYS_ADMIN: the driver and the kubelet's socket ask for that. The release's
    namespace has to admit privileged pods."""

    partition: bool = False
    """Let it cut GPUs as the operator says, for pools with `spec.mig.backend: Agent`. It is
    privileged then, as only the capability files of mig/config allow cutting."""

    image: NodeImage = Field(default_factory=NodeImage)
    """The agent's image."""

    runtime_class_name: str = "nvidia"
    """RuntimeClass that brings the driver into the container; empty where the default one does."""

    node_selector: dict[str, str] = Field(default={"nvidia.com/mig.capable": "true"})
    """Nodes that it runs on."""

    tolerations: list[dict[str, Any]] = Field(
        default=[{"key": "nvidia.com/gpu", "operator": "Exists"}]
    )
    """Taints that it tolerates, beside the one of repartitioning."""

    resources: dict[str, dict[str, str]] = Field(
        default={
            "requests": {"cpu": "20m", "memory": "96Mi"},
            "limits": {"memory": "256Mi"},
        }
    )
    """CPU and memory of one agent."""


class Prometheus(Values):
    """Where the readings come from."""

    url: str = ""
    """Base URL; empty means that replicas are kept and never scaled."""

    namespaces: list[str] = Field(default=["monitoring"])
    """Namespaces whose pods may read the engines' metrics."""


class ServiceAccount(Values):
    """The ServiceAccount of the operator."""

    create: bool = True
    """Create it; false uses one that exists, by its name."""

    name: str = ""
    """Its name; empty means tessera-operator."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations, as a cloud's workload identity needs them."""


class IssuerRef(Values):
    """The issuer of cert-manager that signs."""

    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    """Issuer of the release's namespace, or ClusterIssuer."""

    name: str = ""
    """Its name; empty means a self-signing Issuer that the chart makes."""


class CertManager(Values):
    """The certificate of admission by cert-manager instead of by Tessera itself."""

    enabled: bool = False
    """cert-manager makes, renews and injects it; it has to be installed."""

    issuer_ref: IssuerRef = Field(default_factory=IssuerRef)
    """The issuer of cert-manager that signs."""


class Webhook(Values):
    """Admission of InferenceServices."""

    enabled: bool = True
    """Without it the same checks show in the conditions only."""

    certificate_duration_days: Annotated[int, Field(ge=1, le=365)] = 90
    """Life of a certificate that Tessera makes; it is renewed when two thirds of it are over."""

    cert_manager: CertManager = Field(default_factory=CertManager)
    """The certificate of admission by cert-manager instead of by Tessera itself."""

    timeout_seconds: Annotated[int, Field(ge=1, le=30)] = 5
    """How long the API server waits; afterwards it admits, and the turn judges."""


class Watch(Values):
    """Where Tessera acts."""

    namespaces: list[
        Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    ] = Field(default_factory=list)
    """The only namespaces with services and batches; they have to exist. Empty means all."""


class Cutting(Values):
    """Cutting GPUs into MIG slices, for pools with `spec.mig`."""

    enabled: bool = False
    """Grant the operator what that needs: labels and taints of nodes, evictions of pods, and the
    configuration of mig-manager."""

    manager_namespace: Annotated[
        str, Field(pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", max_length=63)
    ] = "gpu-operator"
    """Namespace of the GPU operator, whose ClusterPolicy names the ConfigMap tessera-mig
    (`migManager.config.name`). Empty means that no pool has `spec.mig.backend: MigManager`."""


class Dashboard(Values):
    """Grafana's dashboards, in a ConfigMap."""

    enabled: bool = False
    """Make the ConfigMap; the sidecar of Grafana's chart loads it."""

    labels: dict[str, str] = Field(default={"grafana_dashboard": "1"})
    """What the sidecar looks for."""


class Rules(Values):
    """Recording rules and alerts, in a PrometheusRule; made where the cluster knows that kind."""

    enabled: bool = True
    """Make the PrometheusRule."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels by which a Prometheus selects its rules, as `release: kube-prometheus-stack`."""


class Chart(Values):
    """Everything that can be set when installing."""

    replica_count: Annotated[int, Field(ge=1, le=5)] = 1
    """Operator pods; one leads, the others stand by and answer admission."""

    image: Image = Field(default_factory=Image)
    """The operator's image."""

    batch_image: BatchImage = Field(default_factory=BatchImage)
    """The image of the batch runner, which also reads and fetches models for services."""

    image_pull_secrets: list[dict[str, str]] = Field(default_factory=list)
    """Secrets for the registry of the chart's own images. Batches need them in their own namespaces
    too."""

    service_account: ServiceAccount = Field(default_factory=ServiceAccount)
    """The ServiceAccount of the operator."""

    pod_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the operator's pods."""

    pod_labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the operator's pods."""

    extra_env: list[dict[str, Any]] = Field(default_factory=list)
    """Further environment variables of the operator, such as a proxy of the cluster."""

    platform: Platform = Field(default_factory=Platform)
    """The surroundings of engines, where they are not those of the public internet."""

    node: NodeAgent = Field(default_factory=NodeAgent)
    """tessera-node: an agent on nodes with MIG GPUs."""

    prometheus: Prometheus = Field(default_factory=Prometheus)
    """Where the readings come from."""

    webhook: Webhook = Field(default_factory=Webhook)
    """Admission of InferenceServices."""

    watch: Watch = Field(default_factory=Watch)
    """Where Tessera acts."""

    mig: Cutting = Field(default_factory=Cutting)
    """Cutting GPUs into MIG slices, for pools with `spec.mig`."""

    dashboard: Dashboard = Field(default_factory=Dashboard)
    """Grafana's dashboards, in a ConfigMap."""

    rules: Rules = Field(default_factory=Rules)
    """Recording rules and alerts, in a PrometheusRule; made where the cluster knows that kind."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least."""

    resources: dict[str, dict[str, str]] = Field(
        default={
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "1Gi"},
        }
    )
    """CPU and memory of one process."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Nodes that the operator may run on."""

    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    """Taints that it tolerates."""

    affinity: dict[str, Any] = Field(default_factory=dict)
    """Further rules of placement."""

    # What Helm passes to every chart.
    global_: Annotated[dict[str, Any], Field(alias="global", exclude=True)] = Field(
        default_factory=dict
    )
    """Values of a parent chart; unused."""
