"""`InferenceService`: a model that somebody wants served."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import (
    Amount,
    Conditions,
    DnsLabel,
    Duration,
    Wire,
    rule,
    text_default,
    with_rules,
)
from tessera.api.model_files import Adapters, Cache, CacheStatus, ModelUri
from tessera.api.recipe import PodTemplateVersionStatus

# The value of a label, as Kubernetes takes it.
PodLabel = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63),
]


SpeedSource = Literal["Measured", "Table", "Roofline"]


class ModelShape(Wire):
    """The numbers that decide memory and speed, as the model's `config.json` gives them."""

    parameters: Annotated[int, Field(ge=1, le=10**13)]
    """Number of weights, all experts included."""

    active_parameters: Annotated[int, Field(ge=1, le=10**13)] | None = None
    """Weights used for one token; only a mixture of experts has fewer than `parameters`."""

    layers: Annotated[int, Field(ge=1, le=1024)]
    """`num_hidden_layers`."""

    attention_heads: Annotated[int, Field(ge=1, le=1024)]
    """`num_attention_heads`; tensor parallelism divides them."""

    kv_heads: Annotated[int, Field(ge=1, le=1024)]
    """`num_key_value_heads`: with grouped-query attention fewer than the attention heads."""

    head_dim: Annotated[int, Field(ge=1, le=4096)]
    """`head_dim`: the width of one attention head."""

    hidden_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """`hidden_size`: the width of what layers hand on and tensor-parallel devices exchange; absent,
    it is that of all attention heads."""

    max_position_embeddings: Annotated[int, Field(ge=1, le=100_000_000)]
    """`max_position_embeddings`: the longest context that the model was made for, in tokens."""

    bits_per_weight: Literal[4, 8, 16, 32] = 16
    """Bits of one stored weight."""

    quantization: Literal["fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"] | None = None
    """How the files are quantised, as `quantization_config` says; absent when they are not. What
    `compressed-tensors` holds is told by its weights."""

    group_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """So many quantised weights share one scale; absent when there is one for a whole row."""

    unquantized_parameters: Annotated[int, Field(ge=0, le=10**13)] | None = None
    """Weights that keep 16 bits when the others are quantised: embeddings, output layer, norms,
    routers. Absent, all are taken for quantised."""

    weight_bytes: Annotated[int, Field(ge=1, le=10**14)] | None = None
    """Bytes of all files of a quantised model, where an index tells them."""

    embedding_parameters: Annotated[int, Field(ge=0, le=10**13)] | None = None
    """Weights of the input embedding where the output layer has its own: a step reads only the
    rows of its tokens."""

    experts: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Experts of a layer in a mixture, shared ones not counted."""

    experts_per_token: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Of these, so many compute one token."""

    latent_dim: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """With latent attention, `kv_lora_rank` + `qk_rope_head_dim`: what a layer keeps of one token
    instead of keys and values of each head; tensor parallelism does not divide it."""

    sliding_window: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Tokens that layers with a sliding window look back."""

    sliding_layers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """How many layers have that window; the others keep every token."""


class SecretKeySelector(Wire):
    """One key of a Secret in the service's namespace."""

    name: DnsLabel
    """Name of the Secret."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = "token"
    """Key within the Secret."""


class Model(Wire):
    """Which model, and where its files are."""

    uri: ModelUri
    """Where the weights are: `hf://org/name` on the Hugging Face hub, `pvc://claim/path` on a
    PersistentVolumeClaim of the same namespace, or `oci://registry/repository:tag`, an image whose
    root holds the files; nodes keep it as they keep other images."""

    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=128)] | (
        None
    ) = None
    """Branch, tag or commit of an `hf://` model; without it `main`. It is resolved once, and the
    commit stands in `status.model.revision`: a restart loads the same weights."""

    served_name: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)]
        | None
    ) = None
    """The name that clients put into `model`; without it the name of the service."""

    token_secret_ref: SecretKeySelector | None = None
    """A Secret with the hub token; it is mounted into the engine's pod and read nowhere else."""

    adapters: Adapters = ()
    """LoRA adapters that every replica serves beside the model, each under its own name."""

    cache: Cache = Field(default_factory=Cache)
    """Where the files of an `hf://` model are kept between the starts of engines."""

    shape: ModelShape | None = None
    """The numbers that decide memory and speed. Without it those of a model that Tessera knows, or
    else what its `config.json` says, which a Job in the namespace reads."""


class PrecisionVariant(Wire):
    """One precision in which the answers are acceptable."""

    precision: Literal["fp8"]
    """`fp8`: the engine quantises the weights while loading (native on Hopper, weight-only on
    Ampere)."""


class Precision(Wire):
    """In which precisions the model may run besides the one of its files."""

    variants: Annotated[tuple[PrecisionVariant, ...], Field(max_length=8)] = ()
    """Allowed besides the checkpoint's own precision; the cheapest that fits is taken. Nothing that
    changes answers is used unless it is listed here."""


class Slo(Wire):
    """The latency that users were promised."""

    ttft_p95: Duration = text_default("1s")
    """95 % of requests see their first token within this time."""

    itl_p95: Duration = text_default("33ms")
    """95 % of the gaps between two tokens of a stream are at most this long."""


class Context(Wire):
    """How long prompts and answers are."""

    max_model_len: Annotated[int, Field(ge=16, le=100_000_000)] | None = None
    """Longest prompt plus answer, in tokens; without it 8192, or the model's limit if smaller."""

    typical_input_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 1200
    """Length of a usual prompt; capacity and cost per token assume it."""

    typical_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 250
    """Length of a usual answer; capacity and cost per token assume it."""


class Placement(Wire):
    """Where the service may run."""

    pools: Annotated[tuple[DnsLabel, ...], Field(max_length=32)] = ()
    """Names of the AcceleratorPools that may be used; empty means any."""


class ServicePlacement(Placement):
    """Where the service may run, and what may be cut for it."""

    mig: Literal["Auto", "Existing"] = "Existing"
    """`Auto` lets Tessera cut slices for the service in pools whose `spec.mig.mode` is `Auto` or
    `Propose`; `Existing` takes what is cut already."""

    isolation: Literal["Gpu", "Slice"] = "Slice"
    """`Gpu` keeps every other service off the GPUs of this one: it runs on whole GPUs, or on slices
    that fill one. `Slice` shares a GPU, with memory and multiprocessors of its own."""


class QueueTarget(Wire):
    """The goal for requests that wait in the engines."""

    target: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Waiting requests per replica above which replicas are added."""


class ActivityTarget(Wire):
    """The goal for the share of time in which a slice works (`DCGM_FI_PROF_GR_ENGINE_ACTIVE`)."""

    target: Amount = text_default("0.75")
    """Share between 0 and 1; above it no replica is removed, and replicas are added only while
    something waits."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "double(self.target) > 0.0 && double(self.target) <= 1.0",
                "spec.scaling.activity.target is a share above 0 and at most 1, for example 0.75",
                ".target",
            )
        )
    )


class ScaleUp(Wire):
    """How fast replicas are added."""

    stabilization_window: Duration = text_default("60s")
    """Replicas are added only up to the smallest wish of this time, so that a spike passes."""

    pods: Annotated[int, Field(ge=1, le=1000)] = 2
    """At most this many more replicas than one period ago."""

    period: Duration = text_default("120s")
    """The period of `pods`."""


class ScaleDown(Wire):
    """How fast replicas are removed."""

    stabilization_window: Duration = text_default("300s")
    """Replicas are removed only down to the largest wish of this time, so that a lull passes."""


class Scaling(Wire):
    """Bounds and goals of the autoscaler."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Replicas kept even without any load."""

    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 8
    """Never more replicas than this."""

    queue: QueueTarget = Field(default_factory=QueueTarget)
    """The leading signal: requests that wait."""

    activity: ActivityTarget = Field(default_factory=ActivityTarget)
    """The guarding signal: how busy the slices are."""

    scale_up: ScaleUp = Field(default_factory=ScaleUp)
    """How fast replicas are added."""

    scale_down: ScaleDown = Field(default_factory=ScaleDown)
    """How fast replicas are removed."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "self.minReplicas <= self.maxReplicas",
                "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas "
                "(defaults: 2 and 8); lower the one or raise the other",
                ".minReplicas",
            )
        )
    )


class EngineOptions(Wire):
    """The vLLM that serves the model."""

    version: Annotated[
        str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", max_length=32)
    ] = "0.32.0"
    """Version of vLLM; flags are checked against the table of that version."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Image to run instead of `vllm/vllm-openai:v<version>`, for example from a mirror."""

    extra_args: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...],
        Field(max_length=64),
    ] = ()
    """Further flags of `vllm serve`. Flags that Tessera sets itself are refused, naming the field
    that sets them."""


class Drain(Wire):
    """How a replica leaves."""

    timeout: Duration = text_default("60s")
    """How long running streams may take to end before the replica stops anyway."""


class EnvVarSource(Wire):
    """Where the value of a variable comes from."""

    secret_key_ref: SecretKeySelector
    """One key of a Secret in the service's namespace; read in the engine's pod only."""


class EnvVar(Wire):
    """One variable of the engine's environment."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the variable."""

    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Its value; for what is secret use `valueFrom`."""

    value_from: EnvVarSource | None = None
    """Where its value comes from, instead of `value`."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "has(self.value) != has(self.valueFrom)",
                "a variable of spec.podTemplate.env has exactly 1 of value and valueFrom",
                ".value",
            )
        )
    )


class PodTemplate(Wire):
    """What is added to the pods of the engines; nothing that Tessera sets can be replaced."""

    labels: Annotated[dict[str, PodLabel], Field(max_length=32)] = Field(default_factory=dict)
    """Labels added to the pods, for example for a cost centre."""

    annotations: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Annotations added to the pods."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=32)] = ()
    """Variables added to the engine's environment."""


class InferenceServiceSpec(Wire):
    """What the model's owner wants."""

    model: Model
    """Which model, and where its files are."""

    precision: Precision = Field(default_factory=Precision)
    """In which precisions the model may run besides the one of its files."""

    service_class: Annotated[Literal["Interactive", "Standard", "Batch"], Field(alias="class")] = (
        "Interactive"
    )
    """Who waits for the answers. `Interactive`: a person, so no pool of tier Spot is ever used, and
    naming one is refused. `Standard`: a program; spot is not used for replicas that always run.
    `Batch`: nobody; spot is used where it is the cheapest."""

    slo: Slo = Field(default_factory=Slo)
    """The latency that users were promised."""

    context: Context = Field(default_factory=Context)
    """How long prompts and answers are."""

    placement: ServicePlacement = Field(default_factory=ServicePlacement)
    """Where the service may run."""

    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """A fixed number of replicas, as `kubectl scale` sets it; excludes `scaling`."""

    scaling: Scaling | None = None
    """Bounds and goals of the autoscaler; without it, and without `replicas`, its defaults hold."""

    engine: EngineOptions = Field(default_factory=EngineOptions)
    """The vLLM that serves the model."""

    drain: Drain = Field(default_factory=Drain)
    """How a replica leaves."""

    pod_template: PodTemplate = Field(default_factory=PodTemplate)
    """What is added to the pods of the engines; nothing that Tessera sets can be replaced."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "!(has(self.replicas) && has(self.scaling))",
                "spec.replicas excludes spec.scaling: either remove spec.scaling and keep 1 fixed "
                "number, or bound the autoscaler by spec.scaling.minReplicas and maxReplicas",
                ".replicas",
            ),
            rule(
                "!has(self.model.revision) || self.model.uri.startsWith('hf://')",
                "spec.model.revision names a branch of an hf:// model; a pvc:// path holds exactly "
                "1 revision, so put it into spec.model.uri",
                ".model.revision",
            ),
            rule(
                "!has(self.model.cache) || !has(self.model.cache.type) || "
                "self.model.cache.type == 'None' || self.model.uri.startsWith('hf://')",
                "spec.model.cache is for hf:// models; the files of 1 claim or image need not be "
                "fetched, so leave it out",
                ".model.cache",
            ),
            rule(
                "!has(self.model.shape) || !has(self.model.shape.activeParameters) || "
                "self.model.shape.activeParameters <= self.model.shape.parameters",
                "spec.model.shape.activeParameters is the part used for 1 token and cannot exceed "
                "spec.model.shape.parameters",
                ".model.shape.activeParameters",
            ),
        )
    )


class ModelStatus(Wire):
    """Which weights the engines load, and what else was found out about the model."""

    uri: str
    """The model for which this was found out."""

    requested_revision: str | None = None
    """The revision that the spec named then."""

    revision: str | None = None
    """The commit that the engines load; absent while the revision is used as given."""

    reason: str | None = None
    """Why, in one word; absent while nothing was found out."""

    message: str | None = None
    """Why, with what the hub said."""

    observed_update: str | None = None
    """The value of the annotation `tessera.dev/update` for which it was found out."""

    shape: ModelShape | None = None
    """The shape that was read; absent where the spec gives it or Tessera knows it."""

    source: str | None = None
    """Where the shape was read."""

    cache: CacheStatus | None = None
    """How far its files are, with `spec.model.cache`."""


class VariantStatus(Wire):
    """The hardware and the form in which the model runs."""

    name: str
    """Name of the variant, part of its Deployment's name."""

    pool: str
    """The AcceleratorPool."""

    product: str
    """The GPU product, as GPU feature discovery names it."""

    profile: str | None = None
    """The MIG profile; absent on whole GPUs."""

    gpus: int
    """Devices of one replica: 1 for a slice, the tensor parallel size for whole GPUs."""

    precision: str
    """`checkpoint`, or the precision chosen among `spec.precision.variants`."""

    max_model_len: int
    """Longest prompt plus answer in tokens that the engine accepts."""

    max_num_seqs: int
    """Requests that one replica works on at a time; more wait."""

    max_num_batched_tokens: int
    """Tokens of one engine step."""

    kv_cache_tokens: int
    """Tokens that the planned KV cache of one replica holds."""

    tokens_per_second: int
    """Output tokens per second that one replica is expected to give at the promised latency."""

    source: SpeedSource
    """Where the speed comes from: `measured` was seen in this cluster; `table` is computed with
    shares of the peaks that were fitted on published measurements of this GPU family; `roofline`
    is computed with shares that are usual, nothing alike was measured."""


class CostStatus(Wire):
    """What the service costs now."""

    per_hour: Amount
    """Price of all wanted replicas for an hour; a slice counts with its billing weight."""

    per_million_tokens: Amount | None = None
    """Price of a million output tokens if the service runs at its expected load."""

    currency: str
    """Currency of both."""

    assumed_load: str
    """The load that the price per token assumes."""


class PredictedAndMeasured(Wire):
    """A quantity as it was predicted, and as it was measured."""

    predicted: Amount
    """As the speed model has it."""

    measured: Amount
    """As the engines told it."""


class SpeedStatus(Wire):
    """How fast the engines are, beside what was predicted.

    Written when at least 100 requests within five minutes say something new, and no more often than
    that; the metrics have what moves in between.
    """

    model: str
    """The model that was measured."""

    variant: str
    """The variant that it was measured on."""

    reason: str
    """The reason of the condition SpeedAsPredicted."""

    itl_ms: PredictedAndMeasured
    """Mean time between two tokens of an answer in milliseconds, for the load that was seen."""

    tokens_per_second: PredictedAndMeasured
    """Output tokens a second of the replicas that take requests: what they can give at the promised
    latency, and what they gave."""

    kv_cache_tokens: PredictedAndMeasured | None = None
    """Tokens that the KV cache of one replica holds, as planned and as its engine says."""

    ratio: Amount
    """Measured by predicted time between tokens."""

    requests: Annotated[int, Field(ge=0)]
    """Requests behind it."""

    at: datetime
    """When; it speaks of the five minutes before."""


class TenancyStatus(Wire):
    """How the tenant of the service stands."""

    budget: str | None = None
    """The TenantBudget that names the namespace of the service."""

    reason: str
    """The reason of its condition WithinBudget, or `NoBudget`."""


class ReplicaChange(Wire):
    """A moment at which the number of replicas changed."""

    at: datetime
    """When."""

    replicas: int
    """To how many."""


class ScalingStatus(Wire):
    """The last decision of the autoscaler."""

    desired_replicas: int
    """How many replicas are wanted."""

    reason: str
    """Why, in one word."""

    message: str
    """Why, with the readings behind it."""

    recent_changes: Annotated[tuple[ReplicaChange, ...], Field(max_length=16)] = ()
    """Recent changes, which a restarted operator needs in order to keep the step limit."""


class ReplacementStatus(Wire):
    """A replica that was replaced since its engine stood still."""

    at: datetime
    """When."""

    pod: str
    """Which one."""

    uid: str
    """The uid of that pod."""

    message: str
    """What was seen of it."""


class InferenceServiceStatus(Wire):
    """What became of it; written by the operator alone."""

    observed_generation: int = 0
    """The generation of the spec that this status speaks about."""

    conditions: Conditions = ()
    """Accepted, Placed, Progressing, Ready, UpdateAvailable and SpeedAsPredicted."""

    replicas: int = 0
    """Replicas that exist."""

    ready_replicas: int = 0
    """Replicas that take requests."""

    selector: str = ""
    """Label selector of the replicas, for `kubectl scale` and autoscalers."""

    endpoint: str | None = None
    """Base URL of the OpenAI-compatible API inside the cluster."""

    variant: VariantStatus | None = None
    """The hardware and the form in which the model runs."""

    model: ModelStatus | None = None
    """Which weights the engines load, and what else was found out about the model."""

    pod_template_version: PodTemplateVersionStatus | None = None
    """By what the replicas were made besides the spec; an upgrade of Tessera leaves it as it is."""

    cost: CostStatus | None = None
    """What the service costs now."""

    speed: SpeedStatus | None = None
    """How fast the engines are, beside what was predicted."""

    tenant: TenancyStatus | None = None
    """How the tenant of the service stands."""

    scaling: ScalingStatus | None = None
    """The last decision of the autoscaler."""

    replacement: ReplacementStatus | None = None
    """The last replica that was replaced since its engine stood still."""


class InferenceService(Wire):
    """A model behind an OpenAI-compatible API, on the cheapest hardware that keeps the promise."""

    spec: InferenceServiceSpec
    """What the model's owner wants."""

    status: InferenceServiceStatus | None = None
    """What became of it; written by the operator alone."""
