"""`QualityGate`: a suite of prompts on which changes of a model are tried before rollout."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from tessera.api.meta import (
    Amount,
    Conditions,
    DnsLabel,
    Duration,
    SignedAmount,
    StatusText,
    Wire,
    amount_between,
    between,
    rule,
    rules_config,
    text_default,
)

# Of a suite, whatever its rows say.
MAX_STRATA = 16
MAX_VERDICTS = 16
StratumName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Path = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Share = Annotated[Amount, amount_between("0", "1")]
# Points of 100, negative for a gain.
LossPoints = Annotated[
    SignedAmount, WithJsonSchema({"type": "string", "pattern": r"^-?[0-9]{1,3}(\.[0-9]{1,9})?$"})
]
GateRequirement = Literal["NotWorse", "Proven"]


class ConfigMapFile(Wire):
    """File in a ConfigMap of the namespace."""

    name: DnsLabel
    """Name of the ConfigMap."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = (
        "suite.jsonl"
    )
    """Key of the file."""


class ClaimFile(Wire):
    """File on a PersistentVolumeClaim of the namespace."""

    claim_name: DnsLabel
    """Name of the claim."""

    path: Path
    """Path of the file on the volume."""


class Suite(Wire):
    """Prompts with what a good answer to each has to contain, a JSON object a line."""

    config_map: ConfigMapFile | None = None
    """Suite in a ConfigMap, which holds at most 1 MiB."""

    claim: ClaimFile | None = None
    """Suite on a volume."""

    digest: Digest | None = None
    """SHA-256 of the file, as `tessera gate pin` writes it: another file judges nothing."""

    prompts: Annotated[
        dict[StratumName, Annotated[int, Field(ge=1, le=1_000_000)]], Field(max_length=MAX_STRATA)
    ] = Field(default_factory=dict)
    """Prompts of each stratum, as `tessera gate pin` writes them."""

    model_config = rules_config(
        rule(
            "has(self.configMap) != has(self.claim)",
            "spec.suite needs exactly one of configMap and claim",
        ),
        rule(
            "!has(self.prompts) || self.prompts.all(name, name.matches('^[-a-z0-9]{1,40}$'))",
            "spec.suite.prompts: a stratum is named by at most 40 lower-case letters, digits and "
            "hyphens",
            ".prompts",
        ),
    )


class Judge(Wire):
    """Model that compares answers for which there is no exact scorer."""

    service: DnsLabel
    """InferenceService of the namespace that judges; never the one that is tried."""


class AnswerStorage(Wire):
    """Claim with the answers and their scores, which the gate owns."""

    storage_class_name: DnsLabel | None = None
    """StorageClass of the claim; omitted, the cluster's default."""

    size: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,3}Gi$", max_length=6)] = "1Gi"
    """Size of the claim."""


class QualityGateSpec(Wire):
    """Suite, margins and what a change has to prove."""

    suite: Suite
    """Prompts with what a good answer to each has to contain."""

    judge: Judge | None = None
    """Model that scores rows whose scorer is `judge`."""

    max_drop_points: Annotated[Amount, amount_between("0.1", "50")] = text_default("2")
    """Loss of the total score, in points of 100, that a change may have."""

    max_relative_drop: Share = text_default("0.05")
    """Share of the baseline's score that a stratum may lose."""

    min_prompts: Annotated[int, Field(ge=2, le=100_000)] = 30
    """Prompts from which on a stratum is judged by itself; smaller ones are judged together.
    Prompts of one group count once."""

    require: GateRequirement = "NotWorse"
    """`NotWorse`: a change goes on unless a loss is proven. `Proven`: it goes on only if the suite
    proves that the loss is below the margins."""

    min_score: Share | None = None
    """Score of all prompts together, from 0 to 1, that the first version of a service needs: it has
    no stable version to be compared with, and serves no users before. Omitted, it serves at
    once."""

    max_cost_increase: Share = text_default("0")
    """Share by which a token may cost more than before, on the same hardware."""

    repeats: Annotated[int, Field(ge=1, le=8)] = 1
    """Answers to each prompt: with more than one, sampling is on, each with a seed of its own."""

    timeout: Annotated[Duration, between(timedelta(minutes=1), timedelta(hours=24))] = text_default(
        "2h"
    )
    """Time within which a model has to answer the suite, between `1m` and `24h`."""

    answers: AnswerStorage = Field(default_factory=AnswerStorage)
    """Claim with the answers and their scores."""

    def lets_pass(self, reason: str) -> bool:
        """Return whether a change with such a verdict is rolled out."""
        return reason == "Passed" or (reason, self.require) == ("Inconclusive", "NotWorse")


class _GateStatusBase(Wire):
    """Base of the parts of the status, which ignores fields that a newer operator added."""

    model_config = ConfigDict(extra="ignore")


class SuiteStatus(_GateStatusBase):
    """Suite as it was read last."""

    digest: str
    """SHA-256 of the file."""

    prompts: Annotated[dict[str, int], Field(max_length=MAX_STRATA)]
    """Prompts of each stratum."""


class StratumVerdict(_GateStatusBase):
    """What a suite says of one stratum, or of all of them."""

    name: str
    """Stratum; `small` for those judged together, `total` for all."""

    prompts: int
    """Prompts that both models answered."""

    baseline: Amount
    """Score of the stable version, from 0 to 1; for a first version `minScore`."""

    candidate: Amount
    """Score of the changed one."""

    loss_points: LossPoints
    """Estimated loss in points of 100; negative for a gain."""

    largest_loss_points: LossPoints | None = None
    """One-sided bound of 95 % of the loss; of the total alone."""

    unseen_loss_points: Amount
    """Loss that prompts of this number and discordance do not show in 8 of 10 cases; for a first
    version, how far below its score the one-sided bound of 95 % is."""

    is_lost: bool = False
    """A loss is proven, and its estimate reaches the margin."""


class AnswerShares(_GateStatusBase):
    """What the answers of one version were like."""

    truncated: Amount
    """Share that ended by its length."""

    empty: Amount
    """Share without a character."""

    refused: Amount
    """Share of those that engine or filter refused."""

    mean_tokens: Amount
    """Mean output tokens, to which cost is proportional."""

    ttft_p95_seconds: Amount | None = None
    """95th percentile of the time to first token."""

    itl_p95_seconds: Amount | None = None
    """The same of the inter-token latency."""

    usd_per_million_tokens: Amount | None = None
    """Cost of a million output tokens on its hardware, in the currency of the pool."""

    usd_per_quality_adjusted_mtok: Amount | None = None
    """The same divided by the score."""


class AnswersStatus(_GateStatusBase):
    """Answers of one version to the suite, which lie on the claim."""

    digest: str
    """Digest of the version."""

    suite: str
    """SHA-256 of the suite."""

    scorer: str
    """Version of the scorers, and digest of the judge where there is one."""

    file_digest: str = ""
    """SHA-256 of their file: no change is compared with another."""

    hardware: str
    """GPU product and profile on which it answered."""

    answered_at: datetime
    """When."""

    answers: AnswerShares
    """What the answers are like."""


class VerdictStatus(_GateStatusBase):
    """What was decided about one change."""

    service: str
    """InferenceService that was changed."""

    candidate: str
    """Digest of what was tried."""

    baseline: str = ""
    """Digest of what it was compared with; empty for a first version."""

    suite: str
    """SHA-256 of the suite."""

    scorer: str
    """Version of the scorers, digest of the judge where there is one, and that of the margins."""

    precision: str = ""
    """Precision of the candidate: `checkpoint`, or one of `spec.precision.variants`."""

    variant: str = ""
    """Hardware and precision that it was tried on."""

    reason: str
    """`Passed`, `Failed`, `Slower`, `Dearer`, `Inconclusive` or why nothing was decided."""

    message: StatusText
    """The numbers that decided."""

    decided_at: datetime
    """When."""

    strata: Annotated[tuple[StratumVerdict, ...], Field(max_length=MAX_STRATA + 2)] = ()
    """Quality, by stratum and in total; empty for a change that changes no answers."""

    baseline_answers: AnswerShares | None = None
    """Latency and cost of the stable version."""

    candidate_answers: AnswerShares | None = None
    """Latency and cost of the changed one."""

    missing_prompts: int = 0
    """Prompts, or groups of them, that the suite lacks to decide at this discordance."""


class GateProgress(_GateStatusBase):
    """One run of the suite."""

    service: str
    """InferenceService that is asked."""

    role: Literal["Baseline", "Candidate"]
    """Which version of it."""

    answered: int
    """Prompts that are answered."""

    prompts: int
    """Prompts of the suite."""

    answers_digest: str = ""
    """SHA-256 of the answers on the claim, with which the next Job goes on if it is killed."""

    failure: StatusText = ""
    """What the last Job that failed said at its end."""


class QualityGateStatus(_GateStatusBase):
    """What the gate knows and decided; written by the operator only."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Condition Accepted: whether the suite can judge."""

    suite: SuiteStatus | None = None
    """Suite as it was read last."""

    progress: Annotated[tuple[GateProgress, ...], Field(max_length=16)] = ()
    """Runs of the suite that go on."""

    answers: Annotated[tuple[AnswersStatus, ...], Field(max_length=MAX_VERDICTS)] = ()
    """Versions that answered the suite, the latest first, and are not asked again as baselines."""

    verdicts: Annotated[tuple[VerdictStatus, ...], Field(max_length=MAX_VERDICTS)] = ()
    """Verdicts, the latest first; the same change with the same suite is not tried again."""


class QualityGate(Wire):
    """Suite of prompts on which changes that can change answers are tried before users meet
    them."""

    spec: QualityGateSpec
    """Suite, margins and what a change has to prove."""

    status: QualityGateStatus | None = None
    """What the gate knows and decided; written by the operator only."""
