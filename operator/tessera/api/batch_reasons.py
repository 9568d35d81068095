"""Every reason that Tessera gives for a batch."""

from tessera.api.reasons import StatusReason


class BatchAccepted(StatusReason):
    """Can the spec of a batch be carried out at all?"""

    VALID = "Valid", "The spec can be carried out.", True
    FLAGS_UNCHECKED = (
        "FlagsUnchecked",
        "The spec can be carried out, but there is no flag table for this engine version, so "
        "`engine.extraArgs` went unchecked.",
        True,
    )
    INVALID_SPEC = "InvalidSpec", "The object does not follow the schema of this operator."
    NAME_TOO_LONG = "NameTooLong", "The name does not go into a label, so no Job can carry it."
    SERVICE_NOT_FOUND = (
        "ServiceNotFound",
        "`spec.service` names no InferenceService of the namespace that can be read.",
    )
    UNKNOWN_MODEL = (
        "UnknownModel",
        "The model's shape is not shipped with Tessera; `spec.model.shape` has to give it.",
    )
    CONTEXT_TOO_LONG = (
        "ContextTooLong",
        "`spec.context` asks for more tokens than the model was made for.",
    )
    ADAPTER_NAME_CONFLICT = (
        "AdapterNameConflict",
        "An adapter in `spec.model.adapters` has the name of the model itself.",
    )
    RESERVED_FLAG = "ReservedFlag", "`engine.extraArgs` holds a flag that Tessera sets itself."
    INVALID_FLAG = (
        "InvalidFlag",
        "`engine.extraArgs` holds a flag or a value that this engine version refuses.",
    )
    POOL_NOT_FOUND = "PoolNotFound", "`spec.placement.pools` names a pool that does not exist."
    CLAIM_NOT_FOUND = (
        "ClaimNotFound",
        "There is no PersistentVolumeClaim of the name in `spec.claimName`.",
    )
    CLAIM_NOT_READ_WRITE_MANY = (
        "ClaimNotReadWriteMany",
        "The claim is not ReadWriteMany, so an attempt on another node could not mount it.",
    )
    PLANNER_ERROR = (
        "PlannerError",
        "Planning this batch failed inside Tessera; the others are planned without it.",
    )


class BatchRunning(StatusReason):
    """Is an attempt at work, on which hardware, and why there?"""

    ON_SPOT = "OnSpot", "Spot is to be had, and the deadline does not need anything else.", True
    BEHIND_SCHEDULE = (
        "BehindSchedule",
        "Spot was not to be had while less was done than the time passed asks for.",
        True,
    )
    DEADLINE_NEAR = (
        "DeadlineNear",
        "The time left only just suffices without interruption: no spot for the rest.",
        True,
    )
    NOT_YET_AHEAD = (
        "NotYetAhead",
        "The batch stays on on-demand or reserved hardware until it is clearly ahead of schedule.",
        True,
    )
    SPOT_DISABLED = "SpotDisabled", "`spec.spot.policy` is `Never`.", True
    DEADLINE_AT_RISK = (
        "DeadlineAtRisk",
        "At the present speed the deadline will be missed, and nothing faster may be used.",
        True,
    )
    NOT_ACCEPTED = "NotAccepted", "Nothing is started while `Accepted` is False."
    VALIDATION_JOB_RUNNING = (
        "ValidationJobRunning",
        "The input is being checked; no GPU is used for that.",
    )
    VALIDATION_JOB_FAILED = (
        "ValidationJobFailed",
        "The check could not be carried out; it is tried again.",
    )
    STARTING = "Starting", "The pod of the attempt is starting."
    WAITING_FOR_SPOT = "WaitingForSpot", "There is time to wait until spot is to be had."
    UNSCHEDULABLE = "Unschedulable", "The hardware exists, but the scheduler finds it taken."
    BACKING_OFF = "BackingOff", "The last attempt failed; the next one begins after a pause."
    SUSPENDED = "Suspended", "`spec.suspend` is true."
    BUDGET_EXHAUSTED = "BudgetExhausted", "The tenant's budget cannot pay for an attempt."
    NO_POOL = "NoPool", "No AcceleratorPool may be used."
    NO_HARDWARE = "NoHardware", "The allowed pools have no devices that Tessera knows."
    MIXED_CURRENCIES = (
        "MixedCurrencies",
        "The allowed pools are priced in different currencies, which cannot be compared.",
    )
    TOO_LARGE = "TooLarge", "The model fits on no hardware; the message says what would do."
    FINISHED = "Finished", "The batch is over."


class BatchComplete(StatusReason):
    """Is every row answered, or settled as an error, and published?"""

    COMPLETED = "Completed", "The output and the errors are published.", True
    VALIDATING = "Validating", "The input is not checked yet."
    IN_PROGRESS = "InProgress", "Rows are left to answer."
    FINALIZING = "Finalizing", "All rows are done; the results are being published."
    INVALID_INPUT = "InvalidInput", "The check found faults in the input or on the claim."
    USER_ACTION_REQUIRED = (
        "UserActionRequired",
        "An attempt found something that only its user can change, such as a changed input.",
    )
    BACKOFF_LIMIT_EXCEEDED = (
        "BackoffLimitExceeded",
        "Too many attempts in a row failed without a new row.",
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        "The deadline passed; the rows that were finished are kept.",
    )


BATCH_CONDITIONS: tuple[type[StatusReason], ...] = (BatchAccepted, BatchRunning, BatchComplete)
