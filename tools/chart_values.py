"""Values of the chart, the source of `values.yaml` and of its schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tessera.api.template_version import Platform


class Values(BaseModel):
    """Base of all values: camelCase, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


class Image(Values):
    """Image of the operator."""

    repository: str = "tessera/operator"
    """Image of the operator."""

    tag: str = ""
    """Tag; empty means the chart's appVersion."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the image."""


class BatchImage(Values):
    """Image of the batch runner, which also reads and downloads models for services."""

    repository: str = "tessera/batch"
    """Image of the batch runner."""

    tag: str = ""
    """Tag; empty means the chart's appVersion."""


class NodeImage(Values):
    """Image of the agent."""

    repository: str = "tessera/node"
    """Image of the node agent."""

    tag: str = ""
    """Tag; empty means the chart's appVersion."""


class NodeAgent(Values):
    """tessera-node, an agent on nodes with MIG GPUs."""

    enabled: bool = False
    """Run the node agent. It reports the MIG layout of GPUs and their pods in NodeLayouts, and
    runs as root with SYS_ADMIN, which the driver and the kubelet's socket require. The release's
    namespace must admit privileged pods."""

    partition: bool = False
    """Let the agent partition GPUs for pools with `spec.mig.backend: Agent`. It is privileged then,
    since partitioning requires the driver's capability file `mig/config`."""

    image: NodeImage = Field(default_factory=NodeImage)
    """Image of the agent."""

    runtime_class_name: str = "nvidia"
    """RuntimeClass that provides the driver to the container; empty where the default one does."""

    node_selector: dict[str, str] = Field(default={"nvidia.com/mig.capable": "true"})
    """Nodes that the agent runs on."""

    tolerations: list[dict[str, Any]] = Field(
        default=[{"key": "nvidia.com/gpu", "operator": "Exists"}]
    )
    """Tolerations of the agent, besides that for the taint of repartitioning."""

    resources: dict[str, dict[str, str]] = Field(
        default={
            "requests": {"cpu": "20m", "memory": "96Mi"},
            "limits": {"memory": "256Mi"},
        }
    )
    """CPU and memory of one agent."""


class Prometheus(Values):
    """Source of the engines' metrics."""

    url: str = ""
    """Base URL of Prometheus; empty disables autoscaling: the number of replicas stays as it is."""

    namespaces: list[str] = Field(default=["monitoring"])
    """Namespaces whose pods may scrape the metrics of the engines and of the operator."""

    job: str = ""
    """Label `job` of the operator's own metrics; empty means that of the chart's PodMonitor. Series
    of any other job are never taken for the operator's."""

    secret_name: str = ""
    """Secret in the release's namespace with access to Prometheus: `token`, or `username` and
    `password`; `headers`, one `Name: value` a line; `ca.crt`. A renewed value counts at once."""

    token_file: str = ""
    """File in the operator's pod with a bearer token, instead of the Secret's, for example
    `/var/run/secrets/kubernetes.io/serviceaccount/token`."""

    ca_file: str = ""
    """File in the operator's pod with the certificate authority, instead of the Secret's."""


class ServiceAccount(Values):
    """ServiceAccount of the operator."""

    create: bool = True
    """Create the ServiceAccount; false uses an existing one by its name."""

    name: str = ""
    """Name of the ServiceAccount; empty means tessera-operator."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations, for example for a cloud's workload identity."""


class IssuerRef(Values):
    """Issuer of cert-manager that signs the certificate."""

    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    """Issuer in the release's namespace, or ClusterIssuer."""

    name: str = ""
    """Name of the issuer; empty means a self-signed Issuer that the chart creates."""


class CertManager(Values):
    """Webhook certificate from cert-manager instead of from Tessera."""

    enabled: bool = False
    """Let cert-manager issue, renew and inject the certificate; it must be installed."""

    issuer_ref: IssuerRef = Field(default_factory=IssuerRef)
    """Issuer of cert-manager that signs the certificate."""


class Webhook(Values):
    """Validating admission of InferenceServices."""

    enabled: bool = True
    """Validate at admission; disabled, the same checks show in the conditions only."""

    certificate_duration_days: Annotated[int, Field(ge=1, le=365)] = 90
    """Lifetime of a certificate that Tessera issues; it is renewed after two thirds of it."""

    cert_manager: CertManager = Field(default_factory=CertManager)
    """Webhook certificate from cert-manager instead of from Tessera."""

    timeout_seconds: Annotated[int, Field(ge=1, le=30)] = 5
    """Seconds that the API server waits for the webhook; after that it admits the object, and the
    next reconcile cycle validates it."""


class Watch(Values):
    """Namespaces that Tessera watches."""

    namespaces: list[
        Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    ] = Field(default_factory=list)
    """Namespaces with services and batches; they must exist. Empty means all."""


class MigPermissions(Values):
    """Partitioning of GPUs into MIG slices, for pools with `spec.mig`."""

    enabled: bool = False
    """Grant the operator the permissions for partitioning: labels and taints of nodes, evictions of
    pods, and the configuration of mig-manager."""

    manager_namespace: Annotated[
        str, Field(pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", max_length=63)
    ] = "gpu-operator"
    """Namespace of the GPU operator, whose ClusterPolicy names the ConfigMap tessera-mig
    (`migManager.config.name`). Empty means that no pool has `spec.mig.backend: MigManager`."""


class Dashboard(Values):
    """Dashboards for Grafana in a ConfigMap."""

    enabled: bool = False
    """Create a ConfigMap with the Grafana dashboards; the sidecar of Grafana's chart loads it."""

    labels: dict[str, str] = Field(default={"grafana_dashboard": "1"})
    """Labels by which the sidecar selects ConfigMaps."""


class Rules(Values):
    """Recording rules and alerts in a PrometheusRule, created where the cluster has its CRD."""

    enabled: bool = True
    """Create a PrometheusRule with recording rules and alerts, where the cluster has its CRD."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels by which Prometheus selects its rules, such as `release: kube-prometheus-stack`."""


class Chart(Values):
    """Values of the chart."""

    replica_count: Annotated[int, Field(ge=1, le=5)] = 1
    """Operator pods; one is the leader, the others are on standby and answer admission requests."""

    image: Image = Field(default_factory=Image)
    """Image of the operator."""

    batch_image: BatchImage = Field(default_factory=BatchImage)
    """Image of the batch runner, which also reads and downloads models for services."""

    image_pull_secrets: list[dict[str, str]] = Field(default_factory=list)
    """Secrets for the registry of the chart's own images. Batches need them in their own namespaces
    as well."""

    service_account: ServiceAccount = Field(default_factory=ServiceAccount)
    """ServiceAccount of the operator."""

    pod_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the operator's pods."""

    pod_labels: dict[str, str] = Field(default_factory=dict)
    """Additional labels of the operator's pods."""

    extra_env: list[dict[str, Any]] = Field(default_factory=list)
    """Additional environment variables of the operator, for example a proxy."""

    platform: Platform = Field(default_factory=Platform)
    """Environment of the engines, where it is not that of the public internet."""

    node: NodeAgent = Field(default_factory=NodeAgent)
    """tessera-node, an agent on nodes with MIG GPUs."""

    prometheus: Prometheus = Field(default_factory=Prometheus)
    """Source of the engines' metrics."""

    webhook: Webhook = Field(default_factory=Webhook)
    """Validating admission of InferenceServices."""

    watch: Watch = Field(default_factory=Watch)
    """Namespaces that Tessera watches."""

    mig: MigPermissions = Field(default_factory=MigPermissions)
    """Partitioning of GPUs into MIG slices, for pools with `spec.mig`."""

    dashboard: Dashboard = Field(default_factory=Dashboard)
    """Dashboards for Grafana in a ConfigMap."""

    rules: Rules = Field(default_factory=Rules)
    """Recording rules and alerts in a PrometheusRule, created where the cluster has its CRD."""

    require_budget: bool = False
    """Add nothing in namespaces without a TenantBudget: what runs there stays."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the log."""

    resources: dict[str, dict[str, str]] = Field(
        default={
            "requests": {"cpu": "100m", "memory": "256Mi"},
            "limits": {"memory": "1Gi"},
        }
    )
    """CPU and memory of one operator pod."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Node selector of the operator's pods."""

    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    """Tolerations of the operator's pods."""

    affinity: dict[str, Any] = Field(default_factory=dict)
    """Affinity of the operator's pods."""

    # Helm passes these values to every chart.
    global_: Annotated[dict[str, Any], Field(alias="global", exclude=True)] = Field(
        default_factory=dict
    )
    """Values of a parent chart; unused."""
