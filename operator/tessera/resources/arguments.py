"""The command line of the engine."""

import math
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import Adapter
from tessera.domain.model.names import folder_of
from tessera.domain.names import PORT
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.sizing.lora import engine_rank
from tessera.resources.defaults import Defaults

# Mount path of a `pvc://` claim.
MODELS = "/models"
# Parent of the mount paths of `pvc://` adapters.
ADAPTERS = "/adapters"
# An engine without any allowed host fetches media from all. No host has this name (RFC 2606).
_NO_HOST = "media.invalid"


def arguments(
    name: str, spec: InferenceServiceSpec, choice: HardwareChoice, defaults: Defaults
) -> list[str]:
    """Return the arguments of `vllm serve`, with all limits explicit."""
    # vLLM computes its own defaults through NVML, which inside a MIG slice reports the whole GPU.
    fit = choice.fit
    args = [
        served_path(spec.model),
        f"--served-model-name={spec.model.served_name or name}",
        f"--port={PORT}",
        f"--max-model-len={fit.max_model_len}",
        f"--max-num-seqs={fit.limits.max_num_seqs}",
        f"--max-num-batched-tokens={fit.limits.max_num_batched_tokens}",
        f"--gpu-memory-utilization={defaults.gpu_memory_utilization}",
        f"--tensor-parallel-size={fit.hardware.devices}",
        "--scheduling-policy=priority",
        f"--shutdown-timeout={whole_seconds(spec.drain.timeout)}",
        *defaults.flags,
    ]
    if defaults.limits_media:
        args += ["--allowed-media-domains", *(spec.engine.allowed_media_domains or (_NO_HOST,))]
    if spec.model.revision and spec.model.cache.type == "None":
        args.append(f"--revision={spec.model.revision}")
    if fit.precision:
        args.append(f"--quantization={fit.precision}")
    return [*args, *_adapters(spec.model), *spec.engine.extra_args]


def _adapters(model: Model) -> list[str]:
    """Return the LoRA flags; all adapters are loaded at the start, so that no request waits."""
    if not model.adapters:
        return []
    return [
        "--lora-modules",
        *(f"{adapter.name}={adapter_path(adapter)}" for adapter in model.adapters),
        "--enable-lora",
        f"--max-loras={len(model.adapters)}",
        f"--max-lora-rank={engine_rank(model.adapters)}",
    ]


def adapter_path(adapter: Adapter) -> str:
    """Return `org/name` for `hf://org/name`, which the engine downloads; else the mount path."""
    return model_path(adapter.uri, f"{ADAPTERS}/{adapter.name}")


def served_path(model: Model) -> str:
    """Return what the engine serves: a repository on the hub, or the path of the mounted files."""
    if model.cache.type == "PersistentVolumeClaim":
        return f"{MODELS}/{folder_of(model)}"
    return model_path(model.uri)


def model_path(uri: str, mount: str = MODELS) -> str:
    """Return `org/name` for `hf://org/name`, and for `pvc://claim/path` the path below the mount.

    An image is mounted as a whole.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        return rest
    if scheme == "oci":
        return mount
    _, _, path = rest.partition("/")
    return f"{mount}/{path}".rstrip("/")


def pvc_claim_name(uri: str) -> str | None:
    """Return the PersistentVolumeClaim of a `pvc://` model; None for any other."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def whole_seconds(span: timedelta) -> int:
    """Return whole seconds, rounded up."""
    return math.ceil(span.total_seconds())
