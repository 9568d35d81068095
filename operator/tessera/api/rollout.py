"""How a change of an InferenceService reaches its users, and what is known of one that does."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import (
    Amount,
    DnsLabel,
    Duration,
    StatusText,
    TimeZoneName,
    Wire,
    between,
    rule,
    rules_config,
)

RolloutStrategyName = Literal["Rolling", "Gated"]
MAX_RECORDS = 16


class GateWindow(Wire):
    """Times at which a candidate may take the place of a replica that serves."""

    cron: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    """Start of each window, as five fields of cron, for example `0 2 * * *`."""

    duration: Annotated[Duration, between(timedelta(minutes=10), timedelta(hours=24))]
    """Length of each window, between `10m` and `24h`."""

    time_zone: TimeZoneName = "UTC"
    """IANA name of the time zone of `cron`."""


class SkipGate(Wire):
    """A change that goes on without a gate; it needs the verb `bypass` on `qualitygates`."""

    by: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Name of the user who writes this, as the API server knows it."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    """Why, for those who find it."""


class Rollout(Wire):
    """How a change of the service reaches its users."""

    strategy: RolloutStrategyName = "Rolling"
    """`Rolling`: each change replaces one replica at a time. `Gated`: one that can change answers
    is first tried on the suite of `gateRef`, on a replica that serves no users."""

    gate_ref: DnsLabel | None = None
    """QualityGate of the namespace."""

    gate_window: GateWindow | None = None
    """Times at which the candidate may take the place of a replica that `minReplicas` or the load
    needs, if no device is free otherwise; omitted, it never does."""

    rollback_window: Annotated[int, Field(ge=0, le=20)] = 3
    """Earlier versions that the service may go back to without a gate."""

    skip_gate: SkipGate | None = None
    """Lets the present change go on without a gate."""

    vectors_of: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Of an embedding service with a gate: the new model, as `spec.model.uri`, and behind `@` its
    revision if there is one. Another model waits until it stands here, since vectors that are
    stored do not compare with its own."""

    model_config = rules_config(
        rule(
            "!has(self.strategy) || self.strategy != 'Gated' || has(self.gateRef)",
            "spec.rollout.strategy Gated needs spec.rollout.gateRef, the name of a QualityGate",
            ".strategy",
        )
    )


class _RolloutStatusBase(Wire):
    """Base of the parts of the status, which ignores fields that a newer operator added."""

    model_config = ConfigDict(extra="ignore")


class BeforeAndAfter(_RolloutStatusBase):
    """A quantity of the stable version, and of the changed one."""

    before: Amount
    """Of the stable version."""

    after: Amount
    """Of the changed one."""


class RolloutRecord(_RolloutStatusBase):
    """How one change ended."""

    revision: str
    """ControllerRevision of the changed version."""

    digest: str
    """Digest of what can change answers in it."""

    baseline: str = ""
    """ControllerRevision that it was compared with; empty for a first version."""

    changes: Annotated[tuple[StatusText, ...], Field(max_length=16)] = ()
    """What differs, by field."""

    by: StatusText = ""
    """Field manager that wrote the change last, or who skipped the gate."""

    reason: str
    """Verdict, or why there was none."""

    message: StatusText = ""
    """The numbers that decided."""

    ended_at: datetime
    """When."""

    quality: BeforeAndAfter | None = None
    """Score from 0 to 1."""

    ttft_p95_seconds: BeforeAndAfter | None = None
    """95th percentile of the time to first token."""

    usd_per_million_tokens: BeforeAndAfter | None = None
    """Cost of a million output tokens."""

    usd_per_quality_adjusted_mtok: BeforeAndAfter | None = None
    """The same divided by the score."""

    skipped: bool = False
    """The gate was skipped; such a record stays for 30 days."""

    is_refused: bool = False
    """The version is not rolled out while the spec has it."""
