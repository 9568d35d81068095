"""Every reason in the conditions of a TenantBudget."""

from tessera.api.reasons import StatusReason


class BudgetAccepted(StatusReason):
    """Is the spec of the budget valid?"""

    VALID = "Valid", True
    """The spec is valid, and the budget is enforced."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""
    INVALID_TIME_ZONE = "InvalidTimeZone"
    """`spec.timeZone` is not a name in the IANA database."""
    CURRENCY_IMMUTABLE = "CurrencyImmutable"
    """`spec.currency` changed after something was spent in the previous currency."""
    OVERLAPPING = "Overlapping"
    """A namespace already belongs to another budget, which keeps it."""
    NAME_CONFLICT = "NameConflict"
    """`spec.publishing` has a name that already belongs to another budget, which keeps it, for the
    same tenants."""
    NAME_CONTESTED = "NameContested", True
    """The spec is valid and enforced, and another budget has one of its names in `spec.publishing`,
    and is not accepted for that."""
    PLANNER_ERROR = "PlannerError"
    """Evaluating this budget failed with an internal error, so nothing is added; other budgets are
    not affected."""


class Enforcing(StatusReason):
    """Which limits hold?"""

    CURRENT_SPEC = "CurrentSpec", True
    """The limits of `spec` hold."""
    LAST_ACCEPTED_SPEC = "LastAcceptedSpec", True
    """`spec` cannot be used, so the limits of `status.acceptedSpec` hold."""
    NO_GATEWAY = "NoGateway"
    """`spec.limits` has some of basis `Charge`, which gateways enforce, and none reports to the
    operator; limits of basis `Cost` hold."""
    NOT_ACCEPTED = "NotAccepted"
    """No spec was ever accepted, or the evaluation failed: nothing is added in the namespaces."""


class LimitAction(StatusReason):
    """What does a budget do from a spent share of a limit on?"""

    NOTIFY = "Notify"
    """An Event of the budget tells the share."""
    BATCHES_ON_SPOT = "BatchesOnSpot"
    """Batches run on spot capacity alone; those with `spec.spot.policy` `Never` are held."""
    HOLD_BATCHES = "HoldBatches"
    """No attempt of a batch starts, and running ones end; their rows stay."""
    CAP_SCALE_UP = "CapScaleUp"
    """No replica beyond minReplicas is added; running ones stay."""
    NO_NEW_SERVICES = "NoNewServices"
    """Admission refuses new InferenceServices in the namespaces of the tenant."""
    THROTTLE = "Throttle"
    """Gateways spread what a limit of basis `Charge` has left over the rest of its window."""
    CHEAPER_TARGETS = "CheaperTargets"
    """Requests for a ModelRoute get the cheapest target alone that can take them."""
    REFUSE = "Refuse"
    """Less is left of a limit of basis `Charge` than any request needs: gateways refuse those
    that it counts."""
    RESUME = "Resume"
    """A raise, a correction or the next window ended an action."""


class WithinBudget(StatusReason):
    """Does the budget cover what the tenant requests?"""

    WITHIN_LIMITS = "WithinLimits", True
    """The limits cover everything that is requested."""
    FORECAST_ABOVE_LIMIT = "ForecastAboveLimit", True
    """At the current rate, a window will end above its limit."""
    NEAR_LIMIT = "NearLimit", True
    """80 % of a limit is spent."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """A limit is exceeded, or does not cover a replica or batch, which was denied, or any
    request."""
    GPU_QUOTA_EXCEEDED = "GPUQuotaExceeded"
    """A replica or batch was denied, since the tenant has as many GPUs as `spec.gpus` allows."""
    MIN_REPLICAS_EXCEED_BUDGET = "MinReplicasExceedBudget"
    """Replicas that always run cost more than a limit; existing ones continue, no more start."""
    SPEND_UNKNOWN = "SpendUnknown"
    """The record of a window was lost; `spec.onSpendUnknown` applies."""
    CURRENCY_MISMATCH = "CurrencyMismatch"
    """The tenant uses a pool priced in another currency: its cost there is not counted, and nothing
    is added there."""
    NOT_ACCEPTED = "NotAccepted"
    """No spec that names the namespace was accepted, so nothing is added there."""
    NO_BUDGET = "NoBudget"
    """No TenantBudget covers the namespace, so its spend is not limited."""
    BUDGET_REQUIRED = "BudgetRequired"
    """No TenantBudget covers the namespace, and the installation requires one, so nothing is added
    there."""
