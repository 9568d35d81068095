"""Names and labels of what models need besides engines, in one place."""

import hashlib
from typing import Literal, TypeAlias

from tessera.api.inference_service import Model
from tessera.api.meta import GROUP
from tessera.domain.names import deployment_name

# Read `config.json` of the model or of its draft model, or bring all files onto a claim.
Task: TypeAlias = Literal["shape", "draft", "fetch"]

# The task of a Job and its pod.
MODEL_JOB_LABEL = f"{GROUP}/model-job"
# The service. It is not the label of replicas: Services and budgets must not count the pod.
MODEL_JOB_SERVICE_LABEL = f"{GROUP}/model-job-for"
# Name of the container.
MODEL_JOB_CONTAINER = "model-job"


def own_claim_name(service: str) -> str:
    """Return the name of the claim that a service had before claims were shared."""
    return deployment_name(service, "models")


def model_job_name(service: str, uid: str, task: Task, model: Model, update: str = "") -> str:
    """Return the name of a Job that reads a model; another model or access has another Job.

    `update` is that for which files are read again.
    """
    parts = [uid, task, model.uri, model.revision or "", model.cache.size or ""]
    if model.store is not None:
        parts.append(model.store.model_dump_json())
    text = "\n".join((*parts, *([update] if update else [])))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return deployment_name(service, f"{task}-{digest}")
