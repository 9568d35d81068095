"""The command line of the engine."""

import math
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.names import PORT
from tessera.domain.placement import Choice
from tessera.resources.defaults import Defaults

MODELS = "/models"
"""Where a `pvc://` claim is mounted."""


def arguments(
    name: str, spec: InferenceServiceSpec, choice: Choice, defaults: Defaults
) -> list[str]:
    """Arguments of `vllm serve`, all limits explicit, so that no default of the engine decides.

    The defaults are read through NVML, which inside a slice answers for the whole GPU.
    """
    fit = choice.fit
    told = [
        model_path(spec.model.uri),
        f"--served-model-name={spec.model.served_name or name}",
        f"--port={PORT}",
        f"--max-model-len={fit.max_model_len}",
        f"--max-num-seqs={fit.limits.max_num_seqs}",
        f"--max-num-batched-tokens={fit.limits.max_num_batched_tokens}",
        f"--gpu-memory-utilization={defaults.gpu_memory_utilization}",
        f"--tensor-parallel-size={fit.hardware.devices}",
        "--scheduling-policy=priority",
        f"--shutdown-timeout={seconds(spec.drain.timeout)}",
        *defaults.flags,
    ]
    if spec.model.revision:
        told.append(f"--revision={spec.model.revision}")
    if fit.precision:
        told.append(f"--quantization={fit.precision}")
    return [*told, *spec.engine.extra_args]


def model_path(uri: str) -> str:
    """`hf://org/name` -> `org/name`; `pvc://claim/path` -> the path below the mount."""
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        return rest
    _, _, path = rest.partition("/")
    return f"{MODELS}/{path}".rstrip("/")


def claim(uri: str) -> str | None:
    """The PersistentVolumeClaim of a `pvc://` model."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def seconds(span: timedelta) -> int:
    """Whole seconds, rounded up."""
    return math.ceil(span.total_seconds())
