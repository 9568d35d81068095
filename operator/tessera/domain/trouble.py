"""Why replicas of a service do not come up, with the words of whoever refused.

Kubernetes tells it in five places: a container that waits, the exit of its last run, the node that
is missing, the object that was refused, and the Deployment whose pods are refused. The message of
the condition is what stands there, word by word: it is what the user will search for.
"""

from collections.abc import Sequence

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


def trouble(pods: Sequence[Pod], workload: Workload | None) -> Verdict[Progressing] | None:
    """The first replica that does not come up; without one, why none can be created."""
    for pod in pods:
        if not (pod.leaving or pod.up) and (found := _of_pod(pod)) is not None:
            return found
    if workload is None or workload.refused is None:
        return None
    reasons = (reason for words, reason in _REFUSALS if words in workload.refused)
    return Verdict(next(reasons, Progressing.PODS_REFUSED), workload.refused)


def _of_pod(pod: Pod) -> Verdict[Progressing] | None:
    """A run that ended stays the reason until the next one is up: it has yet to do better."""
    if pod.trouble in _IMAGE:
        return _told(pod, Progressing.IMAGE_UNAVAILABLE, pod.last_words)
    if pod.trouble in _CREATION:
        return _told(pod, Progressing.CONTAINER_NOT_CREATED, pod.last_words)
    if pod.exit is not None:
        return _told(pod, _reason(pod.exit), f"exit code {pod.exit.code}", pod.exit.words)
    return None


def _reason(ended: Exit) -> Progressing:
    if ended.reason == _OUT_OF_MEMORY:
        return Progressing.ENGINE_OUT_OF_MEMORY
    return _EXITS.get(ended.code, Progressing.ENGINE_FAILED)


def _told(pod: Pod, reason: Progressing, *words: str) -> Verdict[Progressing]:
    parts = (pod.ref.name, *words[:-1], words[-1][-_WORDS:])
    return Verdict(reason, ": ".join(part for part in parts if part))
