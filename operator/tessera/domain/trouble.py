"""Why replicas of a service do not come up, with the words of whoever refused.

Kubernetes tells it in five places: a container that waits, the exit of its last run, the node that
is missing, the object that was refused, and the Deployment whose pods are refused. The message of
the condition is what stands there, word by word: it is what the user will search for. Where the way
out is known, it comes first.
"""

import re
from collections.abc import Sequence

from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.domain.reasons import Progressing, Verdict
from tessera.domain.snapshot import Exit, Pod, Workload

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_CREATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_OUT_OF_MEMORY = "OOMKilled"
_EXITS = {1: Progressing.ENGINE_REFUSED_CONFIG, 2: Progressing.ENGINE_REFUSED_ARGUMENTS}
"""vLLM's parser ends with 2, everything that it finds wrong after parsing with 1."""
_REFUSALS = (
    ("exceeded quota", Progressing.QUOTA_EXCEEDED),
    ("violates PodSecurity", Progressing.POD_SECURITY_REFUSED),
)
"""How the admission plugins of Kubernetes begin; they give no other sign of who they are."""
_WORDS = 1500
"""A condition holds 2,048 characters; of a log the end counts."""
_CODE = re.compile(
    r"\b(40[13])\b[\s\S]{0,60}?(?:client error|unauthorized|forbidden)|client error '?(40[13])",
    re.IGNORECASE,
)
"""As requests and httpx say that the hub gave no access."""
_GATED = re.compile(r"gated ?repo", re.IGNORECASE)
"""As huggingface_hub says it, with or without the number."""


def trouble(
    spec: InferenceServiceSpec | None, pods: Sequence[Pod], workload: Workload | None
) -> Verdict[Progressing] | None:
    """The first replica that does not come up; without one, why none can be created."""
    for pod in pods:
        if not (pod.leaving or pod.up) and (found := _of_pod(spec, pod)) is not None:
            return found
    if workload is None or workload.refused is None:
        return None
    reasons = (reason for words, reason in _REFUSALS if words in workload.refused)
    return Verdict(next(reasons, Progressing.PODS_REFUSED), workload.refused)


def hub_refusal(model: Model, words: str) -> str | None:
    """What to do when the hub refused a model, by the words of whoever asked it."""
    found = _CODE.search(words)
    if found is None and not _GATED.search(words):
        return None
    code = "403" if found is None else found[1] or found[2]
    uri, secret = model.uri, model.token_secret_ref
    page = f"accept the terms of {uri.removeprefix('hf://')} on its page"
    if secret is None:
        return (
            f"spec.model.tokenSecretRef: the hub answered {code} for {uri}, which is gated or "
            f"private, or does not exist; {page}, and name a Secret with a token here"
        )
    if code == "401":
        return (
            f"spec.model.tokenSecretRef: the hub answered 401, so it does not know the token in "
            f"Secret {secret.name}, key {secret.key}, or {uri} does not exist; put a valid token "
            "there"
        )
    return (
        f"spec.model.tokenSecretRef: the hub answered {code}: the account of the token in Secret "
        f"{secret.name} may not read {uri}; {page} with that account, or take a token that may read"
    )


def unmade(spec: InferenceServiceSpec | None, pod: Pod) -> str | None:
    """What to do for a container that the kubelet cannot make for want of the token's Secret."""
    secret = spec.model.token_secret_ref if spec is not None else None
    if secret is None:
        return None
    key, name = re.escape(secret.key), re.escape(secret.name)
    if not re.search(
        rf'secret "{name}"|key {key} in Secret (\S+/)?{name}(?![a-z0-9.-])', pod.last_words
    ):
        return None
    return (
        f"spec.model.tokenSecretRef: Secret {secret.name} with key {secret.key} is missing; "
        f"kubectl create secret generic {secret.name} -n {pod.ref.namespace} "
        f"--from-literal={secret.key}=<token> makes it, and the pod then starts"
    )


def _of_pod(spec: InferenceServiceSpec | None, pod: Pod) -> Verdict[Progressing] | None:
    """A run that ended stays the reason until the next one is up: it has yet to do better."""
    if pod.trouble in _IMAGE:
        return _told(pod, Progressing.IMAGE_UNAVAILABLE, pod.last_words)
    if pod.trouble in _CREATION:
        advice = unmade(spec, pod)
        reason = Progressing.SECRET_MISSING if advice else Progressing.CONTAINER_NOT_CREATED
        return _told(pod, reason, pod.last_words, advice=advice)
    if pod.exit is None:
        return None
    reason, advice = _judged(spec, pod.exit)
    return _told(pod, reason, f"exit code {pod.exit.code}", pod.exit.words, advice=advice)


def _judged(spec: InferenceServiceSpec | None, ended: Exit) -> tuple[Progressing, str | None]:
    """The kernel knows best why it killed; what the hub refuses ends engines with any code."""
    if ended.reason == _OUT_OF_MEMORY:
        return Progressing.ENGINE_OUT_OF_MEMORY, None
    if spec is not None and (refusal := hub_refusal(spec.model, ended.words)) is not None:
        return Progressing.HUB_REFUSED, refusal
    return _EXITS.get(ended.code, Progressing.ENGINE_FAILED), None


def _told(
    pod: Pod, reason: Progressing, *words: str, advice: str | None = None
) -> Verdict[Progressing]:
    parts = (pod.ref.name, *words[:-1], words[-1][-_WORDS:])
    told = ": ".join(part for part in parts if part)
    return Verdict(reason, f"{advice}; {told}" if advice else told)
