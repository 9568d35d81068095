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

# Where a `pvc://` claim is mounted.
MODELS = "/models"
# Below it, by their names, the claims of `pvc://` adapters.
ADAPTERS = "/adapters"


def arguments(
    name: str, spec: InferenceServiceSpec, choice: HardwareChoice, defaults: Defaults
) -> list[str]:
    """Arguments of `vllm serve`, all limits explicit, so that no default of the engine decides.

    The defaults are read through NVML, which inside a slice answers for the whole GPU.
    """
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
    if spec.model.revision and spec.model.cache.type == "none":
        args.append(f"--revision={spec.model.revision}")
    if fit.precision:
        args.append(f"--quantization={fit.precision}")
    return [*args, *_adapters(spec.model), *spec.engine.extra_args]


def _adapters(model: Model) -> list[str]:
    """Loaded at every start of the engine, all at once in its memory, so that none waits."""
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
    """`hf://org/name` -> `org/name`, which the engine fetches; else where it is mounted."""
    return model_path(adapter.uri, f"{ADAPTERS}/{adapter.name}")


def served_path(model: Model) -> str:
    """What the engine is given: a name on the hub, or where the files are mounted."""
    if model.cache.type == "pvc":
        return f"{MODELS}/{folder_of(model)}"
    return model_path(model.uri)


def model_path(uri: str, mount: str = MODELS) -> str:
    """`hf://org/name` -> `org/name`; `pvc://claim/path` -> the path below the mount; an
    image is mounted whole."""
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        return rest
    if scheme == "oci":
        return mount
    _, _, path = rest.partition("/")
    return f"{mount}/{path}".rstrip("/")


def pvc_claim_name(uri: str) -> str | None:
    """The PersistentVolumeClaim of a `pvc://` model."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def whole_seconds(span: timedelta) -> int:
    """Whole seconds, rounded up."""
    return math.ceil(span.total_seconds())
