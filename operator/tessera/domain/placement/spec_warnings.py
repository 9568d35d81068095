"""Warnings for valid but unwise specs, shown by `kubectl apply`."""

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

from tessera.api.inference_service import SLOW_ITL, Context, InferenceServiceSpec
from tessera.api.precision import PrecisionName
from tessera.api.text import counted
from tessera.domain.perf.engine_terms import draft_shape
from tessera.domain.placement.checks import pooling_task, shape_of

# A context this many times a typical request is rarely used, but its memory is always paid.
_LONG_CONTEXT_RATIO = 16
# Response lengths vary: a drain this many times a typical response lets most of them finish.
_DRAIN_FACTOR = 2
# Between these a draft is cheap and still accepted.
_MIN_DRAFT_RATIO, _MAX_DRAFT_RATIO = 5, 10
# Percent of the score that sources give as a bound, near nothing for 8 bits.
_PUBLISHED_LOSS: Mapping[PrecisionName, int] = {
    "int8": 1,
    "fp8": 1,
    "awq-int4": 2,
    "gptq-int4": 2,
    "nvfp4": 2,
    "mxfp4": 2,
}


def spec_warnings(spec: InferenceServiceSpec) -> tuple[str, ...]:
    """Return a warning for every unwise field: path, numbers, and what to do."""
    return tuple(sentence for warn in _WARNINGS for sentence in warn(spec))


def _warn_single_replica(spec: InferenceServiceSpec) -> Iterator[str]:
    fixed, min_replicas = spec.fixed_replicas, spec.scaling.min_replicas
    if spec.service_class == "Interactive" and 1 in (
        fixed,
        min_replicas if fixed is None else fixed,
    ):
        field = "spec.replicas" if fixed is not None else "spec.scaling.minReplicas"
        yield (
            f"{field}: with 1 replica the service is down while its node drains or it restarts; "
            "set "
            "2, or spec.class: Standard if no person waits"
        )


def _warn_equal_bounds(spec: InferenceServiceSpec) -> Iterator[str]:
    if spec.sets_scaling and spec.scaling.min_replicas == spec.scaling.max_replicas:
        count = spec.scaling.max_replicas
        yield (
            f"spec.scaling: minReplicas and maxReplicas are both {count}, which disables scaling; "
            f"raise maxReplicas, or set spec.replicas: {count} instead"
        )


def _warn_other_policy(spec: InferenceServiceSpec) -> Iterator[str]:
    scaling = spec.scaling
    unused = [
        wire
        for field, wire in (("queue", "queue"), ("scale_up", "scaleUp"))
        if field in scaling.model_fields_set
    ]
    if scaling.policy == "Capacity" and unused and not scaling.may_sleep:
        yield (
            f"spec.scaling.{unused[0]}: without effect under the policy Capacity, which scales by "
            "arriving requests; remove it, or set spec.scaling.policy: QueueAndActivity"
        )


def _warn_single_schedule(spec: InferenceServiceSpec) -> Iterator[str]:
    if len(spec.scaling.schedules) == 1:
        yield (
            "spec.scaling.schedules: the bounds of 1 schedule always apply, since no other one "
            "ends them; add a schedule for the other times, or remove this one"
        )


def _warn_short_drain(spec: InferenceServiceSpec) -> Iterator[str]:
    tokens, itl = spec.context.typical_output_tokens, spec.slo.itl_p95
    response_time = tokens * itl
    if spec.drain.timeout < response_time and pooling_task(spec) is None:
        yield (
            f"spec.drain.timeout: {_format_span(spec.drain.timeout)} interrupts typical responses "
            "of "
            f"{counted(tokens, 'token')} x {_format_span(itl)} = {_format_span(response_time)}; "
            "set at least "
            f"{math.ceil(_DRAIN_FACTOR * response_time.total_seconds())}s"
        )


def _warn_slow_tokens(spec: InferenceServiceSpec) -> Iterator[str]:
    itl = spec.slo.itl_p95
    if spec.service_class == "Interactive" and itl > SLOW_ITL and pooling_task(spec) is None:
        rate = 1 / itl.total_seconds()
        yield (
            f"spec.slo.itlP95: {_format_span(itl)} are {rate:.0f} tok/s, slower than the 15 tok/s "
            "(66.7ms) that people read; lower it, or set spec.class: Standard if no person waits"
        )


def _warn_no_answers(spec: InferenceServiceSpec) -> Iterator[str]:
    if pooling_task(spec) is None:
        return
    # The API server writes the default of the second one beside what an author wrote.
    default = Context.model_fields["typical_output_tokens"].default
    for is_set, field in (
        ("itl_p95" in spec.slo.model_fields_set, "spec.slo.itlP95"),
        (
            spec.context.typical_output_tokens != default,
            "spec.context.typicalOutputTokens",
        ),
    ):
        if is_set:
            yield f"{field}: without effect, since a pooling model generates no tokens; remove it"


def _warn_long_context(spec: InferenceServiceSpec) -> Iterator[str]:
    context = spec.context
    answer = context.typical_output_tokens if pooling_task(spec) is None else 0
    typical = context.typical_input_tokens + answer
    max_model_len = context.max_model_len or 0
    if max_model_len > _LONG_CONTEXT_RATIO * typical:
        yield (
            f"spec.context.maxModelLen: {counted(max_model_len, 'token')} are "
            f"{max_model_len // typical} "
            "times a typical "
            f"request of {typical}, and memory is reserved for one; lower it, or correct "
            "typicalInputTokens"
        )


def _warn_mutable_image(spec: InferenceServiceSpec) -> Iterator[str]:
    image = spec.engine.image
    if image is None or "@" in image:
        return
    _, _, tag = image.rpartition("/")[2].partition(":")
    if tag in ("", "latest"):
        shown = image if len(image) <= 100 else f"{image[:97]}..."
        yield (
            f"spec.engine.image: the tag of {shown} is mutable; pin a version tag or a digest "
            "(@sha256:...)"
        )


def _warn_draft_size(spec: InferenceServiceSpec) -> Iterator[str]:
    shape, draft, speculation = shape_of(spec), draft_shape(spec.engine), spec.engine.speculation
    if shape is None or draft is None or speculation is None or speculation.method != "DraftModel":
        return
    ratio = shape.parameters / draft.parameters
    if ratio < _MIN_DRAFT_RATIO:
        yield (
            f"spec.engine.speculation.model.uri: the model has {ratio:.1f} times as many weights "
            f"as its draft, and drafting pays from about {_MIN_DRAFT_RATIO} times; name a smaller "
            "draft"
        )
    elif ratio > _MAX_DRAFT_RATIO:
        yield (
            f"spec.engine.speculation.model.uri: the model has {ratio:.0f} times as many weights "
            f"as its draft, and beyond about {_MAX_DRAFT_RATIO} times drafts are accepted less "
            "often; watch status.speculation.acceptance, or name a larger draft"
        )


def _warn_untried_levers(spec: InferenceServiceSpec) -> Iterator[str]:
    if spec.rollout.strategy == "Gated":
        return
    untried = "nothing tries it on your prompts; set spec.rollout.strategy: Gated with a gateRef"
    names = sorted({variant.precision for variant in spec.precision.variants})
    if names:
        share = max(_PUBLISHED_LOSS[name] for name in names)
        yield (
            f"spec.precision.variants: published losses of {', '.join(names)} are below {share} % "
            f"of the score, and {untried}"
        )
    if spec.engine.kv_cache_dtype not in (None, "Auto"):
        yield (
            f"spec.engine.kvCacheDtype: {spec.engine.kv_cache_dtype} may change answers, and "
            f"{untried}"
        )


def _format_span(span: timedelta) -> str:
    """Return `33ms`, `8.2s` or `90s`."""
    seconds = span.total_seconds()
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.3g}s"


_WARNINGS: tuple[Callable[[InferenceServiceSpec], Iterator[str]], ...] = (
    _warn_single_replica,
    _warn_equal_bounds,
    _warn_other_policy,
    _warn_single_schedule,
    _warn_short_drain,
    _warn_slow_tokens,
    _warn_no_answers,
    _warn_long_context,
    _warn_mutable_image,
    _warn_draft_size,
    _warn_untried_levers,
)
