"""Names, labels and paths of the objects and files of a batch."""

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.meta import GROUP
from tessera.api.ref import Ref
from tessera.api.text import parse_decimal
from tessera.domain.names import deployment_name

BATCH_LABEL = f"{GROUP}/batch"
# A batch that is recreated under its name inherits nothing from the previous one.
BATCH_UID_LABEL = f"{GROUP}/batch-uid"
# Number of the attempt, or `check`.
ATTEMPT_LABEL = f"{GROUP}/attempt"
CHECK = "check"
RUNNER = "runner"
RUNNER_PORT = 8001
BATCH_ACCOUNT = "tessera-batch"
# ClusterRole that lets a runner read its batch; the chart creates one per release.
BATCH_ROLE = "tessera-batch-runner"
COMPLETION_URLS = ("/v1/chat/completions", "/v1/completions")
EMBEDDING_URL = "/v1/embeddings"
# Limit of a label value.
MAX_NAME_LENGTH = 63


def job_name(batch: str, attempt: int | None) -> str:
    """Return `<batch>-check` or `<batch>-a<number>`, shortened to leave room for a pod suffix."""
    # The suffix that a Job adds to the names of its pods is as long as a Deployment's.
    return deployment_name(batch, CHECK if attempt is None else f"a{attempt}")


def parse_attempt_label(label: str) -> int | None:
    """Return the attempt that a label names; None for the check."""
    return parse_decimal(label)


def billing_ref(batch: Ref) -> Ref:
    """Return the name under which the cost of a batch is booked."""
    # No service can have a name with a slash.
    return Ref(batch.namespace, f"batch/{batch.name}")


def errors_path(spec: BatchInferenceSpec) -> str:
    """Return the path of the errors file: `answers.jsonl` -> `answers.errors.jsonl`."""
    if spec.errors is not None:
        return spec.errors
    folder, slash, name = spec.output.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return f"{folder}{slash}{stem}.errors.jsonl"


def work_path(uid: str) -> str:
    """Return the folder of the volume in which attempts store finished rows."""
    return f".tessera/{uid}"
