"""What users may add to the pods of a service, and what is reserved."""

import re
from collections.abc import Iterator, Mapping

from tessera.api.inference_service import PodTemplate
from tessera.api.meta import GROUP
from tessera.domain import names
from tessera.domain.incremental import Installed

# Reserved labels, and who sets them.
LABELS = {
    names.APP_INSTANCE: "Tessera",
    names.APP_NAME: "Tessera",
    names.APP_VERSION: "Tessera",
    names.COMPONENT: "Tessera",
    names.MANAGED_BY: "Tessera",
    names.PART_OF: "Tessera",
    "pod-template-hash": "the Deployment",
}

# Reserved annotations, and who sets them.
ANNOTATIONS = {names.COST_ANNOTATION: "Tessera"}

# Reserved environment variables of the engine, and who sets them.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "the device plugin",
    "HF_HOME": "Tessera",
    "HF_TOKEN": "spec.model.tokenSecretRef",
    "HOME": "Tessera",
    "HUGGING_FACE_HUB_TOKEN": "spec.model.tokenSecretRef",
    "NVIDIA_VISIBLE_DEVICES": "the device plugin",
    "TESSERA_CHAT_TEMPLATE": "spec.engine.chatTemplate",
    "USER": "Tessera",
    "VLLM_API_KEY": "no field: the gateway checks keys, see docs/tasks/keys.md",
    "VLLM_CACHE_ROOT": "Tessera",
    "VLLM_HOST_IP": "Tessera",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "Tessera: redirects lead away from allowedMediaDomains",
    "VLLM_NO_USAGE_STATS": "Tessera",
    "VLLM_PORT": "Tessera",
    "VLLM_SERVER_DEV_MODE": "no field: it lets every client stop the engine",
}

# Variables that change the memory by which a replica is planned, and what of it.
UNPLANNED = {
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "what layers with a window keep; "
    "remove it",
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "the size of the KV cache; set "
    "spec.engine.gpuMemoryUtilization instead",
    "VLLM_MLA_DISABLE": "what layers keep of each token; remove it",
}

# What the installation allows beside keys without a prefix, which are the user's own by the
# conventions of Kubernetes: keys, and `prefix/*` for all keys of a prefix.
allowed_keys = Installed[frozenset[str]](frozenset)
# It takes the place of `kubectl rollout restart`.
_ALWAYS_ALLOWED = frozenset({"kubectl.kubernetes.io/restartedAt"})
# Keys without a prefix by which others give rights: network policies, and identities of a cloud.
_BARRED = frozenset({"k8s-app", "aadpodidbinding"})

_TESSERA_PREFIX = f"{GROUP}/"
_KEY = re.compile(
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z"
)


def reserved_entries(template: PodTemplate) -> Iterator[tuple[str, str]]:
    """Yield field and message of every reserved entry."""
    for field, keys, reserved_keys in (
        ("labels", template.labels, LABELS),
        ("annotations", template.annotations, ANNOTATIONS),
    ):
        for key in sorted(keys):
            owner = "Tessera" if key.startswith(_TESSERA_PREFIX) else reserved_keys.get(key)
            if owner is not None:
                yield (
                    f"spec.podTemplate.{field}",
                    f"remove {key}; it is set by {owner} (reserved: {_TESSERA_PREFIX}* and "
                    f"{len(reserved_keys)} more)",
                )
    for index, variable in enumerate(template.env):
        if variable.name in ENVIRONMENT:
            yield (
                f"spec.podTemplate.env[{index}]",
                f"remove {variable.name}; it is set by {ENVIRONMENT[variable.name]} "
                f"(1 of {len(ENVIRONMENT)} reserved variables)",
            )


def is_allowed(key: str) -> bool:
    """Return whether users may give pods a label or an annotation with a key."""
    prefix, slash, _ = key.rpartition("/")
    listed = allowed_keys()
    if key in _ALWAYS_ALLOWED or key in listed or (slash and f"{prefix}/*" in listed):
        return True
    return not slash and key not in _BARRED


def unlisted_metadata(
    labels: Mapping[str, str], annotations: Mapping[str, str]
) -> frozenset[tuple[str, str, str]]:
    """Return field, key and value of what users add to pods and the installation does not list."""
    return frozenset(
        (field, key, value)
        for field, entries, reserved in (
            ("labels", labels, LABELS),
            ("annotations", annotations, ANNOTATIONS),
        )
        for key, value in entries.items()
        if not (is_allowed(key) or key in reserved or key.startswith(_TESSERA_PREFIX))
    )


def unlisted_keys(template: PodTemplate) -> Iterator[tuple[str, str]]:
    """Yield field and message of every key that the installation does not list."""
    for field, key, _ in sorted(unlisted_metadata(template.labels, template.annotations)):
        if _KEY.match(key):
            yield (
                f"spec.podTemplate.{field}",
                f"{key} may give pods rights or networks, and podTemplate.allowedKeys of the chart "
                f"does not list it ({len(allowed_keys())} listed); use a key without a prefix, or "
                "have the platform team list it",
            )


def unplanned_variables(template: PodTemplate) -> Iterator[tuple[str, str]]:
    """Yield field and message of every variable that changes memory and is counted nowhere."""
    for index, variable in enumerate(template.env):
        if variable.name in UNPLANNED:
            yield (
                f"spec.podTemplate.env[{index}]",
                f"{variable.name} changes {UNPLANNED[variable.name]}",
            )


def malformed_keys(template: PodTemplate) -> Iterator[tuple[str, str]]:
    """Yield field and message of every malformed key, which the schema cannot check."""
    for field, keys in (("labels", template.labels), ("annotations", template.annotations)):
        for key in sorted(keys):
            if not _KEY.match(key):
                yield (
                    f"spec.podTemplate.{field}",
                    f"{key!r} is not a valid key: at most 63 letters, digits, dots, dashes "
                    "and underscores, after an optional domain and a slash",
                )
