"""The loaders of `spec.engine.loader`: arguments, host memory, and the models that they read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tessera.api.engine_options import Loader, memory_gib
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape

_DEFAULT_BUFFER = "4Gi"
_LOADER = "spec.engine.loader"


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoaderFacts:
    """What vLLM calls a loader, and what it needs."""

    load_format: str
    concurrency_key: str = ""
    """The key of its configuration for parallel reads; empty if it has none."""
    buffered: bool = False
    """It reads through a buffer whose size its configuration bounds."""
    host_mib: int = 0
    """Host memory for each GPU beside that; assumed, since no loader documents it."""
    as_saved: bool = False
    """Its files hold the weights as an engine had them."""


_FACTS: Mapping[str, _LoaderFacts] = {
    "Safetensors": _LoaderFacts(load_format="safetensors"),
    "RunaiStreamer": _LoaderFacts(
        load_format="runai_streamer", concurrency_key="concurrency", buffered=True
    ),
    "InstantTensor": _LoaderFacts(load_format="instanttensor", host_mib=1024),
    "FastSafetensors": _LoaderFacts(load_format="fastsafetensors", host_mib=1024),
    "Tensorizer": _LoaderFacts(
        load_format="tensorizer", concurrency_key="num_readers", host_mib=1024, as_saved=True
    ),
    "ShardedState": _LoaderFacts(load_format="sharded_state", as_saved=True),
    "Dummy": _LoaderFacts(load_format="dummy"),
}


def loader_arguments(loader: Loader, path: str, devices: int) -> list[str]:
    """Return the flags of a loader that reads the model at `path` for so many GPUs."""
    facts, config = _FACTS[loader.type], dict[str, Any]()
    if loader.type == "Tensorizer":
        # vLLM puts the rank in place of %03d.
        name = "model.tensors" if devices == 1 else "model-rank-%03d.tensors"
        config["tensorizer_uri"] = f"{path}/{name}"
    if loader.concurrency is not None and facts.concurrency_key:
        config[facts.concurrency_key] = loader.concurrency
    if facts.buffered:
        # Its own default is up to 40 GB, which no request of a pod would count.
        config["memory_limit"] = _buffer_mib(loader) * 2**20
    flags = [f"--load-format={facts.load_format}"]
    if config:
        text = json.dumps(config, separators=(",", ":"))
        flags.append(f"--model-loader-extra-config={text}")
    return flags


def loader_host_mib(loader: Loader | None, devices: int) -> int:
    """Return the host memory that a loader needs beside the engine's own, in MiB."""
    if loader is None:
        return 0
    facts = _FACTS[loader.type]
    return devices * (facts.host_mib + (_buffer_mib(loader) if facts.buffered else 0))


def loader_faults(
    spec: InferenceServiceSpec, shape: ModelShape | None
) -> Iterator[tuple[str, str]]:
    """Yield field and message of what the loader of a spec has no use for or cannot read."""
    loader = spec.engine.loader
    if loader is None:
        return
    facts = _FACTS[loader.type]
    for argument, value, types in (
        ("concurrency", loader.concurrency, [t for t, f in _FACTS.items() if f.concurrency_key]),
        ("buffer", loader.buffer, [t for t, f in _FACTS.items() if f.buffered]),
    ):
        if value is not None and loader.type not in types:
            yield (
                f"{_LOADER}.{argument}",
                f"{value} has no effect, since {loader.type} has no such argument; remove it, or "
                f"set type to {' or '.join(types)}",
            )
    yield from _saved_file_faults(spec, loader)
    if facts.buffered and shape is not None and shape.embedding_parameters:
        # The embedding is the largest tensor of most models, and hardly ever quantized.
        needed_mib = shape.embedding_parameters * max(16, shape.bits_per_weight) // 8 / 2**20
        if needed_mib > _buffer_mib(loader):
            yield (
                f"{_LOADER}.buffer",
                f"{loader.buffer or _DEFAULT_BUFFER} is less than the model's embedding of "
                f"{needed_mib / 1024:.1f} GiB, which is read at once; set "
                f"{-(-needed_mib // 1024):.0f}Gi",
            )


def _saved_file_faults(spec: InferenceServiceSpec, loader: Loader) -> Iterator[tuple[str, str]]:
    """Yield what has no files as the loader's engine saved them."""
    own_files = [variant.uri for variant in spec.precision.variants if variant.uri is not None]
    for uri in (spec.model.uri, *own_files):
        if loader.type == "Tensorizer" and not uri.startswith(("pvc://", "oci://")):
            yield (
                f"{_LOADER}.type",
                f"Tensorizer reads model.tensors at a path, and {uri} has none; save the model "
                "with vLLM's tensorizer to a claim (pvc://) or an image (oci://), or set another "
                "type",
            )
    if loader.type == "Tensorizer" and spec.engine.draft is not None:
        yield (
            f"{_LOADER}.type",
            "Tensorizer would read the model's own model.tensors for the draft of "
            "spec.engine.speculation as well; use the method NGram, or set another type",
        )
    if loader.type == "ShardedState" and spec.engine.tensor_parallel_size is None:
        yield (
            f"{_LOADER}.type",
            "ShardedState reads files that were saved for a certain number of GPUs; set "
            "spec.engine.tensorParallelSize to it",
        )
    if _FACTS[loader.type].as_saved and len(own_files) < len(spec.precision.variants):
        yield (
            f"{_LOADER}.type",
            f"{loader.type} reads weights as they were saved, and fp8 without a uri in "
            "spec.precision.variants is made while loading; name saved files in its uri, remove "
            "it, or set another type",
        )


def _buffer_mib(loader: Loader) -> int:
    return memory_gib(loader.buffer or _DEFAULT_BUFFER) * 1024
