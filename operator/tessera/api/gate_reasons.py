"""Every reason in the condition of a QualityGate, and how a change under a gate ends."""

from tessera.api.reasons import StatusReason


class GateAccepted(StatusReason):
    """Can the suite judge?"""

    VALID = "Valid", True
    """The suite was read, and has rows that every scorer accepts."""
    SUITE_NOT_READ = "SuiteNotRead", None
    """No Job has read the suite yet; the first change, or `tessera gate run`, does."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""
    SUITE_NOT_FOUND = "SuiteNotFound"
    """The ConfigMap or claim of `spec.suite`, or the file in it, does not exist."""
    SUITE_INVALID = "SuiteInvalid"
    """A line of the suite cannot be read, contradicts another one, or no answer can have what it
    expects; the message names the first of them."""
    SUITE_CHANGED = "SuiteChanged"
    """The file has another digest, or fewer prompts, than `spec.suite` says, so it judges nothing;
    `tessera gate pin` writes both."""
    JUDGE_NOT_FOUND = "JudgeNotFound"
    """The suite has rows for a judge, and `spec.judge` names no InferenceService of the namespace
    that answers, or the one that is tried."""
    JUDGE_UNRELIABLE = "JudgeUnreliable"
    """The judge agrees with itself, or with the labelled rows, in fewer than 8 of 10 cases, so its
    rows decide nothing."""
    REQUESTS_REFUSED = "RequestsRefused"
    """What the Job asks is refused, for example since the tenant has no money left, or a limit of
    its charges and no price of the model; the message has the words of the gateway."""
    GATEWAY_UNREACHABLE = "GatewayUnreachable"
    """The Job reaches no gateway, for example by a NetworkPolicy or since its name does not
    resolve; the message has the error. It is asked again half an hour later."""
    STORAGE_QUOTA_EXCEEDED = "StorageQuotaExceeded"
    """`spec.storage` of the TenantBudget leaves no room for the claim of the answers."""
    FAILED_CREATE = "FailedCreate"
    """The API server refuses the pod of the Job or its claim; the message has its words."""


# What may refuse the changed version after the stable one has answered.
LATE_REFUSALS = frozenset(
    {
        GateAccepted.JUDGE_UNRELIABLE,
        GateAccepted.REQUESTS_REFUSED,
        GateAccepted.GATEWAY_UNREACHABLE,
    }
)


class GateOutcome(StatusReason):
    """How did a change under a gate end?"""

    PASSED = "Passed", True
    """The loss is proven to be below the margins; a change of speculation or prefix caching, which
    changes no answers, is as fast and as cheap as it has to be."""
    FAILED = "Failed"
    """A loss is proven, and its estimate reaches a margin."""
    SLOWER = "Slower"
    """The changed version misses `spec.slo` where the stable one keeps it."""
    DEARER = "Dearer"
    """A token of the changed version costs more than `spec.maxCostIncrease` allows."""
    INCONCLUSIVE = "Inconclusive", None
    """The suite proves neither a loss nor its absence; `spec.require` decides what follows."""
    ROLLED_BACK_TO = "RolledBackTo", True
    """The version was stable before, within `spec.rollout.rollbackWindow`, so it passes without a
    gate."""
    NO_BASELINE = "NoBaseline", True
    """The version in force had no replica ready in time and no answers to compare with, so the
    change went on as a first version does: without `minScore` at once."""
    SKIPPED = "Skipped", True
    """`spec.rollout.skipGate` let the change go on without a gate."""
    NOT_GATED = "NotGated", True
    """`spec.rollout.strategy` is no longer `Gated`."""
    NOT_READY = "NotReady"
    """The replica of the changed version did not become ready in time."""
    TIMED_OUT = "TimedOut"
    """A version did not answer the suite within `spec.timeout`."""
    JOB_FAILED = "JobFailed"
    """The Job that asks a version ended without an answer three times, for example since it was
    evicted."""
    WITHDRAWN = "Withdrawn"
    """The spec is again that of the stable version."""
    REPLACED = "Replaced"
    """A newer edit took its place."""
