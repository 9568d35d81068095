"""Why replicas of a service do not start, in the words of the component that reports it.

Kubernetes reports it in five places: a waiting container, the exit of its last run, a missing node,
a rejected object, and a Deployment whose pods are rejected. The condition repeats that message
verbatim, since users search for it. A known remedy comes first.
"""

import re
from collections.abc import Sequence

from tessera.api.engine_options import EngineOptions
from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import is_stored
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.domain.health.memory_shortage import memory_advice, memory_shortage
from tessera.domain.names import ENGINE
from tessera.domain.observed.snapshot import ContainerExit, Pod, Workload

_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_CREATION_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_OUT_OF_MEMORY = "OOMKilled"
# vLLM's argument parser exits with 2, errors after parsing with 1.
_EXIT_REASONS = {1: Progressing.ENGINE_START_FAILED, 2: Progressing.INVALID_ENGINE_ARGUMENTS}
# Phrases of admission plugins, which identify themselves by no other sign.
_REFUSALS = (
    ("exceeded quota", Progressing.QUOTA_EXCEEDED),
    ("violates PodSecurity", Progressing.POD_SECURITY_VIOLATION),
)
# What to change where the API server names no object, by its words.
_ADVICE = {
    # A quota counts what no pod of Tessera sets, such as `limits.cpu`.
    "must specify": "a LimitRange of the namespace with defaults for these sets them",
    "usage per Container is": "it is that of a LimitRange of the namespace",
    "usage per Pod is": "it is that of a LimitRange of the namespace",
    "must be less than or equal to": "a LimitRange of the namespace sets a default below what "
    "the pod requests",
}
# The end of a log that fits into a condition of 2,048 characters.
_MAX_LOG_LENGTH = 1500
# How the API server of vLLM ends after its engine failed, with a trace longer than a pod keeps.
_CAUSE_ABOVE = "Engine core initialization failed"
# How requests and httpx report that the hub denied access.
_ACCESS_DENIED = re.compile(
    r"\b(40[13])\b[\s\S]{0,60}?(?:client error|unauthorized|forbidden)|client error '?(40[13])",
    re.IGNORECASE,
)
# How huggingface_hub reports it, with or without the status code.
_GATED = re.compile(r"gated ?repo", re.IGNORECASE)
# How Python and vLLM report a library that the image lacks.
_MISSING_LIBRARY = re.compile(r"\b(ModuleNotFoundError|ImportError)\b|Please install ")


def startup_failure(
    spec: InferenceServiceSpec | None, pods: Sequence[Pod], workloads: Sequence[Workload]
) -> StatusVerdict[Progressing] | None:
    """Return why the first replica fails to start, or why none can be created."""
    for pod in pods:
        if (
            not (pod.terminating or pod.containers_ready)
            and (failure := _pod_failure(spec, pod)) is not None
        ):
            return failure
    refusals = (workload.replica_failure for workload in workloads if workload.replica_failure)
    refusal = next(refusals, None)
    if refusal is None:
        return None
    return StatusVerdict(refusal_reason(refusal), refusal_text(refusal))


def refusal_reason(refusal: str) -> Progressing:
    """Return why the API server creates no pod, by its words."""
    reasons = (reason for words, reason in _REFUSALS if words in refusal)
    return next(reasons, Progressing.FAILED_CREATE)


def refusal_text(refusal: str) -> str:
    """Return why the API server refuses a pod, with what to do where its words do not say it."""
    advice = (advice for words, advice in _ADVICE.items() if words in refusal)
    return "; ".join((refusal, *advice))


def hub_access_advice(model: Model, error_text: str) -> str | None:
    """Return what to do when the hub refused a model, by the message of the job that asked."""
    code_match = _ACCESS_DENIED.search(error_text)
    if is_stored(model.uri) or (code_match is None and not _GATED.search(error_text)):
        return None
    code = "403" if code_match is None else code_match[1] or code_match[2]
    uri, secret = model.uri, model.token_secret_ref
    accept_terms_advice = f"accept the terms of {uri.removeprefix('hf://')} on its page"
    if secret is None:
        return (
            f"spec.model.tokenSecretRef: the hub answered {code} for {uri}, which is gated or "
            f"private, or does not exist; {accept_terms_advice}, and name a Secret with a token "
            "here"
        )
    if code == "401":
        return (
            f"spec.model.tokenSecretRef: the hub answered 401, so it does not know the token in "
            f"Secret {secret.name}, key {secret.key}, or {uri} does not exist; put a valid token "
            "there"
        )
    return (
        f"spec.model.tokenSecretRef: the hub answered {code}: the account of the token in Secret "
        f"{secret.name} may not read {uri}; {accept_terms_advice} with that account, or take a "
        "token that may read"
    )


def missing_secret_advice(spec: InferenceServiceSpec | None, pod: Pod) -> str | None:
    """Return what to do for a container that lacks the Secret of its token."""
    if spec is None:
        return None
    token, store = spec.model.token_secret_ref, spec.model.store
    if token is not None and _lacks(pod, token.name, re.escape(token.key)):
        return (
            f"spec.model.tokenSecretRef: Secret/{token.name} with key {token.key} not found; "
            f"create it: kubectl create secret generic {token.name} -n {pod.ref.namespace} "
            f"--from-literal={token.key}=<token>"
        )
    if store is not None and store.secret_name and _lacks(pod, store.secret_name, r"\S+"):
        return (
            f"spec.model.store.secretName: Secret/{store.secret_name} or one of its keys not "
            f"found; create it: kubectl create secret generic {store.secret_name} -n "
            f"{pod.ref.namespace} --from-literal=<key>=<value>, with the keys that kubectl "
            "explain tsvc.spec.model.store.secretName names"
        )
    return None


def _lacks(pod: Pod, secret: str, key_pattern: str) -> bool:
    """Return whether the kubelet reports that a Secret or its key is missing."""
    name = re.escape(secret)
    pattern = rf'secret "{name}"|key {key_pattern} in Secret (\S+/)?{name}(?![a-z0-9.-])'
    return re.search(pattern, pod.container_message) is not None


def _missing_template_advice(spec: InferenceServiceSpec | None, pod: Pod) -> str | None:
    """Return what to do for a container that lacks the ConfigMap of its chat template."""
    if spec is None or spec.engine.chat_template is None:
        return None
    template = spec.engine.chat_template.config_map_key_ref
    key, name = re.escape(template.key), re.escape(template.name)
    if not re.search(
        rf'configmap "{name}"|key {key} in ConfigMap (\S+/)?{name}(?![a-z0-9.-])',
        pod.container_message,
    ):
        return None
    return (
        f"spec.engine.chatTemplate: ConfigMap/{template.name} with key {template.key} not found; "
        f"create it: kubectl create configmap {template.name} -n {pod.ref.namespace} "
        f"--from-file={template.key}=<file>"
    )


def _pod_failure(spec: InferenceServiceSpec | None, pod: Pod) -> StatusVerdict[Progressing] | None:
    """Return the failure of a pod; that of an ended run stays until the next one is ready."""
    if pod.waiting_reason in _IMAGE_REASONS:
        return _failure_verdict(pod, Progressing.IMAGE_PULL_FAILED, pod.container_message)
    if pod.waiting_reason in _CREATION_REASONS:
        reason = Progressing.CREATE_CONTAINER_ERROR
        if (advice := missing_secret_advice(spec, pod)) is not None:
            reason = Progressing.SECRET_NOT_FOUND
        elif (advice := _missing_template_advice(spec, pod)) is not None:
            reason = Progressing.CONFIG_MAP_NOT_FOUND
        return _failure_verdict(pod, reason, pod.container_message, advice=advice)
    if pod.last_exit is None:
        return None
    reason, advice = _exit_reason(spec, pod.last_exit)
    if reason is Progressing.ENGINE_START_FAILED and _CAUSE_ABOVE in pod.last_exit.log_tail:
        advice = (
            "the cause is above the end of the log: "
            f"kubectl logs {pod.ref.name} -n {pod.ref.namespace} -c {ENGINE} --previous"
        )
    return _failure_verdict(
        pod, reason, f"exit code {pod.last_exit.code}", pod.last_exit.log_tail, advice=advice
    )


def _exit_reason(
    spec: InferenceServiceSpec | None, container_exit: ContainerExit
) -> tuple[Progressing, str | None]:
    """Return the reason of an exit: the kernel's, the hub's, or by exit code."""
    if container_exit.reason == _OUT_OF_MEMORY:
        return Progressing.OOM_KILLED, None
    log_tail = container_exit.log_tail
    if spec is not None and (refusal := hub_access_advice(spec.model, log_tail)) is not None:
        return Progressing.HUB_ACCESS_DENIED, refusal
    if (shortage := memory_shortage(log_tail)) is not None:
        return shortage, memory_advice(shortage, spec, log_tail)
    reason = _EXIT_REASONS.get(container_exit.code, Progressing.ENGINE_FAILED)
    loader = spec.engine.loader if spec is not None else None
    if loader is not None and _MISSING_LIBRARY.search(log_tail):
        return reason, (
            f"spec.engine.loader: this image of the engine seems to lack the library of "
            f"{loader.type}; name an image that has it in spec.engine.image, or remove the loader"
        )
    if spec is None or reason is not Progressing.INVALID_ENGINE_ARGUMENTS:
        return reason, None
    return reason, _arguments_advice(spec.engine, log_tail)


def _arguments_advice(engine: EngineOptions, log_tail: str) -> str:
    """Return the field to change, by the flag that the engine's parser names."""
    flags = [argument.split("=", 1)[0] for argument in engine.extra_args if argument[:1] == "-"]
    named = [flag for flag in flags if re.search(rf"(?<!\S){re.escape(flag)}(?![\w-])", log_tail)]
    if named:
        return f"spec.engine.extraArgs: correct or remove {', '.join(named)}"
    if engine.extra_args:
        return "spec.engine.extraArgs: correct the argument that the engine names"
    return (
        "spec.engine.version: correct it, or spec.engine.image; this engine does not accept the "
        "arguments that Tessera sets"
    )


def _failure_verdict(
    pod: Pod, reason: Progressing, *words: str, advice: str | None = None
) -> StatusVerdict[Progressing]:
    parts = (pod.ref.name, *words[:-1], words[-1][-_MAX_LOG_LENGTH:])
    detail = ": ".join(part for part in parts if part)
    return StatusVerdict(reason, f"{advice}; {detail}" if advice else detail)
