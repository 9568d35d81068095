"""The arguments of `vllm serve`, validated as its process would validate them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.extra_args import captured_graphs
from tessera.domain.vllm.facts import EngineFacts
from tessera.domain.vllm.flags import PASSES_PARSER, FlagProblemKind
from tessera_lab.sim.errors import EngineExit

_UNRECOGNIZED = frozenset(
    {
        FlagProblemKind.UNKNOWN,
        FlagProblemKind.REMOVED,
        FlagProblemKind.RENAMED,
        FlagProblemKind.UNEXPECTED_ARGUMENT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The flags that have an effect here, by their destination; all others are only validated."""

    model: str
    model_tag: str | None
    served_model_name: tuple[str, ...] | None
    port: int
    api_key: tuple[str, ...] | None
    quantization: str | None
    lora_modules: tuple[str, ...] | None
    max_lora_rank: int
    max_loras: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    block_size: int | None
    kv_cache_dtype: str
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_num_queued_reqs: int | None
    max_num_queued_tokens: int | None
    scheduling_policy: str
    shutdown_timeout: int
    disable_log_stats: bool
    enable_chunked_prefill: bool | None
    enable_force_include_usage: bool
    enable_lora: bool
    enable_mfu_metrics: bool
    enable_per_request_metrics: bool
    enable_prefix_caching: bool | None
    enable_prompt_tokens_details: bool
    enable_request_id_headers: bool
    enable_server_load_tracking: bool
    kv_cache_metrics: bool
    max_logprobs: int
    speculative_config: Any
    hf_overrides: Any
    language_model_only: bool
    limit_mm_per_prompt: object
    runner: str
    enforce_eager: bool
    optimization_level: object
    compilation_config: object
    cudagraph_capture_sizes: tuple[int, ...] | None
    max_cudagraph_capture_size: int | None

    @property
    def adapter_paths(self) -> Mapping[str, str]:
        """Return the paths of the adapters by name."""
        return dict(map(_parse_adapter, self.lora_modules or ()))

    @property
    def terms(self) -> EngineTerms:
        """Return the flags in the terms of memory and speed."""
        defaults = EngineTerms()
        return EngineTerms(
            gpu_memory_utilization=self.gpu_memory_utilization,
            kv_bits=8 if self.kv_cache_dtype.startswith("fp8") else None,
            block_tokens=self.block_size or defaults.block_tokens,
            graphs=captured_graphs(asdict(self)),
        )

    @property
    def named_model(self) -> str:
        """Return the model that the positional argument, or the flag, names."""
        return self.model_tag or self.model


def parse_arguments(argv: Sequence[str], facts: EngineFacts) -> Arguments:
    """Return the arguments over the defaults; raise EngineExit with the engine's exit code."""
    problems = vllm_flags.check(argv, facts)
    unknown = [problem.flag for problem in problems if problem.kind in _UNRECOGNIZED]
    if unknown:
        raise EngineExit(2, f"vllm serve: error: unrecognized arguments: {' '.join(unknown)}")
    for problem in problems:
        if problem.kind not in PASSES_PARSER:
            raise EngineExit(2, f"vllm serve: error: {problem.message}")
    for problem in problems:
        if problem.kind is FlagProblemKind.OUT_OF_RANGE:
            raise EngineExit(1, f"ValueError: {problem.message}")
    values = {**vllm_flags.defaults(facts), **vllm_flags.parse(argv, facts)}
    if values.get("lora_modules") and not values.get("enable_lora"):
        raise EngineExit(1, "ValueError: --lora-modules needs --enable-lora")
    selected: dict[str, Any] = {field.name: values.get(field.name) for field in fields(Arguments)}
    return Arguments(**selected)


def _parse_adapter(text: str) -> tuple[str, str]:
    """Parse `name=path`, or the same as JSON."""
    if text.startswith("{"):
        entry = json.loads(text)
        return entry["name"], entry["path"]
    name, _, path = text.partition("=")
    return name, path
