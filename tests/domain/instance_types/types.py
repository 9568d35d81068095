"""A service of a 32B model on H100s, and loads that were recorded of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.domain.hardware.pools import discover
from tessera.domain.instance_types.rank import TypeCost, rank_types
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera.domain.observed.snapshot import Ref
from tessera.domain.placement.candidates import (
    HardwareChoice,
    fitting_choices,
    hardware_candidates,
)
from tessera.domain.placement.checks import shape_of
from tessera_lab.fleet.policies.product import FleetObjects, WholeGpuPool

AT = datetime(2026, 1, 8, tzinfo=UTC)
ONE, TWO, FOUR, EIGHT = (f"h100-{gpus}gpu" for gpus in (1, 2, 4, 8))
# Short answers leave the cache of one GPU room; long ones run for minutes.
CHAT = LoadSpan(
    end=AT,
    rate=22.0,
    input_tokens=1150,
    output_tokens=210,
    input_variation=1.0,
    resident_tokens=1230,
)
REASONING = LoadSpan(
    end=AT,
    rate=5.0,
    input_tokens=1300,
    output_tokens=1000,
    input_variation=7.0,
    resident_tokens=3700,
)


@cache
def _objects() -> FleetObjects:
    pool = WholeGpuPool(name="h100", product="NVIDIA-H100-80GB-HBM3", price="6.88", nodes=7)
    return pool.objects(
        Ref("team-a", "chat"),
        {
            "model": {"uri": "hf://Qwen/Qwen3-32B-FP8"},
            "slo": {"ttftP95": "1s", "itlP95": "50ms"},
            "context": {"maxModelLen": 32_768},
            "scaling": {"minReplicas": 1, "maxReplicas": 48},
        },
    )


def a_typed_spec(**scaling: Any) -> InferenceServiceSpec:
    """Return the spec, with other bounds of its replicas."""
    spec = _objects().spec
    return spec.model_copy(update={"scaling": spec.scaling.model_copy(update=scaling)})


def model_shape() -> ModelShape:
    """Return the shape of its model."""
    shape = shape_of(_objects().spec)
    assert shape is not None
    return shape


@cache
def type_choices() -> tuple[HardwareChoice, ...]:
    """Return its instance types: 1, 2, 4 and 8 H100s."""
    objects = _objects()
    (view,) = discover(objects.pools, objects.nodes, AT.date())
    choices = fitting_choices(hardware_candidates(objects.spec, model_shape(), view.offers))
    return tuple(
        choice
        for choice in choices
        if choice.offer.hardware.profile is None and choice.fit.precision is None
    )


def a_history(*spans: LoadSpan, times: int = 1) -> LoadHistory:
    """Return spans, so many times over, of which the last one ends now."""
    every = spans * times
    return LoadHistory(
        read_at=AT,
        spans=tuple(
            replace(span, end=AT - (len(every) - 1 - number) * SPAN)
            for number, span in enumerate(every)
        ),
    )


def ranked(
    history: LoadHistory,
    spec: InferenceServiceSpec | None = None,
    slowness: Mapping[str, float] | None = None,
) -> Sequence[TypeCost]:
    """Return the types by a load, the cheapest first."""
    return rank_types(
        spec or a_typed_spec(), model_shape(), type_choices(), history, slowness or {}
    )
