"""Names, labels and paths of everything that belongs to a batch, in one place."""

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.meta import GROUP
from tessera.api.ref import Ref
from tessera.domain.names import deployment_name

BATCH_LABEL = f"{GROUP}/batch"
# A batch that is made again under its name takes nothing over from the former one.
BATCH_UID_LABEL = f"{GROUP}/batch-uid"
# Number of the attempt, or `check`.
ATTEMPT_LABEL = f"{GROUP}/attempt"
CHECK = "check"
RUNNER = "runner"
RUNNER_PORT = 8001
BATCH_ACCOUNT = "tessera-batch"
# The ClusterRole that lets a runner read its batch; the chart makes one for each release.
BATCH_ROLE = "tessera-batch-runner"
# A label holds no longer name.
MAX_NAME_LENGTH = 63


def job_name(batch: str, attempt: int | None) -> str:
    """`<batch>-check` or `<batch>-a<number>`; a Job adds as much to its pods as a Deployment."""
    return deployment_name(batch, CHECK if attempt is None else f"a{attempt}")


def attempt_label(attempt: int | None) -> str:
    """The value of `ATTEMPT_LABEL`."""
    return CHECK if attempt is None else str(attempt)


def parse_attempt_label(label: str) -> int | None:
    """The attempt that a label names; None for the check."""
    return int(label) if label.isdecimal() and label.isascii() else None


def billing_ref(batch: Ref) -> Ref:
    """Under which name a batch pays; no service can have it."""
    return Ref(batch.namespace, f"batch/{batch.name}")


def errors_path(spec: BatchInferenceSpec) -> str:
    """Where rows without an answer go: `answers.jsonl` -> `answers.errors.jsonl`."""
    if spec.errors is not None:
        return spec.errors
    folder, slash, name = spec.output.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return f"{folder}{slash}{stem}.errors.jsonl"


def work_path(uid: str) -> str:
    """The folder on the claim in which attempts keep what they finished."""
    return f".tessera/{uid}"
