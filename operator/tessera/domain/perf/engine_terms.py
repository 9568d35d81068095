"""The options of an engine, in the terms of memory, scheduler limits and speed."""

from dataclasses import dataclass

from tessera.api.engine_options import EngineOptions, SpeculationOptions
from tessera.api.model_files import ModelShape
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.perf.footprint import KvBits
from tessera.domain.perf.speculation import assumed_acceptance
from tessera.domain.vllm.extra_args import DEFAULT_GRAPHS, CudaGraphs, cuda_graphs

# Share of a device that the engine uses; the default of vLLM 0.32.
GPU_MEMORY_UTILIZATION = 0.92
# Tokens of one block of the KV cache; the default of vLLM 0.32 on GPUs.
_BLOCK_TOKENS = 16
# Requests that a replica runs at once at most, where no field says how many.
_USUAL_SEQUENCES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTerms:
    """What the options of an engine change of a replica; None leaves the choice to sizing."""

    devices: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
    kv_bits: KvBits | None = None
    """None: as the files of the model ask for."""
    block_tokens: int = _BLOCK_TOKENS
    chunked_prefill: bool = True
    graphs: CudaGraphs = DEFAULT_GRAPHS
    draft: ModelShape | None = None
    """Draft model of speculative decoding; its weights and cache are on the same devices."""
    draft_tokens: int = 0
    """Tokens that a step drafts for each request; 0 is no speculation."""
    acceptance: float = 0.0
    """Probability that a drafted token is accepted, given that those before it were."""

    @property
    def launches_layers(self) -> bool:
        """Return whether full steps of decoding are larger than any graph."""
        sequences = self.max_num_seqs or _USUAL_SEQUENCES
        return self.graphs.largest < min(
            sequences * (1 + self.draft_tokens), DEFAULT_GRAPHS.largest
        )


DEFAULT_TERMS = EngineTerms()


def engine_terms(options: EngineOptions) -> EngineTerms:
    """Return the terms of `spec.engine`; an option that has no part in them has no effect there.

    Speculation is planned with the acceptance that is assumed for draft models, and for n-grams
    with none: how often answers repeat their prompts only a measurement shows.
    """
    share, speculation = options.gpu_memory_utilization, options.speculation
    speculates = speculation is not None and speculation.tokens > 0
    return EngineTerms(
        devices=options.tensor_parallel_size,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        gpu_memory_utilization=GPU_MEMORY_UTILIZATION if share is None else float(share),
        kv_bits=None if options.kv_cache_dtype in (None, "Auto") else 8,
        block_tokens=options.block_size or _BLOCK_TOKENS,
        chunked_prefill=options.chunked_prefill is not False,
        graphs=cuda_graphs(options),
        draft=draft_shape(options) if speculates else None,
        draft_tokens=speculation.tokens if speculation is not None else 0,
        acceptance=planned_acceptance(speculation) if speculation is not None else 0.0,
    )


def draft_shape(options: EngineOptions) -> ModelShape | None:
    """Return the draft model's shape from the options, else from the built-in catalog."""
    draft = options.draft
    if draft is None:
        return None
    return draft.shape or models().get(draft.uri.removeprefix("hf://"))


def planned_acceptance(speculation: SpeculationOptions) -> float:
    """Return the acceptance by which memory, limits and price are planned."""
    return 0.0 if speculation.method == "NGram" else assumed_acceptance()
