"""Why replicas do not start, in words that say what to do."""

import re
from collections.abc import Sequence

from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.domain.reasons import Progressing, Verdict
from tessera.domain.snapshot import Pod

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_CODE = re.compile(
    r"\b(40[13])\b[\s\S]{0,60}?(?:client error|unauthorized|forbidden)|client error '?(40[13])",
    re.IGNORECASE,
)
"""As requests and httpx say that the hub gave no access."""
_GATED = re.compile(r"gated ?repo", re.IGNORECASE)
"""As huggingface_hub says it, with or without the number."""
_SHOWN = 600


def trouble(spec: InferenceServiceSpec | None, pods: Sequence[Pod]) -> Verdict[Progressing] | None:
    """The first replica that cannot start, with its last words and, where known, a way out."""
    for pod in pods:
        if pod.trouble is not None and (found := _judged(spec, pod)) is not None:
            reason, advice = found
            words = f"{pod.ref.name}: {pod.last_words[-_SHOWN:]}".strip(": ")
            return Verdict(reason, f"{advice}; {words}" if advice else words)
    return None


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


def _judged(spec: InferenceServiceSpec | None, pod: Pod) -> tuple[Progressing, str | None] | None:
    if pod.trouble in _IMAGE:
        return Progressing.IMAGE_UNAVAILABLE, None
    if pod.trouble in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        advice = unmade(spec, pod)
        reason = Progressing.SECRET_MISSING if advice else Progressing.ENGINE_NOT_STARTED
        return reason, advice
    if pod.trouble != "CrashLoopBackOff":
        return None
    refusal = hub_refusal(spec.model, pod.last_words) if spec is not None else None
    if refusal is not None:
        return Progressing.HUB_REFUSED, refusal
    return Progressing.ENGINE_FAILED, None


def unmade(spec: InferenceServiceSpec | None, pod: Pod) -> str | None:
    """What to do for a container that the kubelet cannot make for want of a Secret."""
    secret = spec.model.token_secret_ref if spec is not None else None
    if secret is None or "secret" not in pod.last_words.lower():
        return None
    return (
        f"spec.model.tokenSecretRef: Secret {secret.name} with key {secret.key} is missing; "
        f"kubectl create secret generic {secret.name} -n {pod.ref.namespace} "
        f"--from-literal={secret.key}=<token> makes it, and the pod then starts"
    )
