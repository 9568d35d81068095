"""`BatchInference`: rows of a file, answered by a deadline, on spot hardware first."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.accelerator_pool import Tier
from tessera.api.inference_service import Context, EngineOptions, Model, Placement, Precision
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

# A file on the claim: relative, and no part of it begins with a dot.
ClaimPath = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._=@+,-]*(/[A-Za-z0-9_][A-Za-z0-9._=@+,-]*)*$",
        max_length=512,
    ),
]

SpotPolicy = Literal["Preferred", "Only", "Never"]
# The words of OpenAI's batch API.
BatchState = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired"]
TERMINAL_STATES: frozenset[BatchState] = frozenset({"completed", "failed", "expired"})

_IMMUTABLE = (
    "claimName",
    "input",
    "output",
    "errors",
    "model",
    "service",
    "precision",
    "context",
    "engine",
)


def _unchanged(field: str) -> str:
    """CEL: an optional field is as it was."""
    return (
        f"has(self.{field}) == has(oldSelf.{field}) && "
        f"(!has(self.{field}) || self.{field} == oldSelf.{field})"
    )


class Spot(Wire):
    """Whether hardware is used that the cloud may take back."""

    policy: SpotPolicy = "Preferred"
    """`Preferred`: spot while it is to be had, on-demand or reserved when the deadline needs it.
    `Only`: never anything else, even if the deadline is missed. `Never`: no spot."""


class BatchInferenceSpec(Wire):
    """What is to be answered, by which model, until when."""

    claim_name: DnsLabel
    """Name of the PersistentVolumeClaim of the same namespace that holds input and output. It has
    to be ReadWriteMany, since attempts run on different nodes."""

    input: ClaimPath
    """The rows: a JSONL file on the claim in the format of OpenAI's batch API, for example
    `jobs/questions.jsonl`."""

    output: ClaimPath
    """Where the answers go; the file appears at once and whole when the last row is done."""

    errors: ClaimPath | None = None
    """Where rows go that got no answer; without it `output` with `.errors.jsonl` in place of its
    ending."""

    model: Model | None = None
    """The model that answers. Give either this or `service`."""

    service: DnsLabel | None = None
    """An InferenceService of the same namespace whose model, precision, context and engine options
    are used, by an engine of the batch's own: the service's replicas get no more work."""

    precision: Precision = Field(default_factory=Precision)
    """In which precisions the model may run besides the one of its files."""

    context: Context = Field(default_factory=Context)
    """How long prompts and answers are; the estimate of the time needed begins with it."""

    placement: Placement = Field(default_factory=Placement)
    """Where the batch may run."""

    engine: EngineOptions = Field(default_factory=EngineOptions)
    """The vLLM that answers."""

    deadline: Duration = text_default("24h")
    """Time from the creation of this object until everything has to be done. Then the batch
    expires, and the rows that were finished are kept."""

    spot: Spot = Field(default_factory=Spot)
    """Whether hardware is used that the cloud may take back."""

    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a row is sent again when the engine fails to answer it; afterwards it goes to
    `errors`."""

    suspend: bool = False
    """`true` ends the running attempt within seconds and starts no other; finished rows stay. The
    deadline goes on."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "has(self.model) != has(self.service)",
                "spec.model and spec.service both say what answers: give exactly 1 of them",
                ".model",
            ),
            rule(
                "!has(self.service) || "
                "!(has(self.precision) || has(self.context) || has(self.engine))",
                "spec.precision, spec.context and spec.engine are those of spec.service: keep 0 of "
                "them beside it, or name the model in spec.model",
                ".service",
            ),
            rule(
                "self.input != self.output && (!has(self.errors) || "
                "(self.errors != self.input && self.errors != self.output))",
                "spec.input, spec.output and spec.errors have to be 3 different files",
                ".output",
            ),
            rule(
                "duration(self.deadline) >= duration('60s')",
                "spec.deadline has to be at least 60s; starting an engine alone takes longer",
                ".deadline",
            ),
            rule(
                "!has(self.model) || !has(self.model.revision) || "
                "self.model.uri.startsWith('hf://')",
                "spec.model.revision names a branch of an hf:// model; a pvc:// path holds exactly "
                "1 revision, so put it into spec.model.uri",
                ".model",
            ),
            rule(
                "!has(self.model) || !has(self.model.cache) || !has(self.model.cache.type) || "
                "self.model.cache.type == 'None'",
                "spec.model.cache is for the 1 claim of a service; a batch fetches its model "
                "itself, so leave it out",
                ".model",
            ),
            rule(
                "!has(self.model) || !has(self.model.shape) || "
                "!has(self.model.shape.activeParameters) || "
                "self.model.shape.activeParameters <= self.model.shape.parameters",
                "spec.model.shape.activeParameters is the part used for 1 token and cannot exceed "
                "spec.model.shape.parameters",
                ".model",
            ),
            *(
                rule(
                    _unchanged(field),
                    f"spec.{field} cannot change, since all rows are answered alike; make 1 more "
                    "BatchInference with the other value",
                )
                for field in _IMMUTABLE
            ),
        )
    )


class _BatchStatusBase(Wire):
    """A part of the status. It holds the fence, so what a newer operator added does not make the
    rest unreadable."""

    model_config = ConfigDict(extra="ignore")


class CheckStatus(_BatchStatusBase):
    """What the check of the input found; no GPU is used before it passed."""

    rows: int
    """Rows of the input."""

    url: str
    """The endpoint that all rows ask."""

    input_tokens: int
    """Tokens of all prompts, estimated."""


class UnavailablePool(_BatchStatusBase):
    """A pool in which an attempt found no node."""

    pool: str
    """The AcceleratorPool."""

    at: datetime
    """When it was last waited for in vain."""


class AttemptStatus(_BatchStatusBase):
    """The last attempt. Its number is the fence: only the attempt that stands here publishes."""

    number: Annotated[int, Field(ge=1)]
    """Counts up and is never used twice."""

    tier: Tier
    """How its hardware is bought."""

    pool: str
    """The AcceleratorPool."""

    variant: str
    """Pool, hardware shape and precision."""

    job: str
    """Name of its Job."""

    started_at: datetime
    """When it was decided."""

    previous_outcome: Annotated[str, Field(max_length=1024)] = ""
    """How the one before ended."""

    done_before: int = 0
    """Rows that were done by then."""

    consecutive_failures: int = 0
    """Attempts in a row, up to the last one that ended, that failed without a new row."""

    failing_since: datetime | None = None
    """When the first of these failed."""

    consecutive_interruptions: int = 0
    """Attempts in a row, likewise, whose hardware was taken from them before a new row."""

    running_since: datetime | None = None
    """When its engine was first seen at work on rows."""

    rows_at_start: int = 0
    """Rows that were done by then."""

    finished_at: datetime | None = None
    """When it was found or declared over; absent while it lasts."""

    retry_at: datetime | None = None
    """When the next one may begin; after failures it waits."""

    termination_message: Annotated[str, Field(max_length=1024)] = ""
    """Why it ended."""

    unavailable_pools: tuple[UnavailablePool, ...] = ()
    """Pools that were waited for in vain; others are tried first for ten minutes."""


class ProgressStatus(_BatchStatusBase):
    """How far the batch is; at most half a minute old while an attempt runs."""

    rows: int
    """Rows of the input."""

    completed: int = 0
    """Rows that have an answer."""

    failed: int = 0
    """Rows that have an error instead."""

    resent_rows: int = 0
    """Rows that were sent again because an attempt was lost while they were in flight."""

    resent_tokens: int = 0
    """Tokens of these, estimated."""

    prompt_tokens: int = 0
    """Tokens read."""

    output_tokens: int = 0
    """Tokens written."""

    at: datetime
    """When this was known."""

    speed_ratio: Amount | None = None
    """Measured speed as a share of the one that was expected of the hardware."""

    startup_seconds: int | None = None
    """Measured time from the decision for an attempt to its first rows."""

    @property
    def done(self) -> int:
        """Rows that need nothing more."""
        return self.completed + self.failed


class BatchInferenceStatus(_BatchStatusBase):
    """What became of it; written by the operator alone."""

    observed_generation: int = 0
    """The generation of the spec that this status speaks about."""

    conditions: Conditions = ()
    """Accepted, Running and Complete."""

    state: BatchState = "validating"
    """Where the batch is, in the words of OpenAI's batch API."""

    reason: str = ""
    """Why it is there, in one word: that of the condition that decides now."""

    message: Annotated[str, Field(max_length=2048)] = ""
    """Why it is there, with the numbers behind it."""

    done: str = ""
    """Finished and all rows in one word, for `kubectl get`."""

    deadline: datetime | None = None
    """When the batch expires."""

    check: CheckStatus | None = None
    """What the check of the input found; no GPU is used before it passed."""

    attempt: AttemptStatus | None = None
    """The last attempt. Its number is the fence: only the attempt that stands here publishes."""

    progress: ProgressStatus | None = None
    """How far the batch is; at most half a minute old while an attempt runs."""


class BatchInference(Wire):
    """Rows of a file that a model answers by a deadline, on spot hardware first."""

    spec: BatchInferenceSpec
    """What is to be answered, by which model, until when."""

    status: BatchInferenceStatus | None = None
    """What became of it; written by the operator alone."""
