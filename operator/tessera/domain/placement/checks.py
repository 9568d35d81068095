"""Checks of a spec, the same in admission and in the cycle."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tessera.api.accelerator_pool import Tier
from tessera.api.engine_options import EngineOptions
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape, PoolingTask
from tessera.api.reasons import Accepted, StatusVerdict
from tessera.api.text import counted
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.model import pooling as model_pooling
from tessera.domain.model.overrides import (
    context_fault,
    overridden_shape,
    uncounted_keys,
    without_media,
)
from tessera.domain.perf.engine_terms import draft_shape
from tessera.domain.perf.footprint import hidden_size
from tessera.domain.placement import pod_template
from tessera.domain.schedules import schedule_faults
from tessera.domain.sizing.precision import mismatch_reason
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera.domain.sizing.tensor_parallel import sharding_problem
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.extra_args import (
    config_overrides,
    counted_faults,
    extra_flags,
    loads_media,
)
from tessera.domain.vllm.facts import is_older, known_versions, version_facts
from tessera.domain.vllm.flag_classes import FlagClass, flag_rules
from tessera.domain.vllm.loaders import loader_faults

_EXTRA_ARGS = "spec.engine.extraArgs"
_DRAFT_SHAPE = "spec.engine.speculation.model.shape"
_SHAPE_FIELDS = "parameters, layers, attentionHeads, kvHeads, headDim, maxPositionEmbeddings"

_RECLAIMED = "may be reclaimed within 15 s; remove it, or set spec.class to Batch if no user waits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """One error of a spec: field, message and reason."""

    reason: Accepted
    field: str
    message: str
    transient: bool = False
    """It may pass without an edit of this object, so that admission only warns."""

    @property
    def sentence(self) -> str:
        return f"{self.field}: {self.message}"


# Tiers of the existing pools by name; None where the pool is invalid.
Tiers: TypeAlias = Mapping[str, Tier | None]
Check = Callable[[InferenceServiceSpec, Tiers], Iterator[Denial]]


def check(spec: InferenceServiceSpec, pools: Tiers) -> tuple[Denial, ...]:
    """Return all denials of a spec, of a service or a batch, given the existing pools."""
    return tuple(denial for rule in CHECKS for denial in rule(spec, pools))


def split_running(
    denials: Iterable[Denial], *, flags: bool, keys: bool
) -> tuple[tuple[Denial, ...], tuple[Denial, ...]]:
    """Return what does not stop a service that runs with its flags or pod keys, and the others."""
    tolerated = {
        *((Accepted.RESERVED_FLAG,) if flags else ()),
        *((Accepted.POD_KEY_NOT_ALLOWED,) if keys else ()),
    }
    running = tuple(each for each in denials if each.reason in tolerated)
    return running, tuple(each for each in denials if each.reason not in tolerated)


def tolerated_message(denials: Sequence[Denial]) -> str:
    """Return the warning about refused flags and pod keys with which engines run already."""
    sentences = "; ".join(each.sentence for each in denials)
    if all(each.reason is Accepted.POD_KEY_NOT_ALLOWED for each in denials):
        return f"{sentences}. What runs with it goes on"
    return f"{sentences}. What runs with it goes on, and is computed as an engine without it"


def engine_verdict(spec: InferenceServiceSpec) -> StatusVerdict[Accepted]:
    """Return `Valid`, or what cannot be known of an engine version without a flag table."""
    version, known = spec.engine.version, known_versions()
    if is_older(version, known[0]):
        return StatusVerdict(
            Accepted.UNTESTED_ENGINE_VERSION,
            f"spec.engine.version: vLLM {version} is older than {known[0]}, the oldest version "
            "that Tessera knows, and may lack flags and metrics that Tessera uses; use "
            f"{EngineOptions().version}, or read the log of the first replica",
        )
    if version in known or not spec.engine.extra_args:
        return StatusVerdict(Accepted.VALID, "the spec is valid")
    return StatusVerdict(
        Accepted.FLAGS_UNCHECKED,
        f"spec.engine.extraArgs: no flag table for vLLM {version} (known: {', '.join(known)}), so "
        f"{counted(len(spec.engine.extra_args), 'argument')} could not be checked",
    )


def shape_of(spec: InferenceServiceSpec) -> ModelShape | None:
    """Return the model's shape from the spec, else from the built-in catalog.

    In one that is not written in the spec the overrides replace the context.
    """
    shape = spec.model.shape or models().get(spec.model.uri.removeprefix("hf://"))
    if shape is None:
        return None
    if "shape" not in spec.model.model_fields_set:
        shape = overridden_shape(shape, config_overrides(spec.engine))
    return shape if loads_media(spec.engine) else without_media(shape)


def pooling_task(spec: InferenceServiceSpec) -> PoolingTask | None:
    """Return what the engine returns of a text; None if it generates text."""
    shape, runner = shape_of(spec), spec.engine.runner or "Auto"
    overridden = config_overrides(spec.engine)
    task = shape.pooling if shape is not None else None
    if "architectures" in overridden:
        task = model_pooling.pooling_task(overridden)
    return {"Auto": task, "Generate": None, "Pooling": task or "Embed"}[runner]


def max_model_len(spec: InferenceServiceSpec, shape: ModelShape) -> int:
    """Return the limit of the spec, else the default within the model's own."""
    return spec.context.max_model_len or min(DEFAULT_MAX_MODEL_LEN, shape.max_position_embeddings)


def needs_long_context(spec: InferenceServiceSpec, length: int) -> bool:
    """Return whether a context is right by the files' YaRN and longer than the engine derives."""
    shape = shape_of(spec)
    return shape is not None and length > (shape.derived_positions or length)


def unknown_model_denial(spec: InferenceServiceSpec, cause: str = "") -> Denial | None:
    """Return the denial of a model without a shape, with the cause if there is one."""
    if shape_of(spec) is not None:
        return None
    unknown = f"{spec.model.uri} is not among the {len(models())} built-in models"
    message = (
        f"{cause or unknown}; give {_SHAPE_FIELDS} from its config.json "
        "(kubectl explain tsvc.spec.model.shape)"
    )
    return Denial(reason=Accepted.UNKNOWN_MODEL, field="spec.model.shape", message=message)


def unknown_draft_denial(uri: str, cause: str) -> Denial:
    """Return the denial of a draft model whose configuration cannot be read."""
    message = (
        f"{cause}; give {_SHAPE_FIELDS} from the config.json of {uri}, or use another draft model"
    )
    return Denial(reason=Accepted.UNKNOWN_MODEL, field=_DRAFT_SHAPE, message=message)


def _check_draft(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    shape, draft, speculation = shape_of(spec), draft_shape(spec.engine), spec.engine.speculation
    if shape is None or draft is None or speculation is None or speculation.model is None:
        return
    if pooling_task(spec) is not None:
        return
    known, drafted = shape.vocab_size, draft.vocab_size
    if known is not None and drafted is not None and known != drafted:
        yield Denial(
            reason=Accepted.DRAFT_MISMATCH,
            field="spec.engine.speculation.model.uri",
            message=f"{speculation.model.uri} has a vocabulary of {counted(drafted, 'token')}, and "
            f"{spec.model.uri} one of {known}, so its drafts mean other text; name a draft of the "
            "same family, or set spec.engine.speculation.method: NGram",
        )
    if speculation.method == "Eagle" and hidden_size(draft) != hidden_size(shape):
        yield Denial(
            reason=Accepted.DRAFT_MISMATCH,
            field="spec.engine.speculation.model.uri",
            message=f"{speculation.model.uri} has a hidden size of {hidden_size(draft)}, and "
            f"{spec.model.uri} one of {hidden_size(shape)}, whose states the head reads; name the "
            "head that was trained for this model",
        )


def _check_context_length(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    shape = shape_of(spec)
    requested = spec.context.max_model_len
    if shape is None or requested is None:
        return
    if requested > (limit := shape.max_position_embeddings):
        yield Denial(
            reason=Accepted.CONTEXT_TOO_LONG,
            field="spec.context.maxModelLen",
            message=(
                f"{requested} exceeds the model's limit of {counted(limit, 'token')}; set at most "
                f"{limit}, or extend it by rope_parameters in --hf-overrides, if the model allows, "
                "within text_config where it reads media"
            ),
        )


def _check_runner(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    shape = shape_of(spec)
    if shape is None or pooling_task(spec) is not None:
        return
    # Many embedders are models of text with a pooled last layer; others have another last layer.
    is_replaced = "architectures" in config_overrides(spec.engine)
    has_head = shape.pooling not in (None, "Embed") and not is_replaced
    if not shape.encoder_only and not has_head:
        return
    model = f"an encoder of {counted(shape.layers, 'layer')}"
    if not shape.encoder_only:
        model = f"a model whose shape has pooling {shape.pooling}"
    fix = "write spec.model.shape.pooling beside encoderOnly"
    if spec.engine.runner == "Generate":
        fix = "remove it, or set Pooling"
    yield Denial(
        reason=Accepted.RUNNER_MISMATCH,
        field="spec.engine.runner",
        message=f"{model} generates no text; {fix}",
    )


def _check_precision(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    shape = shape_of(spec)
    if shape is None:
        return
    for index, variant in enumerate(spec.precision.variants):
        own_files = variant.uri is not None
        if (message := mismatch_reason(shape, variant.precision, own_files=own_files)) is not None:
            field = f"spec.precision.variants[{index}].precision"
            yield Denial(reason=Accepted.PRECISION_MISMATCH, field=field, message=message)


def _check_engine_options(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    for field, message in _engine_faults(spec):
        yield Denial(
            reason=Accepted.INVALID_ENGINE_OPTION, field=f"spec.engine.{field}", message=message
        )


def _engine_faults(spec: InferenceServiceSpec) -> Iterator[tuple[str, str]]:
    """Yield the options that the engine would refuse at its start, with what to write instead."""
    engine, shape = spec.engine, shape_of(spec)
    tokens, sequences = engine.max_num_batched_tokens, engine.max_num_seqs or 1
    drafted = engine.speculation.tokens if engine.speculation is not None else 0
    decoding = sequences * (1 + drafted)
    if tokens is not None and tokens <= decoding:
        beside = f" with {counted(drafted, 'drafted token')} each" if drafted else ""
        yield (
            "maxNumBatchedTokens",
            f"{tokens} leaves no token for prompts beside maxNumSeqs of {sequences}{beside}; set "
            f"at least {decoding + 1}, or lower maxNumSeqs",
        )
    is_pooling = pooling_task(spec) is not None
    if is_pooling and engine.speculation is not None:
        yield (
            "speculation",
            f"{spec.model.uri} is a pooling model, which generates no tokens to draft; remove it",
        )
    if shape is None:
        return
    longest = max_model_len(spec, shape)
    if tokens is not None and tokens < longest and (is_pooling or engine.chunked_prefill is False):
        cause = "a pooling model reads whole texts" if is_pooling else "chunkedPrefill is false"
        yield (
            "maxNumBatchedTokens",
            f"{tokens} holds no prompt of {counted(longest, 'token')}, and {cause}; set at least "
            f"{longest}, or lower spec.context.maxModelLen",
        )
    devices, draft = engine.tensor_parallel_size or 1, draft_shape(engine)
    if (problem := sharding_problem(shape, devices)) is not None:
        yield "tensorParallelSize", problem
    elif draft is not None and (problem := sharding_problem(draft, devices)) is not None:
        yield (
            "speculation.model.uri",
            f"the draft is sharded like the model, and its {problem}, or another draft",
        )
    if engine.expert_parallel and shape.experts is None and shape.active_parameters is None:
        yield (
            "expertParallel",
            f"{spec.model.uri} is no mixture of experts; remove it, or correct "
            "spec.model.shape.experts",
        )
    yield from _cache_faults(spec, shape)


def _cache_faults(spec: InferenceServiceSpec, shape: ModelShape) -> Iterator[tuple[str, str]]:
    """Yield the options of the KV cache that the model does not have, or no kernel reads."""
    engine, dtype = spec.engine, spec.engine.kv_cache_dtype
    if shape.encoder_only:
        for field, is_set in (
            ("kvCacheDtype", dtype not in (None, "Auto")),
            ("kvOffload", engine.kv_offload is not None),
            ("chunkedPrefill", engine.chunked_prefill),
            ("prefixCaching", engine.prefix_caching),
        ):
            if is_set:
                yield field, "an encoder reads whole texts and has no KV cache; remove it"
    elif dtype == "fp8_e5m2":
        precisions = {shape.quantization, *(each.precision for each in spec.precision.variants)}
        beside = "fp8 weights" if "fp8" in precisions else "multi-head latent attention"
        if "fp8" in precisions or shape.latent_dim is not None:
            yield (
                "kvCacheDtype",
                f"fp8_e5m2 does not run with {beside}; use fp8, which is fp8_e4m3",
            )


def _check_flags(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    if not spec.engine.extra_args:
        return
    version = f"(vLLM {spec.engine.version})"
    for message in _refused_flags(spec):
        refused = f"{message} {version}"
        yield Denial(reason=Accepted.RESERVED_FLAG, field=_EXTRA_ARGS, message=refused)
    table = version_facts(spec.engine.version)
    if table is None:
        return
    for problem in vllm_flags.check(spec.engine.extra_args, table):
        message = f"{problem.message} {version}"
        yield Denial(reason=Accepted.INVALID_FLAG, field=_EXTRA_ARGS, message=message)


def _refused_flags(spec: InferenceServiceSpec) -> Iterator[str]:
    """Yield why flags are refused, and what to write instead."""
    for name in _flag_names(extra_flags(spec.engine)):
        rule, flag = flag_rules().get(name), f"--{name.replace('_', '-')}"
        if rule is not None and rule.flag_class is FlagClass.SET:
            yield f"remove {flag}; it is set by {rule.note}"
        elif rule is not None and rule.flag_class is FlagClass.REFUSED:
            yield f"{flag} {rule.note}"
    for flag, message in counted_faults(spec.engine):
        yield f"{flag} {message}"
    overrides = config_overrides(spec.engine)
    if (fault := context_fault(overrides)) is not None:
        yield f"--hf-overrides: {fault}; correct it"
    if "shape" not in spec.model.model_fields_set:
        for key in uncounted_keys(overrides):
            yield (
                f"--hf-overrides: {key} may change the memory and the speed that are read from the "
                "files of the model; remove it, or write spec.model.shape as the engine will have "
                f"it ({_SHAPE_FIELDS})"
            )


def _flag_names(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the destinations of flags, and after them those of the keys of JSON flags."""
    for name, value in values.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{key}" for key in value)


def _check_loader(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    for field, message in loader_faults(spec, shape_of(spec)):
        yield Denial(reason=Accepted.LOADER_MISMATCH, field=field, message=message)


def _check_adapter_names(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    for index, adapter in enumerate(spec.model.adapters):
        if adapter.name == spec.model.served_name:
            yield Denial(
                reason=Accepted.ADAPTER_NAME_CONFLICT,
                field=f"spec.model.adapters[{index}].name",
                message=f"{adapter.name} is also spec.model.servedName, and 2 models need 2 names; "
                "rename one of them",
            )


def _check_schedules(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    if not spec.scaling.schedules:
        return
    for field, message in schedule_faults(spec.scaling):
        yield Denial(reason=Accepted.INVALID_SCHEDULE, field=field, message=message)


def _check_pools_exist(spec: InferenceServiceSpec, pools: Tiers) -> Iterator[Denial]:
    for index, name in enumerate(spec.placement.pools):
        if name not in pools:
            yield Denial(
                reason=Accepted.POOL_NOT_FOUND,
                field=f"spec.placement.pools[{index}]",
                message=f"AcceleratorPool/{name} not found; kubectl get acceleratorpools "
                f"lists {len(pools)}",
                transient=True,
            )


def _check_spot_pools(spec: InferenceServiceSpec, pools: Tiers) -> Iterator[Denial]:
    if spec.service_class != "Interactive":
        return
    if "Spot" in spec.placement.tiers:
        yield Denial(
            reason=Accepted.INTERACTIVE_ON_SPOT,
            field="spec.placement.tiers",
            message=f"the nodes of tier Spot {_RECLAIMED}",
        )
    for index, name in enumerate(spec.placement.pools):
        if pools.get(name) == "Spot":
            yield Denial(
                reason=Accepted.INTERACTIVE_ON_SPOT,
                field=f"spec.placement.pools[{index}]",
                message=f"AcceleratorPool/{name} is of tier Spot, whose nodes {_RECLAIMED}",
            )


def _check_pod_template(spec: InferenceServiceSpec, _: Tiers) -> Iterator[Denial]:
    for reason, findings in (
        (Accepted.RESERVED_FLAG, pod_template.unplanned_variables(spec.pod_template)),
        (Accepted.RESERVED_POD_TEMPLATE_FIELD, pod_template.reserved_entries(spec.pod_template)),
        (Accepted.INVALID_POD_TEMPLATE, pod_template.malformed_keys(spec.pod_template)),
        (Accepted.POD_KEY_NOT_ALLOWED, pod_template.unlisted_keys(spec.pod_template)),
    ):
        for field, message in findings:
            yield Denial(reason=reason, field=field, message=message)


CHECKS: tuple[Check, ...] = (
    _check_context_length,
    _check_runner,
    _check_precision,
    _check_draft,
    _check_adapter_names,
    _check_engine_options,
    _check_flags,
    _check_loader,
    _check_pod_template,
    _check_schedules,
    _check_pools_exist,
    _check_spot_pools,
)
