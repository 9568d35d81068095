"""`InferenceService`: a model served behind an OpenAI-compatible API."""

from datetime import timedelta
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationInfo, model_validator

from tessera.api.engine_options import EngineOptions
from tessera.api.meta import (
    MODEL_NAME,
    Amount,
    DnsLabel,
    DnsSubdomain,
    Duration,
    TimeZoneName,
    Wire,
    at_most,
    between,
    name_rule,
    rule,
    rules_config,
    text_default,
)
from tessera.api.model_files import (
    Adapters,
    Cache,
    ModelShape,
    ModelStore,
    ModelUri,
    Revision,
    is_stored,
)
from tessera.api.precision import Precision, own_files_rule
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.rollout import Rollout
from tessera.api.service_class import (
    BUILT_IN_CLASSES,
    ItlTarget,
    ServiceClass,
    ServiceClasses,
    Tiers,
    TtftTarget,
    WaitingRequests,
)
from tessera.api.service_status import InferenceServiceStatus

# A label value that Kubernetes accepts.
PodLabel = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63),
]


# Name that clients send as `model`.
ServedName = Annotated[
    str,
    StringConstraints(pattern=f"^{MODEL_NAME}$", max_length=128),
]


class SecretKeySelector(Wire):
    """Key of a Secret in the service's namespace."""

    name: DnsLabel
    """Name of the Secret."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "token"
    """Key within the Secret."""


class Model(Wire):
    """The model, and the location of its files."""

    uri: ModelUri
    """Location of the weights: `hf://org/name` on the Hugging Face Hub, `pvc://claim/path` on a
    PersistentVolumeClaim in the same namespace, `oci://registry/repository:tag`, an image with the
    files in its root, which nodes cache like other images; or a folder of a store, which is
    downloaded to a claim once: `s3://bucket/folder`, `gs://bucket/folder`,
    `az://container/folder`, or `https://host/folder#sha256=<digest>`, where the digest is that of
    the file `SHA256SUMS` in the folder, as `sha256sum` writes it. With a digest behind it, the
    folder of a bucket is checked by its `SHA256SUMS` as well."""

    revision: Revision | None = None
    """Branch, tag or commit of an `hf://` model; omitted, `main`. It is resolved once to the commit
    in `status.model.revision`, so that a restart loads the same weights."""

    served_name: ServedName | None = None
    """Name that clients send as `model`; omitted, the name of the service."""

    token_secret_ref: SecretKeySelector | None = None
    """Secret with the hub token; it is mounted into the engine's pod and read nowhere else."""

    adapters: Adapters = ()
    """LoRA adapters that every replica serves beside the model, each under its own name."""

    store: ModelStore | None = None
    """Access to the object store or web server of `s3://`, `gs://`, `az://` and `https://` files,
    those of adapters included."""

    cache: Cache = Field(default_factory=Cache)
    """Cache for the files of a model across restarts of engines."""

    shape: ModelShape | None = None
    """Dimensions of the model. Omitted, they come from the built-in catalog of models, or else from
    the model's `config.json`, which a Job in the namespace reads."""

    @property
    def is_fetched(self) -> bool:
        """Return whether the files are downloaded to a claim before any engine starts."""
        return self.cache.type == "PersistentVolumeClaim" or is_stored(self.uri)


_INTERACTIVE = BUILT_IN_CLASSES.interactive
WireT = TypeVar("WireT", bound=Wire)


def _class_default(value: object) -> Any:
    """Return the default of a field that the class of the service decides.

    The CRD has none, so that objects do not store it.
    """
    return Field(default_factory=lambda: value)


def _filled(part: WireT, **defaults: object) -> WireT:
    """Return a part with defaults of the class, which do not count as set by the spec."""
    missing = {
        name: value
        for name, value in defaults.items()
        if name not in part.model_fields_set or isinstance(value, Wire)
    }
    filled = part.model_copy()
    filled.__dict__.update(missing)
    return filled


# Fewer than 15 tokens per second: slower than people read.
SLOW_ITL = timedelta(seconds=1) / 15


class Slo(Wire):
    """Latency objectives of the service."""

    ttft_p95: TtftTarget = _class_default(_INTERACTIVE.ttft_p95)
    """Objective for the 95th percentile of the time to first token (TTFT), for example `500ms`;
    omitted, that of `spec.class`."""

    itl_p95: ItlTarget = _class_default(_INTERACTIVE.itl_p95)
    """Objective for the 95th percentile of the inter-token latency (ITL), the time between two
    tokens of a stream, for example `33ms`; omitted, that of `spec.class`."""


class Context(Wire):
    """Expected length of prompts and answers."""

    max_model_len: Annotated[int, Field(ge=16, le=100_000_000)] | None = None
    """Maximum length of prompt plus answer, in tokens; omitted, 8192 or the model's maximum if
    smaller."""

    typical_input_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 1200
    """Typical length of a prompt; capacity and cost per token assume it."""

    typical_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 250
    """Typical length of an answer; capacity and cost per token assume it."""


class Placement(Wire):
    """AcceleratorPools that may be used."""

    pools: Annotated[tuple[DnsLabel, ...], Field(max_length=32)] = ()
    """Names of the AcceleratorPools that may be used; empty allows all of them."""


class ServicePlacement(Placement):
    """AcceleratorPools that may be used, and whether their GPUs may be partitioned."""

    mig: Literal["Auto", "Existing"] = "Existing"
    """`Auto` lets Tessera partition GPUs for the service in pools whose `spec.mig.mode` is `Auto`
    or `Propose`; `Existing` uses only slices that exist already."""

    isolation: Literal["Gpu", "Slice"] = "Slice"
    """`Gpu` reserves GPUs for this service: it runs on whole GPUs, or on slices that fill one.
    `Slice` shares a GPU with other services, with memory and multiprocessors of its own."""

    tiers: Tiers = _class_default(_INTERACTIVE.tiers)
    """Tiers of the AcceleratorPools that may be used; omitted, those of `spec.class`. `Spot` is
    rejected with class `Interactive`."""


class QueueTarget(Wire):
    """Target for waiting requests."""

    target: WaitingRequests = _class_default(_INTERACTIVE.queue_target)
    """Waiting requests per replica above which replicas are added; omitted, that of `spec.class`,
    or as many as a replica serves within `spec.slo.ttftP95` if these are fewer."""


class ActivityTarget(Wire):
    """Target for the share of time in which a slice is active (`DCGM_FI_PROF_GR_ENGINE_ACTIVE`)."""

    target: Amount = text_default("0.75")
    """Share between 0 and 1. Above it, replicas are added as soon as requests wait, also below the
    queue's target. It keeps no replica."""

    model_config = rules_config(
        rule(
            "double(self.target) > 0.0 && double(self.target) <= 1.0",
            "spec.scaling.activity.target is a share above 0 and at most 1, for example 0.75",
            ".target",
        )
    )


# The load history of the longest window of all services is asked of Prometheus at once.
_WindowDuration = Annotated[Duration, at_most(timedelta(hours=1))]


class ScaleUp(Wire):
    """Scale-up behavior."""

    stabilization_window: _WindowDuration = text_default("60s")
    """Window of past recommendations for scaling up, at most `1h`; the smallest one applies, so
    that a short spike adds no replicas."""

    pods: Annotated[int, Field(ge=1, le=1000)] = 2
    """Maximum number of replicas that can be added within `period`."""

    period: _WindowDuration = text_default("120s")
    """Period over which `pods` is counted, at most `1h`."""


class ScaleDown(Wire):
    """Scale-down behavior."""

    stabilization_window: _WindowDuration = text_default("300s")
    """Window of past recommendations for scaling down, at most `1h`; the largest one applies, so
    that a short lull removes no replicas."""


class Idle(Wire):
    """When a service has no replicas."""

    after: Annotated[Duration, between(timedelta(seconds=30), timedelta(hours=24))]
    """Time without any request after which all replicas are removed, between `30s` and `24h`."""


class ScalingPause(Wire):
    """A pause of the autoscaler."""

    by: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Who paused it and why, for those who find it paused."""


class ScalingSchedule(Wire):
    """Bounds of the autoscaler from certain times on."""

    cron: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Times from which the bounds apply, as five fields of cron: minute, hour, day of month, month
    and day of week, for example `0 8 * * 1-5`."""

    time_zone: TimeZoneName = "UTC"
    """IANA name of the time zone of `cron`, for example `Europe/Berlin`."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Minimum number of replicas; omitted, that of `spec.scaling`."""

    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Maximum number of replicas; omitted, that of `spec.scaling`."""


ScalingPolicyName = Literal["QueueAndActivity", "Capacity"]
ScalingMode = Literal["Native", "External", "HPA"]


class Scaling(Wire):
    """Bounds and targets of the autoscaler."""

    mode: ScalingMode = "Native"
    """`Native`: Tessera decides the number of replicas, and a `spec.replicas` fixes it. `External`:
    somebody else decides it by writing `spec.replicas`, such as a HorizontalPodAutoscaler or KEDA
    by `/scale`; within the bounds Tessera follows, and only recommends a number. `HPA`: the same,
    with a HorizontalPodAutoscaler that Tessera writes and that reads the recommendation; it needs
    the chart's value `hpa.enabled`, and an adapter for external metrics."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = _class_default(_INTERACTIVE.min_replicas)
    """Minimum number of replicas, even without load; omitted, that of `spec.class`, but at most
    `maxReplicas`. With 0 and `idle`, an idle service has no replica until a request waits for it at
    the gateway; while it is in use it has at least 1."""

    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 8
    """Maximum number of replicas."""

    schedules: Annotated[tuple[ScalingSchedule, ...], Field(max_length=16)] = ()
    """Bounds by time. From each of its times on, the bounds of a schedule replace `minReplicas` and
    `maxReplicas`, until the next time of another schedule; those of a single one always apply."""

    policy: ScalingPolicyName = "Capacity"
    """`Capacity` scales by arriving requests and the capacity of a replica within `spec.slo`;
    `queue` and `scaleUp` do not apply to it. `QueueAndActivity` scales by waiting requests and the
    activity of slices."""

    queue: QueueTarget = Field(default_factory=QueueTarget)
    """Target for waiting requests, the leading signal."""

    activity: ActivityTarget = Field(default_factory=ActivityTarget)
    """Target for the activity of slices, above which any waiting request adds replicas."""

    scale_up: ScaleUp = Field(default_factory=ScaleUp)
    """Scale-up behavior."""

    scale_down: ScaleDown = Field(default_factory=ScaleDown)
    """Scale-down behavior."""

    idle: Idle | None = None
    """When the service has no replicas, such as `{after: 10m}`; required with a `minReplicas` of 0,
    without effect otherwise."""

    paused: ScalingPause | None = None
    """Keeps the number of replicas, whatever the load, until this field is removed; budgets still
    apply."""

    @property
    def may_sleep(self) -> bool:
        """Return whether the service has no replicas while it is idle."""
        return self.min_replicas == 0 and self.idle is not None

    @property
    def may_sleep_at_times(self) -> bool:
        """Return whether it, or one of its schedules, lets the service have no replicas."""
        least = (self.min_replicas, *(schedule.min_replicas for schedule in self.schedules))
        return 0 in least and self.idle is not None

    @property
    def floor(self) -> int:
        """Return the minimum number of replicas of a service in use."""
        return max(1, self.min_replicas)

    model_config = rules_config(
        rule(
            "!has(self.minReplicas) || self.minReplicas > 0 || has(self.idle)",
            "spec.scaling.minReplicas 0 needs spec.scaling.idle, for example idle: {after: "
            "10m}; to stop the service, set spec.replicas to 0",
            ".minReplicas",
        ),
        rule(
            "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas (default: 8): "
            "lower minReplicas or raise maxReplicas",
            ".minReplicas",
        ),
    )


# Whose requests start a replica of a service that has none.
Wake = Literal["OwnTenant", "All"]


class Access(Wire):
    """Who may use the model through the gateway, and by which names."""

    tenants: Annotated[
        tuple[DnsSubdomain, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """TenantBudgets whose tenants may use the model, besides that of its namespace. The cost of its
    nodes stays with the tenant of its namespace."""

    public: bool = False
    """Whether every tenant may use the model."""

    require_charge: bool = False
    """Whether other tenants may use the model only if their TenantBudget has a limit of basis
    `Charge`."""

    wake: Wake = "OwnTenant"
    """Whose requests start a replica while `scaling.minReplicas: 0` lets the service have none:
    those of the tenant of its namespace, or those of all tenants that may use the model."""

    direct: bool = True
    """Whether pods of the namespace may reach the engines without the gateway; `false` closes them
    to everything but gateways and metrics."""

    aliases: Annotated[
        tuple[ServedName, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Other names that clients of the gateway may send as `model`."""

    shared_prefix_cache: bool = False
    """Whether tenants share the prefix cache of a model that several may use. It saves the time for
    a system prompt that all of them send; but the time of an answer, and `cached_tokens` in its
    usage, then tell a tenant whether another one has sent the same text."""

    rate_limits: RateLimitsSpec = Field(default_factory=RateLimitsSpec)
    """Limits of all requests for the model together, through all gateways."""


class Drain(Wire):
    """Graceful termination of replicas."""

    timeout: Annotated[Duration, at_most(timedelta(hours=24))] = text_default("60s")
    """Time that running streams have to finish before the replica is stopped, at most `24h`. Where
    GPUs are repartitioned and the pool has `mig.onDeadline: Evict`, at most its
    `mig.drainDeadline`."""

    move_streams: bool | None = None
    """Whether the gateway continues running streams on another replica instead of waiting for
    their end: those that say `x-tessera-resumable: true`. Others, and those of clients that reach
    an engine without the gateway, have `timeout`. `false` without a value."""


class EnvVarSource(Wire):
    """Source of the value of an environment variable."""

    secret_key_ref: SecretKeySelector
    """Key of a Secret in the service's namespace; only the engine's pod reads it."""


class EnvVar(Wire):
    """Environment variable of the engine."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the variable."""

    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Value of the variable; for secrets use `valueFrom`."""

    value_from: EnvVarSource | None = None
    """Source of the value, instead of `value`."""

    model_config = rules_config(
        rule(
            "has(self.value) != has(self.valueFrom)",
            "spec.podTemplate.env[] needs exactly one of value and valueFrom",
            ".value",
        )
    )


# Characters of a domain of 253, a slash, and a name of 63.
_LONGEST_KEY = 317


class PodTemplate(Wire):
    """Metadata and environment added to engine pods; what Tessera sets cannot be overridden."""

    labels: Annotated[dict[str, PodLabel], Field(max_length=32)] = Field(default_factory=dict)
    """Labels added to the pods, for example `cost-center`; keys with a prefix are those that the
    platform lists in `podTemplate.allowedKeys` of the chart."""

    annotations: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Annotations added to the pods; the same keys as labels, and
    `kubectl.kubernetes.io/restartedAt`."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=32)] = ()
    """Environment variables added to the engine."""

    model_config = rules_config(
        *(
            rule(
                f"!has(self.{field}) || self.{field}.all(key, size(key) <= {_LONGEST_KEY})",
                f"spec.podTemplate.{field}: a key has at most {_LONGEST_KEY} characters",
                f".{field}",
            )
            for field in ("labels", "annotations")
        )
    )


class InferenceServiceSpec(Wire):
    """Desired state of the service."""

    model: Model
    """The model, and the location of its files."""

    precision: Precision = Field(default_factory=Precision)
    """Precisions that the model may run in, besides that of its files."""

    service_class: Annotated[ServiceClass, Field(alias="class")] = "Interactive"
    """Who waits for the answers: with `Interactive` people, with `Standard` programs, with `Batch`
    no client. The class decides what fields are that the spec omits (`slo`, `scaling.minReplicas`,
    `scaling.queue.target`, `placement.tiers`), and who goes first where devices or places in a
    queue are too few."""

    slo: Slo = Field(default_factory=Slo)
    """Latency objectives of the service."""

    context: Context = Field(default_factory=Context)
    """Expected length of prompts and answers."""

    placement: ServicePlacement = Field(default_factory=ServicePlacement)
    """AcceleratorPools that may be used, and whether their GPUs may be partitioned."""

    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Fixed number of replicas, as set by `kubectl scale`. While it is set, `scaling` rests; remove
    it to give the number back. In modes `External` and `HPA`, the number that another autoscaler
    decides."""

    scaling: Scaling = Field(default_factory=Scaling)
    """Bounds and targets of the autoscaler, which rests while `replicas` is set; omitted, its
    defaults apply."""

    engine: EngineOptions = Field(default_factory=EngineOptions)
    """vLLM version, image and flags."""

    access: Access = Field(default_factory=Access)
    """Who may use the model through the gateway, and by which names. Other tenants get it by those
    that `spec.publishing` of its TenantBudget has for them."""

    drain: Drain = Field(default_factory=Drain)
    """Graceful termination of replicas."""

    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """Metadata and environment added to engine pods; what Tessera sets cannot be overridden."""

    rollout: Rollout = Field(default_factory=Rollout)
    """How a change of the service reaches its users."""

    @property
    def fixed_replicas(self) -> int | None:
        """Return the number that `replicas` fixes; None if an autoscaler decides it."""
        return self.replicas if self.scaling.mode == "Native" else None

    @property
    def sets_scaling(self) -> bool:
        """Return whether `scaling` has more than the defaults of the class."""
        return "scaling" in self.model_fields_set

    @model_validator(mode="after")
    def _take_class_defaults(self, info: ValidationInfo) -> Self:
        """Fill in what the class decides, by the table in the context or the built-in one."""
        classes: ServiceClasses = (info.context or {}).get("classes", BUILT_IN_CLASSES)
        defaults, scaling = classes.of(self.service_class), self.scaling
        # Assignment is refused, since specs are frozen, and would count the fields as set.
        self.__dict__.update(
            slo=_filled(self.slo, ttft_p95=defaults.ttft_p95, itl_p95=defaults.itl_p95),
            placement=_filled(self.placement, tiers=defaults.tiers),
            scaling=_filled(
                scaling,
                min_replicas=min(defaults.min_replicas, scaling.max_replicas),
                queue=_filled(scaling.queue, target=defaults.queue_target),
            ),
        )
        return self

    model_config = rules_config(
        rule(
            "!has(self.model.revision) || self.model.uri.startsWith('hf://')",
            "spec.model.revision applies to hf:// models only; every other location holds "
            "exactly one revision, so put it into spec.model.uri",
            ".model.revision",
        ),
        rule(
            "!has(self.model.cache) || !has(self.model.cache.type) || "
            "self.model.cache.type == 'None' || "
            "!(self.model.uri.startsWith('pvc://') || self.model.uri.startsWith('oci://'))",
            "spec.model.cache does not apply to pvc:// and oci:// models: the files of a claim or "
            "image are not downloaded, so remove it",
            ".model.cache",
        ),
        rule(
            "!has(self.model.shape) || !has(self.model.shape.activeParameters) || "
            "self.model.shape.activeParameters <= self.model.shape.parameters",
            "spec.model.shape.activeParameters is the part used per token and must not exceed "
            "spec.model.shape.parameters",
            ".model.shape.activeParameters",
        ),
        rule(
            "!has(self.access) || !has(self.access.aliases) || !has(self.model.adapters) || "
            "!self.model.adapters.exists(a, a.name in self.access.aliases)",
            "spec.access.aliases has the name of an adapter in spec.model.adapters: rename one",
            ".access.aliases",
        ),
        own_files_rule(),
    )


class InferenceService(Wire):
    """Model behind an OpenAI-compatible API, on the cheapest hardware that meets its latency
    objectives."""

    spec: InferenceServiceSpec
    """Desired state of the service."""

    status: InferenceServiceStatus | None = None
    """Observed state of the service; written by the operator only."""

    model_config = rules_config(
        name_rule(
            # Older API servers refuse a Service whose name begins with a digit.
            "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$",
            "metadata.name is also the name of the Service: use at most 63 lower-case letters, "
            "digits and hyphens, first a letter and no dots, such as llama-3-1-8b",
        )
    )
