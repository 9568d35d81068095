"""The command line of the engine."""

import json
import math
from collections.abc import Iterator
from datetime import timedelta

from tessera.api.engine_options import EngineOptions, SpeculationOptions
from tessera.api.inference_service import InferenceServiceSpec, Model
from tessera.api.model_files import Adapter
from tessera.domain.model.precision_files import files_of
from tessera.domain.names import PORT
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import pooling_task
from tessera.domain.sizing.lora import engine_rank
from tessera.domain.vllm.loaders import loader_arguments
from tessera.resources.defaults import Defaults

# Mount path of a `pvc://` claim.
MODELS = "/models"
# Parent of the mount paths of `pvc://` adapters.
ADAPTERS = "/adapters"
# Mount path of a `pvc://` draft model.
DRAFT = "/draft"
# Mount path of the chat template of a ConfigMap, and its name there.
CHAT_TEMPLATE, CHAT_TEMPLATE_FILE = "/chat-template", "template.jinja"
# The methods of speculation, as vLLM names them.
_METHODS = {"NGram": "ngram", "DraftModel": "draft_model", "Eagle": "eagle"}
# Tokens at the end of the text that are looked up in the prompt.
_LONGEST_NGRAM, _SHORTEST_NGRAM = 4, 2
# An engine without any allowed host fetches media from all. No host has this name (RFC 2606).
_NO_HOST = "media.invalid"


def arguments(
    name: str, spec: InferenceServiceSpec, choice: HardwareChoice, defaults: Defaults
) -> list[str]:
    """Return the arguments of `vllm serve`, with all limits explicit."""
    # vLLM computes its own defaults through NVML, which inside a MIG slice reports the whole GPU.
    fit = choice.fit
    args = [
        model_path(spec.model.uri),
        f"--served-model-name={spec.model.served_name or name}",
        f"--port={PORT}",
        f"--max-model-len={fit.max_model_len}",
        f"--max-num-seqs={fit.limits.max_num_seqs}",
        f"--max-num-batched-tokens={fit.limits.max_num_batched_tokens}",
        f"--gpu-memory-utilization={_memory_share(spec.engine, defaults)}",
        f"--tensor-parallel-size={fit.hardware.devices}",
        "--scheduling-policy=priority",
        f"--shutdown-timeout={whole_seconds(spec.drain.timeout)}",
        *defaults.flags,
    ]
    if (loader := spec.engine.loader) is not None:
        args += loader_arguments(loader, args[0], fit.hardware.devices)
    if defaults.limits_media:
        args += ["--allowed-media-domains", *(spec.engine.allowed_media_domains or (_NO_HOST,))]
    if spec.model.revision:
        args.append(f"--revision={spec.model.revision}")
    is_pooling = pooling_task(spec) is not None
    if defaults.reports_cached_tokens and not is_pooling:
        args.append("--enable-prompt-tokens-details")
    if is_pooling:
        args.append("--runner=pooling")
    elif spec.engine.runner == "Generate":
        args.append("--runner=generate")
    if fit.precision and files_of(spec, fit.precision) is None:
        args.append(f"--quantization={fit.precision}")
    return [*args, *_adapters(spec.model), *_options(spec.engine), *spec.engine.extra_args]


def _memory_share(engine: EngineOptions, defaults: Defaults) -> str:
    share = engine.gpu_memory_utilization
    return str(defaults.gpu_memory_utilization) if share is None else format(share, "f")


def _options(engine: EngineOptions) -> Iterator[str]:
    """Yield the flags of the options that are set and that sizing has no part in."""
    if engine.kv_cache_dtype not in (None, "Auto"):
        yield f"--kv-cache-dtype={engine.kv_cache_dtype}"
    if engine.block_size is not None:
        yield f"--block-size={engine.block_size}"
    if engine.kv_offload is not None:
        yield f"--kv-offloading-size={engine.kv_offload.gib}"
    yield from _switch("enable-chunked-prefill", engine.chunked_prefill)
    yield from _switch("enable-prefix-caching", engine.prefix_caching)
    yield from _switch("enable-expert-parallel", engine.expert_parallel)
    if engine.reasoning_parser is not None:
        yield f"--reasoning-parser={engine.reasoning_parser}"
    if engine.tool_call_parser is not None:
        yield "--enable-auto-tool-choice"
        yield f"--tool-call-parser={engine.tool_call_parser}"
    if engine.chat_template is not None:
        yield f"--chat-template={CHAT_TEMPLATE}/{CHAT_TEMPLATE_FILE}"
    if engine.speculation is not None and engine.speculation.tokens:
        yield f"--speculative-config={_speculative_config(engine.speculation)}"
        # Each answer says how many of its drafts were accepted; gateways count by temperature.
        yield "--per-request-spec-decode-metrics=summary"
    backend = engine.structured_outputs_backend
    if backend not in (None, "Auto"):
        yield f"--structured-outputs-config.backend={backend}"


def _speculative_config(speculation: SpeculationOptions) -> str:
    """Return the engine's JSON; the draft is sharded like the model, which is its default."""
    config: dict[str, str | int] = {
        "method": _METHODS[speculation.method],
        "num_speculative_tokens": speculation.tokens,
    }
    draft = speculation.model
    if draft is None:
        config |= {"prompt_lookup_max": _LONGEST_NGRAM, "prompt_lookup_min": _SHORTEST_NGRAM}
    else:
        config["model"] = model_path(draft.uri, DRAFT)
        if speculation.method == "Eagle" and "eagle3" in draft.uri.lower().replace("-", ""):
            config["method"] = "eagle3"
        if draft.revision is not None:
            config["revision"] = draft.revision
    return json.dumps(config, separators=(",", ":"))


def _switch(flag: str, value: bool | None) -> Iterator[str]:
    if value is not None:
        yield f"--{flag}" if value else f"--no-{flag}"


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
