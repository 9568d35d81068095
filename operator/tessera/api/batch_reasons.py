"""Every reason in the conditions of a BatchInference."""

from tessera.api.reasons import StatusReason


class BatchAccepted(StatusReason):
    """Is the spec of the batch valid?"""

    VALID = "Valid", True
    """The spec is valid."""
    FLAGS_UNCHECKED = "FlagsUnchecked", True
    """The spec is valid, but Tessera has no flag table for this engine version, so of
    `spec.engine.extraArgs` only flags reserved by Tessera are recognized."""
    UNTESTED_ENGINE_VERSION = "UntestedEngineVersion", True
    """The spec is valid, but this version of vLLM is older than the oldest that Tessera knows: it
    may lack a flag or a metric that Tessera needs."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator, or its paths cannot be three files."""
    INVALID_NAME = "InvalidName"
    """The name is too long for a label value, so no Job can carry it."""
    SERVICE_NOT_FOUND = "ServiceNotFound"
    """`spec.service` names no InferenceService in the namespace that Tessera can read."""
    READING_MODEL = "ReadingModel"
    """A Job reads the model's `config.json`, since neither the spec nor the built-in catalog has
    its dimensions."""
    FAILED_CREATE = "FailedCreate"
    """The API server refuses the pod of the Job that reads the model's `config.json`; the message
    has its words."""
    UNKNOWN_MODEL = "UnknownModel"
    """The dimensions of the model could not be read from its `config.json`; create the batch with
    `spec.model.shape`."""
    CONTEXT_TOO_LONG = "ContextTooLong"
    """`spec.context` exceeds the maximum context of the model."""
    RUNNER_MISMATCH = "RunnerMismatch"
    """`spec.engine.runner` is not one that the model has, or the model answers no rows of
    batches, as one that scores or classifies."""
    ADAPTER_NAME_CONFLICT = "AdapterNameConflict"
    """An adapter in `spec.model.adapters` has the same name as the model."""
    INVALID_ENGINE_OPTION = "InvalidEngineOption"
    """Options of `spec.engine` contradict each other or the model."""
    RESERVED_FLAG = "ReservedFlag"
    """`spec.engine.extraArgs` contains a flag that Tessera sets, or one that changes memory,
    speed or the API and is counted nowhere; so may a variable of `spec.podTemplate.env`."""
    INVALID_FLAG = "InvalidFlag"
    """`spec.engine.extraArgs` contains a flag or a value that this engine version rejects."""
    LOADER_MISMATCH = "LoaderMismatch"
    """`spec.engine.loader` has an argument that its type has not, or cannot read this model."""
    RESERVED_POD_TEMPLATE_FIELD = "ReservedPodTemplateField"
    """`spec.podTemplate.env` of the service, which is the batch's too, has a variable that Tessera
    or the cluster sets."""
    POOL_NOT_FOUND = "PoolNotFound"
    """`spec.placement.pools` names a pool that does not exist."""
    CLAIM_NOT_FOUND = "ClaimNotFound"
    """The PersistentVolumeClaim in `spec.claimName` does not exist."""
    CLAIM_TERMINATING = "ClaimTerminating"
    """The PersistentVolumeClaim in `spec.claimName` is being deleted: a running attempt goes on,
    and no other pod can mount it."""
    CLAIM_NOT_READ_WRITE_MANY = "ClaimNotReadWriteMany"
    """The claim lacks the access mode ReadWriteMany, so an attempt on another node could not mount
    it."""
    OUTPUT_CONFLICT = "OutputConflict"
    """Another unfinished batch of the namespace, which came first, writes the same file on the same
    claim, by its name or where a link leads."""
    PRECISION_MISMATCH = "PrecisionMismatch"
    """`spec.precision.variants` contains a precision that the model's files do not support, or
    files of its own, which are checked for services alone."""
    PLANNER_ERROR = "PlannerError"
    """Planning this batch failed with an internal error; other batches are not affected."""


class BatchRunning(StatusReason):
    """Is an attempt running, on which hardware, and why there?"""

    ON_SPOT = "OnSpot", True
    """Spot capacity is available, and the deadline does not require anything else."""
    BEHIND_SCHEDULE = "BehindSchedule", True
    """Spot capacity was not available, and the batch is behind schedule."""
    DEADLINE_NEAR = "DeadlineNear", True
    """The remaining time suffices only without an interruption: the rest uses no spot capacity."""
    NOT_YET_AHEAD = "NotYetAhead", True
    """The batch stays on on-demand or reserved nodes until it is clearly ahead of schedule."""
    SPOT_DISABLED = "SpotDisabled", True
    """`spec.spot.policy` is `Never`."""
    DEADLINE_AT_RISK = "DeadlineAtRisk", True
    """At the current speed the batch will miss its deadline, and no faster hardware is allowed."""
    NOT_ACCEPTED = "NotAccepted"
    """No attempt starts while `Accepted` is False."""
    VALIDATION_JOB_RUNNING = "ValidationJobRunning"
    """A Job validates the input; it uses no GPU."""
    VALIDATION_JOB_FAILED = "ValidationJobFailed"
    """The validation Job could not run; it is retried."""
    APPLY_FAILED = "ApplyFailed"
    """The API server rejected an object of the batch; the message has its words."""
    FAILED_CREATE = "FailedCreate"
    """A quota or a policy of the cluster refuses the pod of a Job; the message has its words."""
    STARTING = "Starting"
    """The pod of the attempt is starting."""
    PUBLISHING = "Publishing", True
    """All rows are done, and an attempt without a GPU publishes the results."""
    STALLED = "Stalled"
    """No row and no byte of the attempt or the check moves: runner, volume or engine hang. The
    runner of an attempt ends it after 15 minutes; what is left after 20 the operator replaces."""
    WAITING_FOR_SPOT = "WaitingForSpot"
    """The deadline leaves time to wait for spot capacity."""
    UNSCHEDULABLE = "Unschedulable"
    """Suitable hardware exists, but the scheduler finds no free capacity."""
    MODEL_CLAIM_TERMINATING = "ModelClaimTerminating"
    """The PersistentVolumeClaim with the model's files is being deleted; an attempt starts once it
    is gone, on another that Tessera creates."""
    BACKING_OFF = "BackingOff"
    """The last attempt failed; the next one starts after a backoff."""
    INPUT_CHANGED = "InputChanged"
    """The input is not the file that was checked. An attempt without a GPU compares it every 5
    minutes at most, and the batch goes on once it is."""
    SUSPENDED = "Suspended"
    """`spec.suspend` is true."""
    TERMINATING = "Terminating"
    """The batch is being deleted and a finalizer keeps it; no attempt runs."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """The tenant's budget does not cover an attempt."""
    NO_POOL = "NoPool"
    """No AcceleratorPool may be used."""
    NO_HARDWARE = "NoHardware"
    """The allowed pools offer no device that Tessera knows."""
    MIXED_CURRENCIES = "MixedCurrencies"
    """The allowed pools have prices in different currencies, which cannot be compared."""
    TOO_LARGE = "TooLarge"
    """The model fits on none of the hardware; the message says what is sufficient."""
    FINISHED = "Finished"
    """The batch has ended."""


class BatchComplete(StatusReason):
    """Does every row have an answer or an error, and are the results published?"""

    COMPLETED = "Completed", True
    """The output and error files are published."""
    VALIDATING = "Validating"
    """The input is not validated yet."""
    IN_PROGRESS = "InProgress"
    """Some rows are not done yet."""
    FINALIZING = "Finalizing"
    """All rows are done; the results are being published."""
    INVALID_INPUT = "InvalidInput"
    """The validation found errors in the input or on the claim."""
    USER_ACTION_REQUIRED = "UserActionRequired"
    """An attempt found a problem that only the user can fix: a deleted work folder, or a file in
    the way of the results before the first row was sent."""
    ROWS_REFUSED = "RowsRefused"
    """The engine refused the first 20 rows and answered none, so no other row was sent."""
    ALL_ROWS_FAILED = "AllRowsFailed"
    """Every row has an error and none an answer; the error file is published."""
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    """Too many consecutive attempts failed without a new finished row."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The deadline passed; finished rows are retained, and a later `spec.deadline` continues with
    them."""
