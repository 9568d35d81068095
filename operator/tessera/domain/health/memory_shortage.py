"""What an engine's GPU memory did not suffice for, by the words of its log.

Fragmented memory and a KV cache without room look alike on the GPU: full. The engine's own words
tell weights, KV cache and activations apart, and each has another remedy.
"""

import re

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Progressing
from tessera.domain.perf.engine_terms import engine_terms

# In the order in which they are looked for: the last is in the log of the first as well.
_WORDS = (
    (
        Progressing.DEVICE_MEMORY_IN_USE,
        re.compile(r"on startup\s+is less than desired GPU memory utilization"),
    ),
    (
        Progressing.WEIGHTS_OUT_OF_MEMORY,
        re.compile(r"Failed to load model - not enough GPU memory"),
    ),
    (
        Progressing.KV_CACHE_OUT_OF_MEMORY,
        re.compile(
            r"No available memory for the cache blocks"
            r"|KV cache is needed, which is larger than the available KV cache memory"
        ),
    ),
    (
        Progressing.ACTIVATIONS_OUT_OF_MEMORY,
        re.compile(r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory"),
    ),
)
_LOADING = re.compile(r"\bin (load_model|load_weights|process_weights_after_loading)\b")
_POSSIBLE_CONTEXT = re.compile(r"estimated maximum model length is ([0-9]{1,9})\b")
# What a step's activations gain, as a share of the device.
_SMALLER_SHARE = 0.05


def memory_shortage(log_tail: str) -> Progressing | None:
    """Return what the memory did not suffice for; None where the log says nothing of it."""
    for reason, words in _WORDS:
        if words.search(log_tail):
            is_loading = reason is Progressing.ACTIVATIONS_OUT_OF_MEMORY and _LOADING.search(
                log_tail
            )
            return Progressing.WEIGHTS_OUT_OF_MEMORY if is_loading else reason
    return None


def memory_advice(
    shortage: Progressing, spec: InferenceServiceSpec | None, log_tail: str
) -> str | None:
    """Return the fields to change, the least costly first."""
    if spec is None:
        return None
    share = engine_terms(spec.engine).gpu_memory_utilization
    match shortage:
        case Progressing.WEIGHTS_OUT_OF_MEMORY:
            precision = "" if spec.precision.variants else "allow fp8 in spec.precision.variants, "
            return (
                "spec.model: the weights do not fit, and no share of memory helps; "
                f"{precision}set spec.engine.tensorParallelSize, or correct spec.model.shape by "
                "the files, so that larger hardware is chosen"
            )
        case Progressing.KV_CACHE_OUT_OF_MEMORY:
            possible = _POSSIBLE_CONTEXT.search(log_tail)
            most = f" to at most {possible[1]}" if possible else ""
            dtype = (
                ", or set spec.engine.kvCacheDtype: fp8"
                if engine_terms(spec.engine).kv_bits is None
                else ""
            )
            return (
                f"spec.context.maxModelLen: the KV cache is too small for one request; lower it"
                f"{most}, raise spec.engine.gpuMemoryUtilization from {share:g}{dtype}"
            )
        case Progressing.ACTIVATIONS_OUT_OF_MEMORY:
            return (
                "spec.engine: a step needs more memory than weights and KV cache leave; lower "
                "maxNumBatchedTokens or maxNumSeqs, or gpuMemoryUtilization from "
                f"{share:g} to {share - _SMALLER_SHARE:.2f}, which makes the KV cache smaller"
            )
        case _:
            return (
                "spec.engine.gpuMemoryUtilization: another process uses the memory of the GPU; "
                f"stop it (nvidia-smi on the node shows it), or lower {share:g} to what is free"
            )
