"""`BatchInference`: requests of a file, answered before a deadline, on spot capacity first."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.accelerator_pool import Tier
from tessera.api.engine_options import EngineOptions
from tessera.api.inference_service import Context, Model, Placement
from tessera.api.meta import (
    Amount,
    Conditions,
    DnsLabel,
    Duration,
    StatusText,
    Wire,
    at_most,
    between,
    matching,
    name_rule,
    rule,
    rules_config,
    text_default,
)
from tessera.api.model_files import ModelShape
from tessera.api.precision import Precision, own_files_rule

# A relative path on the claim; no component begins with a dot.
ClaimPath = Annotated[
    str,
    StringConstraints(max_length=512),
    matching(
        r"^[A-Za-z0-9_][A-Za-z0-9._=@+,-]*(/[A-Za-z0-9_][A-Za-z0-9._=@+,-]*)*$",
        "must be a path on the claim, such as jobs/2026-11/questions.jsonl: names that begin with "
        "a letter, a digit or _, of the letters A-Z and a-z, digits and . _ = @ + , - (no blanks, "
        "accents or other scripts), joined by /",
    ),
]

# A model as clients name it.
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]

# Pools without an available node that the status of a batch names.
MAX_FULL_POOLS = 64

SpotPolicy = Literal["Preferred", "Only", "Never"]
# The states of the OpenAI Batch API.
BatchState = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired"]
TERMINAL_STATES: frozenset[BatchState] = frozenset({"completed", "failed", "expired"})

_IMMUTABLE = (
    "claimName",
    "input",
    "output",
    "errors",
    "model",
    "service",
    "modelAliases",
    "precision",
    "context",
    "engine",
)


def _unchanged(field: str) -> str:
    """Return the CEL expression that an optional field has not changed."""
    return (
        f"has(self.{field}) == has(oldSelf.{field}) && "
        f"(!has(self.{field}) || self.{field} == oldSelf.{field})"
    )


class Spot(Wire):
    """Use of spot capacity, which the cloud provider can reclaim."""

    policy: SpotPolicy = "Preferred"
    """`Preferred`: spot while it is available, on-demand or reserved when the deadline requires it.
    `Only`: spot alone, even if the deadline is missed. `Never`: no spot."""


class BatchInferenceSpec(Wire):
    """Requests to answer, the model that answers them, and the deadline."""

    claim_name: DnsLabel
    """PersistentVolumeClaim in the same namespace that holds input and output. Its access mode must
    be ReadWriteMany, since attempts run on different nodes."""

    input: ClaimPath
    """Input file on the claim: JSONL in the format of the OpenAI Batch API, one request per row,
    for example `jobs/questions.jsonl`."""

    output: ClaimPath
    """Output file on the claim; it appears atomically, once the last row is done."""

    errors: ClaimPath | None = None
    """Error file on the claim, for rows without an answer; omitted, `output` with the extension
    `.errors.jsonl`."""

    model: Model | None = None
    """Model that answers the rows. Set exactly one of `model` and `service`."""

    service: DnsLabel | None = None
    """InferenceService in the same namespace whose model, precision, context and engine options are
    used. The batch runs engines of its own: the service's replicas get no additional requests."""

    model_aliases: Annotated[tuple[ModelName, ...], Field(max_length=16)] = ()
    """Names in the rows' `model` that also mean the model of this batch, for example
    `gpt-4o-mini` in a file for OpenAI. Rows that name any other model fail the input check."""

    precision: Precision = Field(default_factory=Precision)
    """Precisions that the model may run in, besides that of its files."""

    context: Context = Field(default_factory=Context)
    """Expected length of prompts and answers; the first estimate of the run time uses it."""

    placement: Placement = Field(default_factory=Placement)
    """AcceleratorPools that the batch may run on."""

    engine: EngineOptions = Field(default_factory=EngineOptions)
    """vLLM version, image and flags."""

    deadline: Annotated[Duration, between(timedelta(seconds=60), timedelta(days=30))] = (
        text_default("24h")
    )
    """Time from the creation of this object until all rows must be done, at least `60s`, since
    starting an engine alone takes longer, and at most `720h`. After it the batch expires; finished
    rows are retained."""

    spot: Spot = Field(default_factory=Spot)
    """Use of spot capacity, which the cloud provider can reclaim."""

    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a row is retried when the engine fails to answer it; after that it goes to
    `errors`."""

    ttl_after_finished: Annotated[Duration, at_most(timedelta(days=365))] = text_default("720h")
    """Time after the end of the batch, at most `8760h`, after which this object is deleted. The
    files on the claim stay."""

    suspend: bool = False
    """`true` stops the running attempt within seconds and starts no other; finished rows are
    retained. The deadline keeps running."""

    model_config = rules_config(
        rule(
            "has(self.model) != has(self.service)",
            "spec.model and spec.service both define the model: set exactly one of them",
            ".model",
        ),
        rule(
            "!has(self.service) || !(has(self.precision) || has(self.context) || has(self.engine))",
            "spec.precision, spec.context and spec.engine come from spec.service: remove "
            "them, or set spec.model instead",
            ".service",
        ),
        rule(
            "self.input != self.output && (!has(self.errors) || "
            "(self.errors != self.input && self.errors != self.output))",
            "spec.input, spec.output and spec.errors must be 3 different files",
            ".output",
        ),
        rule(
            "!has(self.model) || !has(self.model.revision) || self.model.uri.startsWith('hf://')",
            "spec.model.revision applies to hf:// models only; every other location holds "
            "exactly one revision, so put it into spec.model.uri",
            ".model",
        ),
        rule(
            "!has(self.model) || !has(self.model.cache) || !has(self.model.cache.type) || "
            "self.model.cache.type == 'None' || (self.model.uri.startsWith('hf://') ? "
            "has(self.model.revision) && self.model.revision.matches('^[0-9a-f]{40}$') : "
            "!self.model.uri.startsWith('pvc://') && !self.model.uri.startsWith('oci://'))",
            "spec.model.cache.type PersistentVolumeClaim downloads the files once and for all: "
            "write the commit, 40 hexadecimal digits, to spec.model.revision of an hf:// model; "
            "remove cache from pvc:// and oci:// models, whose files are not downloaded",
            ".model",
        ),
        rule(
            "!has(self.model) || !has(self.model.shape) || "
            "!has(self.model.shape.activeParameters) || "
            "self.model.shape.activeParameters <= self.model.shape.parameters",
            "spec.model.shape.activeParameters is the part used per token and must not exceed "
            "spec.model.shape.parameters",
            ".model",
        ),
        own_files_rule("!has(self.model) || "),
        *(
            rule(
                _unchanged(field),
                f"spec.{field} is immutable, since all rows are answered with the same "
                "settings: create another BatchInference with the new value",
            )
            for field in _IMMUTABLE
        ),
    )


class _BatchStatusBase(Wire):
    """Base of the parts of the status. It ignores unknown fields, so that the fencing number stays
    readable when a newer operator added fields."""

    model_config = ConfigDict(extra="ignore")


class BatchSettings(_BatchStatusBase):
    """What answers the rows of a batch on `spec.service`, as the service had it at the check."""

    model: Model
    """The model; `revision` is the commit that the service had resolved."""

    precision: Precision = Field(default_factory=Precision)
    """Precisions that it may run in."""

    context: Context = Field(default_factory=Context)
    """Lengths of requests."""

    engine: EngineOptions = Field(default_factory=EngineOptions)
    """The engine, with its version."""


class CheckStatus(_BatchStatusBase):
    """Result of the input validation; no GPU is used before it succeeds."""

    rows: int
    """Rows of the input."""

    url: str
    """API endpoint that all rows address."""

    input_tokens: int
    """Estimated tokens of all prompts."""

    answers: int = 0
    """Answers that all rows ask for: `n` of each prompt; 0 where an earlier version checked it."""

    files: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    """Output and errors file on the claim, where symbolic links of folders lead: no other
    unfinished batch may write them."""

    settings: BatchSettings | None = None
    """Model and settings of `spec.service` at the check: all rows are answered with these, also
    when the service has others later. None for a batch with a model of its own."""


class BatchModelStatus(_BatchStatusBase):
    """What Tessera read about the model of a batch."""

    shape: ModelShape
    """Dimensions that were read."""

    source: str
    """Where they were read."""


class UnavailablePool(_BatchStatusBase):
    """Pool without an available node for an attempt."""

    pool: str
    """Name of the AcceleratorPool."""

    at: datetime
    """When an attempt last waited for a node there without success."""


class AttemptStatus(_BatchStatusBase):
    """Latest attempt. Its number is a fencing token: only the attempt recorded here publishes
    results."""

    number: Annotated[int, Field(ge=1)]
    """Number of the attempt; it only increases and is never reused."""

    tier: Tier
    """How the nodes of its pool are bought."""

    pool: str
    """AcceleratorPool that it runs on; empty for an attempt without a GPU."""

    variant: str
    """Pool, instance type and precision in one name; empty for an attempt without a GPU, which
    publishes finished rows."""

    job: str
    """Name of its Job."""

    claims: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    """PersistentVolumeClaims that its model files are downloaded to, once for all services and
    batches of the namespace that use them; they are deleted with the last of these."""

    started_at: datetime
    """When the operator decided to start it."""

    previous_outcome: Annotated[StatusText, Field(max_length=1024)] = ""
    """How the previous attempt ended."""

    done_before: int = 0
    """Rows that were done when this attempt was started."""

    consecutive_failures: int = 0
    """Consecutive attempts, up to the latest finished one, that failed without a new finished
    row."""

    failing_since: datetime | None = None
    """When the first of these attempts failed."""

    input_changed: bool = False
    """The input is not the one that was checked. Until an attempt without a GPU finds that it is
    again, no row is sent."""

    budget_exceeded: bool = False
    """A limit of basis Charge has nothing left for a row. Until an attempt without a GPU finds that
    it has, no row is sent."""

    budget: Annotated[str, StringConstraints(max_length=12)] = ""
    """Digest of the limits and raises that had nothing left: the next attempt does not wait once
    they change."""

    consecutive_interruptions: int = 0
    """Consecutive attempts, up to the latest finished one, that lost their node before a new
    finished row."""

    failed_node: str = ""
    """Node on which it failed; the next attempt prefers another."""

    running_since: datetime | None = None
    """When its engine was first observed processing rows."""

    rows_at_start: int = 0
    """Rows that were done at `runningSince`."""

    finished_at: datetime | None = None
    """When it was observed or declared finished; absent while it runs."""

    retry_at: datetime | None = None
    """Earliest start of the next attempt; after failures it includes a backoff."""

    termination_message: Annotated[StatusText, Field(max_length=1024)] = ""
    """Why it ended."""

    unavailable_pools: Annotated[tuple[UnavailablePool, ...], Field(max_length=MAX_FULL_POOLS)] = ()
    """Pools without an available node; other pools are tried first for ten minutes."""

    @property
    def waits(self) -> bool:
        """Return whether the next attempt has no GPU, and looks whether rows may be sent."""
        return self.input_changed or self.budget_exceeded

    @property
    def has_engine(self) -> bool:
        return bool(self.variant)


class ProgressStatus(_BatchStatusBase):
    """Progress of the batch; at most 30 seconds old while rows move."""

    rows: int
    """Rows of the input."""

    completed: int = 0
    """Rows with an answer."""

    failed: int = 0
    """Rows with an error instead of an answer."""

    resent_rows: int = 0
    """Rows sent again because an attempt was lost while they were in flight."""

    resent_tokens: int = 0
    """Estimated tokens of the rows sent again."""

    prompt_tokens: int = 0
    """Prompt tokens processed."""

    output_tokens: int = 0
    """Output tokens generated."""

    at: datetime
    """When rows or tokens were last observed to increase."""

    speed_ratio: Amount | None = None
    """Measured speed divided by the speed predicted for the hardware."""

    startup_seconds: int | None = None
    """Measured seconds from the decision to start an attempt to its first rows."""

    @property
    def done(self) -> int:
        """Return the number of rows with an answer or an error."""
        return self.completed + self.failed


class BatchInferenceStatus(_BatchStatusBase):
    """Observed state of the batch; written by the operator only."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Conditions Accepted, Running and Complete."""

    state: BatchState = "validating"
    """State of the batch, as in the OpenAI Batch API."""

    reason: str = ""
    """Reason of the condition that currently decides the state."""

    message: Annotated[StatusText, Field(max_length=2048)] = ""
    """Explanation of the state, with numbers."""

    done: str = ""
    """Answered rows and all rows, and how many rows failed, for `kubectl get`."""

    deadline: datetime | None = None
    """When the batch expires."""

    model: BatchModelStatus | None = None
    """What Tessera read about `spec.model`; absent where the spec or the built-in catalog has its
    dimensions."""

    check: CheckStatus | None = None
    """Result of the input validation; no GPU is used before it succeeds."""

    attempt: AttemptStatus | None = None
    """Latest attempt. Its number is a fencing token: only the attempt recorded here publishes
    results."""

    progress: ProgressStatus | None = None
    """Progress of the batch; at most 30 seconds old while rows move."""


class BatchInference(Wire):
    """Requests of a file that a model answers before a deadline, on spot capacity first."""

    spec: BatchInferenceSpec
    """Requests to answer, the model that answers them, and the deadline."""

    status: BatchInferenceStatus | None = None
    """Observed state of the batch; written by the operator only."""

    model_config = rules_config(
        name_rule(
            "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
            "metadata.name is also a label of Jobs and part of their names: use at most 63 "
            "lower-case letters, digits and hyphens and no dots, such as nightly-2026-11",
        )
    )
