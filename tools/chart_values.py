"""Values of the chart, the source of `values.yaml` and of its schema."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from tessera.api.engine_egress import EngineEgress
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClass, ServiceClasses
from tessera.api.template_version import Platform
from tessera.domain.gateway.oidc import OidcIssuer
from tessera.domain.hardware.gpu_catalog import KnownModel, Product

# Values of version 0.1, and what a user of each reads.
REMOVED = {
    "gateway.requireNameGrants": (
        "gone since 0.2.0, where a tenant gets models of others by grants alone "
        "(docs/tasks/publish-models.md)."
    ),
}


class Values(BaseModel):
    """Base of all values: camelCase, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


def _resources(cpu: str, memory: str, limit: str) -> Any:
    """Return the field of a container's requests and its memory limit."""
    requests = {"cpu": cpu, "memory": memory}
    return Field(default={"requests": requests, "limits": {"memory": limit}})


class ChartImage(Values):
    """An image of the chart."""

    repository: str
    tag: str = ""
    """Tag; empty means the chart's appVersion."""


class Image(ChartImage):
    """Image of the operator."""

    repository: str = "tessera/operator"
    """Image of the operator."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the image."""


class BatchImage(ChartImage):
    """Image of the batch runner, which also reads and downloads models for services."""

    repository: str = "tessera/batch"
    """Image of the batch runner."""


class NodeImage(ChartImage):
    """Image of the agent."""

    repository: str = "tessera/node"
    """Image of the node agent."""


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

    resources: dict[str, dict[str, str]] = _resources("20m", "96Mi", limit="256Mi")
    """CPU and memory of one agent."""


class GatewayImage(ChartImage):
    """Image of the gateway."""

    repository: str = "tessera/gateway"
    """Image of the gateway."""


class GatewayTls(Values):
    """Certificate that clients see."""

    secret_name: str = ""
    """Secret of type kubernetes.io/tls; the Service has port 443 then. Empty means HTTP on port 80,
    for a gateway behind an Ingress or HTTPRoute that ends TLS."""


class GatewayService(Values):
    """Service of the gateway."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the Service, for example for a cloud's load balancer."""


class GatewaySqlite(Values):
    """SQLite in the only pod, for evaluation."""

    size: str = "1Gi"
    """Size of the claim with the file; empty keeps the file in the pod, and usage records end with
    it."""

    storage_class_name: str = ""
    """StorageClass of the claim; empty means the cluster's default one, without which the chart
    refuses to install."""


class GatewayDatabase(Values):
    """Database of usage records and limits."""

    secret_name: str = ""
    """Secret with the URL of a PostgreSQL database, such as
    `postgresql://user:password@host/tessera?sslmode=verify-full`. Empty means SQLite, which serves
    one pod."""

    url_key: str = "url"
    """Key of the URL within the Secret."""

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """Days after which usage records are deleted."""

    sqlite: GatewaySqlite = Field(default_factory=GatewaySqlite)
    """SQLite in the only pod, for evaluation."""


class GatewayTracing(Values):
    """OpenTelemetry spans of requests, without prompts and answers."""

    endpoint: str = ""
    """URL of a collector that takes OTLP over HTTP, such as
    `http://collector.monitoring:4318/v1/traces`. Empty means no spans."""


class GatewayAutoscaling(Values):
    """HorizontalPodAutoscaler of the gateway, where it has a PostgreSQL database."""

    enabled: bool = True
    """Scale the gateway by its CPU, where it has a PostgreSQL database. Switched off later, the
    HorizontalPodAutoscaler stays and holds `gateway.replicaCount` pods."""

    min_replicas: Annotated[int, Field(ge=1, le=100)] = 2
    """Minimum number of pods."""

    max_replicas: Annotated[int, Field(ge=1, le=100)] = 20
    """Maximum number of pods."""

    target_cpu_percent: Annotated[int, Field(ge=1, le=100)] = 60
    """Target for the mean CPU use, in percent of the request."""


class GatewayHttpRoute(Values):
    """HTTPRoute of the Gateway API to the gateway, the recommended way for clients outside of the
    cluster."""

    enabled: bool = False
    """Create an HTTPRoute; the cluster must have the Gateway API."""

    parent_refs: list[dict[str, Any]] = Field(default_factory=list)
    """Gateways of the route, for example `[{name: public, namespace: infra}]`."""

    hostnames: list[str] = Field(default_factory=list)
    """Names that clients use."""


class GatewayIngress(Values):
    """Ingress to the gateway, where the cluster has no Gateway API."""

    enabled: bool = False
    """Create an Ingress."""

    class_name: str = ""
    """IngressClass; empty means the default one."""

    host: str = ""
    """Name that clients use, for example `models.example.org`."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations for your controller: it must not buffer responses, and its timeout must be longer
    than the longest stream."""

    tls_secret_name: str = ""
    """Secret with the certificate of the Ingress; empty means none."""


class GatewayProviders(Values):
    """Requests to outside providers, for routes whose targets name a ModelProvider."""

    enabled: bool = False
    """Send requests to outside providers. Without it nothing leaves the cluster, and no key of a
    provider is read."""

    namespace: str = ""
    """Namespace of the Secrets with keys of providers, which must exist and have nothing else; the
    gateway may read all Secrets in it. Empty means one that the chart creates: that of the release
    with `-providers`."""

    allowed_ranges: list[str] = Field(default_factory=list)
    """Ranges of private addresses that providers and their proxies may have, such as
    `[10.20.0.0/16]`: others than public ones are refused."""


class GatewayValues(Values):
    """tessera-gateway: one URL with keys, limits and load-aware picking for all models."""

    enabled: bool = True
    """Run the gateway. Without it there are no shared URL and no keys, no request wakes a service
    that sleeps, and neither latencies nor arrivals of requests are measured."""

    replica_count: Annotated[int, Field(ge=1, le=100)] = 1
    """Pods, each of which uses up to one CPU; more than 1 need a PostgreSQL database. Ignored while
    the gateway is autoscaled."""

    drain_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Time that running streams have to finish before a pod ends."""

    image: GatewayImage = Field(default_factory=GatewayImage)
    """Image of the gateway."""

    tls: GatewayTls = Field(default_factory=GatewayTls)
    """Certificate that clients see."""

    service: GatewayService = Field(default_factory=GatewayService)
    """Service of the gateway."""

    database: GatewayDatabase = Field(default_factory=GatewayDatabase)
    """Database of usage records and limits."""

    tracing: GatewayTracing = Field(default_factory=GatewayTracing)
    """OpenTelemetry spans of requests, without prompts and answers."""

    autoscaling: GatewayAutoscaling = Field(default_factory=GatewayAutoscaling)
    """HorizontalPodAutoscaler of the gateway, where it has a PostgreSQL database."""

    keys_namespace: str = ""
    """Namespace of the Secrets of keys, which must exist; the gateway may read all Secrets in it.
    Empty means a namespace for keys alone, which the chart creates: that of the release with
    `-keys`."""

    release_namespace_keys: bool = False
    """For this version alone: also read keys in the release's namespace, where they were by
    default. `helm upgrade` does so by itself while there are any; tools that only render the chart
    need it until the keys are moved."""

    token_audience: str = ""
    """Audience of ServiceAccount tokens by which pods may use the gateway without a key; empty
    means that none are accepted."""

    oidc: list[OidcIssuer] = Field(default_factory=list)
    """Issuers of OIDC tokens that are accepted instead of keys."""

    default_rate_limits: RateLimitsSpec | None = RateLimitsSpec(
        requests=PeriodLimits(per_minute=30_000),
        total_tokens=PeriodLimits(per_day=10_000_000_000),
        concurrent_requests=1000,
    )
    """Limits in each pod of tenants whose TenantBudget has no `rateLimits`, in its format; `null`
    means none."""

    providers: GatewayProviders = Field(default_factory=GatewayProviders)
    """Requests to outside providers, for routes whose targets name a ModelProvider."""

    http_route: GatewayHttpRoute = Field(default_factory=GatewayHttpRoute)
    """HTTPRoute of the Gateway API to the gateway, the recommended way for clients outside of the
    cluster."""

    ingress: GatewayIngress = Field(default_factory=GatewayIngress)
    """Ingress to the gateway, where the cluster has no Gateway API."""

    pod_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the gateway's pods."""

    extra_env: list[dict[str, Any]] = Field(default_factory=list)
    """Additional environment variables of the gateway."""

    resources: dict[str, dict[str, str]] = _resources("1", "512Mi", limit="2Gi")
    """CPU and memory of one pod."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Node selector of the gateway's pods."""

    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    """Tolerations of the gateway's pods."""

    affinity: dict[str, Any] = Field(default_factory=dict)
    """Affinity of the gateway's pods."""


class Prometheus(Values):
    """Source of the engines' metrics."""

    url: str = ""
    """Base URL of Prometheus; empty disables autoscaling: the number of replicas stays as it is."""

    namespaces: list[str] = Field(default=["monitoring"])
    """Namespaces whose pods may scrape the metrics of the engines and of the operator."""

    monitor_labels: dict[str, str] = Field(default_factory=dict)
    """Labels by which Prometheus selects PodMonitors, such as `release: kube-prometheus-stack`, for
    those of the chart and of engines. `tessera doctor` says which."""

    job: str = ""
    """Label `job` of the operator's own metrics; empty means that of the chart's PodMonitor. Series
    of any other job are never taken for the operator's."""

    gpu_job: str = ""
    """Label `job` of the DCGM exporters whose energy counts, so that no page of another job names
    their GPUs; empty means any."""

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


class Hpa(Values):
    """HorizontalPodAutoscalers of services with `spec.scaling.mode: HPA`."""

    enabled: bool = False
    """Write them, and grant the operator the permissions for that. The cluster needs an adapter for
    external metrics, such as prometheus-adapter."""


class RequiredGates(Values):
    """Services that must have a QualityGate."""

    namespaces: list[Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]] = Field(
        default_factory=list
    )
    """Namespaces in which an InferenceService is written only with `spec.rollout.strategy: Gated`,
    except by who has the verb `bypass` on `qualitygates`. Who may write gates there is decided by
    RBAC."""

    classes: list[ServiceClass] = Field(default_factory=list)
    """Classes of services that need it in every namespace."""


class Gates(Values):
    """QualityGates, on which changes of models are tried."""

    require: RequiredGates = Field(default_factory=RequiredGates)
    """Services that must have one."""


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


class Catalogs(Values):
    """GPUs and models beside those that Tessera has."""

    gpus: Annotated[list[Product], Field(max_length=256)] = Field(default_factory=list)
    """GPU products, as their nodes are labeled. The entry of a product that Tessera has stays."""

    models: Annotated[list[KnownModel], Field(max_length=1024)] = Field(default_factory=list)
    """Shapes of models, which services then may leave out. The entry of a model that Tessera has
    stays."""


class Models(Values):
    """Files of models that are downloaded to claims."""

    allow_pickles: bool = False
    """Download weights without safetensors too (`.bin`, `.pt`, `.pth`, `.ckpt`, `.pkl`). The
    author of such a file can run code in the engine that loads it."""


# A key of a label or an annotation, or all keys of a prefix.
PodKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9][-a-z0-9.]{0,252}/(\*|[A-Za-z0-9][-A-Za-z0-9_.]{0,62})|"
        r"[A-Za-z0-9][-A-Za-z0-9_.]{0,62})$",
        max_length=317,
    ),
]


class PodTemplateValues(Values):
    """Labels and annotations that services may give their engine pods."""

    allowed_keys: Annotated[list[PodKey], Field(max_length=64)] = Field(default_factory=list)
    """Keys of labels and annotations that `spec.podTemplate` may have, such as
    `backup.velero.io/backup-volumes`, or `example.org/*` for all keys of a prefix. Keys without a
    prefix are allowed anyway, save `k8s-app` and `aadpodidbinding`, and so is
    `kubectl.kubernetes.io/restartedAt`. Others may give a pod a profile of AppArmor, a network or
    the role of a cloud, so list none that you do not know."""


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

    engine_egress: EngineEgress = Field(default_factory=EngineEgress)
    """Where the engines of services may connect to, where a network plugin enforces policies."""

    models: Models = Field(default_factory=Models)
    """Files of models that are downloaded to claims."""

    pod_template: PodTemplateValues = Field(default_factory=PodTemplateValues)
    """Labels and annotations that services may give their engine pods."""

    classes: ServiceClasses = BUILT_IN_CLASSES
    """Defaults of services by `spec.class`. A change applies at once to the services that omit the
    field: to what is promised and measured, and to scaling. Engines keep their limits until the
    service is updated."""

    catalogs: Catalogs = Field(default_factory=Catalogs)
    """GPUs and models beside those that Tessera has, for the operator, the gateway and commands. An
    entry that cannot be used is left out, and the log says why."""

    node: NodeAgent = Field(default_factory=NodeAgent)
    """tessera-node, an agent on nodes with MIG GPUs."""

    gateway: GatewayValues = Field(default_factory=GatewayValues)
    """tessera-gateway: one URL with keys, limits and load-aware picking for all models."""

    prometheus: Prometheus = Field(default_factory=Prometheus)
    """Source of the engines' metrics."""

    webhook: Webhook = Field(default_factory=Webhook)
    """Validating admission of InferenceServices."""

    watch: Watch = Field(default_factory=Watch)
    """Namespaces that Tessera watches."""

    mig: MigPermissions = Field(default_factory=MigPermissions)
    """Partitioning of GPUs into MIG slices, for pools with `spec.mig`."""

    hpa: Hpa = Field(default_factory=Hpa)
    """HorizontalPodAutoscalers of services with `spec.scaling.mode: HPA`."""

    gates: Gates = Field(default_factory=Gates)
    """QualityGates, on which changes of models are tried."""

    dashboard: Dashboard = Field(default_factory=Dashboard)
    """Dashboards for Grafana in a ConfigMap."""

    rules: Rules = Field(default_factory=Rules)
    """Recording rules and alerts in a PrometheusRule, created where the cluster has its CRD."""

    require_budget: bool = False
    """Add nothing in namespaces without a TenantBudget: what runs there stays."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the log."""

    resources: dict[str, dict[str, str]] = _resources("100m", "256Mi", limit="1Gi")
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
