"""What `spec.engine.extraArgs` says of memory and speed: the values of counted flags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tessera.api.engine_options import EngineOptions
from tessera.domain.incremental import tabulated
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import known_versions, version_facts

# vLLM captures a graph of 1, 2, 4, of each 8th size below 256 and of each 16th up to the largest.
_DEFAULT_LARGEST = 512
_MEDIA = ("image", "video", "audio")
_GRAPHS_KEYS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode", "mode")
# vLLM's own size of the cache of media, which an engine and its API server each have.
_MEDIA_CACHE_GIB, _MEDIA_CACHES = 4, 2
# Levels and modes without graphs, and those of which attention is in none.
_NO_GRAPHS, _PIECEWISE = ("0", "NONE"), ("1", "PIECEWISE")


@dataclass(frozen=True, slots=True)
class CudaGraphs:
    """The CUDA graphs of an engine."""

    count: int
    """How many batch sizes are captured."""
    largest: int
    """The tokens of the largest captured step; a larger one launches its layers. 0 without any
    step that does not."""


def graph_sizes(largest: int) -> int:
    """Return how many sizes vLLM captures up to a largest one."""
    small = sum(size <= largest for size in (1, 2, 4))
    return small + len(range(8, min(largest, 255) + 1, 8)) + len(range(256, largest + 1, 16))


DEFAULT_GRAPHS = CudaGraphs(graph_sizes(_DEFAULT_LARGEST), _DEFAULT_LARGEST)


def extra_flags(engine: EngineOptions) -> Mapping[str, Any]:
    """Return the values of `extraArgs`, by the newest table if the version has none."""
    table = version_facts(engine.version) or version_facts(known_versions()[-1])
    if table is None or not engine.extra_args:
        return {}
    return _parsed_flags(engine.extra_args, table.version)


def _parse_flags(args: tuple[str, ...], version: str) -> Mapping[str, Any]:
    table = version_facts(version)
    return {} if table is None else vllm_flags.parse(args, table)


# One judgment of a spec asks for its flags some thirty times in a row.
_parsed_flags = tabulated(_parse_flags, size=2)


def config_overrides(engine: EngineOptions) -> Mapping[str, Any]:
    """Return what `--hf-overrides` replaces of the model's `config.json`."""
    # Shapes are asked for often, and few engines have overrides.
    if not any("hf" in argument for argument in engine.extra_args):
        return {}
    return _object(extra_flags(engine).get("hf_overrides"))


def loads_media(engine: EngineOptions) -> bool:
    """Return whether an engine loads the parts of its model that read images, clips or sound."""
    if not any("language" in each or "limit" in each for each in engine.extra_args):
        return True
    return has_media(extra_flags(engine))


def has_media(values: Mapping[str, Any]) -> bool:
    """Return whether parts that read media are loaded, by the values of flags."""
    limits = _object(values.get("limit_mm_per_prompt"))
    counts = [_object(limits.get(each)).get("count", limits.get(each)) for each in _MEDIA]
    return not (values.get("language_model_only") or all(count == 0 for count in counts))


def media_cache_mib(engine: EngineOptions) -> int:
    """Return the MiB of host memory that media may take beyond what they do by default."""
    if not any("cache" in each for each in engine.extra_args):
        return 0
    gib: float = extra_flags(engine).get("mm_processor_cache_gb", _MEDIA_CACHE_GIB)
    return max(0, ceil((gib - _MEDIA_CACHE_GIB) * _MEDIA_CACHES * 1024))


def cuda_graphs(engine: EngineOptions) -> CudaGraphs:
    """Return the graphs that an engine captures."""
    return captured_graphs(extra_flags(engine)) if engine.extra_args else DEFAULT_GRAPHS


def captured_graphs(values: Mapping[str, Any]) -> CudaGraphs:
    """Return the graphs of the values of flags."""
    config = _object(values.get("compilation_config"))
    level = _word(values.get("optimization_level", "2"))
    modes = {level, _word(config.get("mode", "3")), _word(config.get("cudagraph_mode", ""))}
    if values.get("enforce_eager") or not modes.isdisjoint(_NO_GRAPHS):
        return CudaGraphs(0, 0)
    sizes = values.get("cudagraph_capture_sizes") or config.get("cudagraph_capture_sizes")
    name = "max_cudagraph_capture_size"
    largest = config.get(name) if values.get(name) is None else values[name]
    graphs = DEFAULT_GRAPHS
    if isinstance(sizes, Sequence) and sizes and all(isinstance(size, int) for size in sizes):
        graphs = CudaGraphs(len(sizes), max(sizes))
    elif isinstance(largest, int):
        graphs = CudaGraphs(graph_sizes(largest), largest)
    return graphs if modes.isdisjoint(_PIECEWISE) else CudaGraphs(graphs.count, 0)


def counted_faults(engine: EngineOptions) -> Iterator[tuple[str, str]]:
    """Yield the counted flags with a value that is computed nowhere, and what to write instead."""
    values = extra_flags(engine)
    if (dtype := values.get("dtype")) in ("float", "float32"):
        yield (
            f"--dtype {dtype}",
            "keeps 32 bits of each weight and of each value in the KV cache, of which no speed is "
            "known; write bfloat16 or float16, or remove it",
        )
    overrides = values.get("hf_overrides", {})
    if not isinstance(overrides, Mapping):
        yield (
            f"--hf-overrides {str(overrides)[:40]}",
            "is no JSON object; write one with keys of the model's config.json",
        )
    for key in _object(values.get("compilation_config")):
        if "cudagraph" in key and key not in _GRAPHS_KEYS:
            yield (
                f"--compilation-config.{key}",
                "changes which graphs are captured, and their memory is counted by "
                f"{', '.join(_GRAPHS_KEYS[:3])} alone; remove it",
            )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: object) -> str:
    """Return a mode as vLLM names or numbers it: `O0`, `0` and `none` are one."""
    return re.sub(r"^O(?=\d)", "", str(value).upper())
