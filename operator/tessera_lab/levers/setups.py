"""The engine that a set of levers makes, on the hardware that they choose."""

import functools
from collections.abc import Iterator, Set
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum

from tessera.api.inference_service import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.mig.gpu_models import find_gpu_model
from tessera.domain.money import money
from tessera.domain.sizing.prices import PriceBook
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera.domain.sizing.table import all_rows
from tessera_lab.engine.setup import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    DEFAULT_MAX_NUM_SEQS,
    EngineSetup,
    EngineSetupError,
    KvCache,
    draft_cost,
)
from tessera_lab.engine.speculation import Speculation
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.lever import LeverId

# A batch before continuous batching, and the tokens that a draft model is asked for.
STATIC_BATCH, DRAFT_TOKENS = 8, 5


class Obstacle(StrEnum):
    """Why a lever cannot be computed."""

    NO_FIT = "NoFit"
    """The model does not fit, or the hardware has no such precision."""
    NO_SLICE = "NoSlice"
    """No slice holds the model within the SLO."""
    NO_PREFIXES = "NoPrefixes"
    NO_DRAFT_MODEL = "NoDraftModel"
    NO_SMALL_MODEL = "NoSmallModel"
    ONE_PRODUCT = "OneProduct"
    """There is no other hardware to choose."""
    NEEDS_EVALUATION = "NeedsEvaluation"


class LeverUnavailableError(Exception):
    """A lever cannot be computed; the sentence says what would have to be there."""

    def __init__(self, obstacle: Obstacle, message: str) -> None:
        super().__init__(message)
        self.obstacle = obstacle


def main_setup(case: ServiceCase, levers: Set[LeverId]) -> EngineSetup:
    """Return a replica of the model; raise LeverUnavailableError where the levers leave none."""
    if LeverId.PREFIX_CACHE in levers and case.load.shared_tokens is None:
        raise LeverUnavailableError(
            Obstacle.NO_PREFIXES,
            "the load names no prefixes: record hash_ids, as in Mooncake's JSON lines",
        )
    if LeverId.RIGHT_SIZE in levers and len(case.prices) < 2:
        raise LeverUnavailableError(
            Obstacle.ONE_PRODUCT,
            f"{case.baseline.product} is the only GPU with a price: add pools of others",
        )
    setup = _first_setup(case, levers, case.shape, slices=LeverId.MIG in levers)
    if LeverId.MIG in levers and setup.hardware.profile is None:
        raise LeverUnavailableError(
            Obstacle.NO_SLICE,
            f"no slice makes cheaper tokens than {setup.hardware.product} ({setup.hardware.name})",
        )
    return setup


def small_setup(case: ServiceCase, levers: Set[LeverId]) -> EngineSetup:
    """Return a replica of the small model, on a slice where the GPU has one that suffices."""
    if case.small is None:
        raise LeverUnavailableError(
            Obstacle.NO_SMALL_MODEL, "no model answers simple requests: name one with --small"
        )
    # Its own draft model would have to be smaller still.
    own = levers - {LeverId.SPECULATION}
    try:
        return _first_setup(case, own, case.small, slices=True)
    except LeverUnavailableError:
        return _first_setup(case, own | {LeverId.RIGHT_SIZE}, case.small, slices=False)


def unlimited(setup: EngineSetup) -> EngineSetup:
    """Return continuous batching with the limits that an engine has of itself."""
    drafted = 1 if setup.speculation is None else 1 + setup.speculation.draft_tokens
    return replace(
        setup,
        max_num_seqs=min(DEFAULT_MAX_NUM_SEQS, DEFAULT_MAX_NUM_BATCHED_TOKENS // drafted),
        max_num_batched_tokens=DEFAULT_MAX_NUM_BATCHED_TOKENS,
    )


def replica_prices(case: ServiceCase, hardware: Hardware) -> GpuPrices:
    """Return the prices of a replica and hour: its GPUs, or its share of equal slices of one."""
    prices = case.prices[hardware.product]
    if hardware.profile is None:
        return prices.times(hardware.devices)
    gpu_model = find_gpu_model(hardware.product)
    profile = gpu_model and gpu_model.find_profile(hardware.profile)
    return prices.times(1 / profile.max_instances) if profile else prices


def _first_setup(
    case: ServiceCase, levers: Set[LeverId], shape: ModelShape, *, slices: bool
) -> EngineSetup:
    """Return the setup on the first hardware that runs it."""
    demand = _demand(case, levers, shape)
    problem = LeverUnavailableError(
        Obstacle.NO_SLICE if slices else Obstacle.NO_FIT,
        f"no {'slice' if slices else 'number of GPUs'} serves the model within the SLO",
    )
    for hardware in _hardware(case, levers, demand, slices=slices):
        try:
            return _setup(case, levers, demand, hardware)
        except EngineSetupError as error:
            problem = LeverUnavailableError(Obstacle.NO_FIT, str(error))
    raise problem


def _demand(case: ServiceCase, levers: Set[LeverId], shape: ModelShape) -> Demand:
    if LeverId.SPECULATION in levers and case.draft is None:
        raise LeverUnavailableError(
            Obstacle.NO_DRAFT_MODEL, "no draft model is known: name one with --draft"
        )
    precision = None
    if LeverId.INT4_FILES in levers:
        precision = "awq-int4"
    elif LeverId.QUANTIZATION in levers:
        precision = "fp8"
    load, objectives = case.load, case.objectives
    return Demand(
        shape=shape,
        precision=precision,
        max_model_len=min(case.max_model_len, shape.max_position_embeddings),
        input_tokens=round(load.input_tokens),
        output_tokens=max(1, round(load.output_tokens)),
        ttft=timedelta(seconds=objectives.ttft),
        inter_token=timedelta(seconds=objectives.tpot),
        draft=case.draft if LeverId.SPECULATION in levers else None,
    )


def _hardware(
    case: ServiceCase, levers: Set[LeverId], demand: Demand, *, slices: bool
) -> Iterator[Hardware]:
    """Yield the hardware to try, the cheapest tokens first as `tessera size` orders it."""
    any_product = LeverId.RIGHT_SIZE in levers
    if not (any_product or slices):
        yield case.baseline
        return
    names = tuple(case.prices) if any_product else (case.baseline.product,)
    prices = tuple((name, case.prices[name].on_demand) for name in names)
    for hardware in _serving_hardware(demand, prices):
        if (hardware.profile is not None and slices) or (hardware.profile is None and any_product):
            yield hardware


@functools.cache
def _serving_hardware(
    demand: Demand, prices: tuple[tuple[str, float], ...]
) -> tuple[Hardware, ...]:
    hourly = {name: money(Decimal(str(price)), "USD") for name, price in prices}
    known = [products()[name] for name, _ in prices]
    rows = all_rows(demand, known, [demand.precision], PriceBook(name="", hourly=hourly))
    return tuple(row.hardware for row in rows if row.can_serve)


def _setup(
    case: ServiceCase, levers: Set[LeverId], demand: Demand, hardware: Hardware
) -> EngineSetup:
    paged = LeverId.PAGING in levers
    if LeverId.CONTINUOUS_BATCHING not in levers:
        return EngineSetup(
            shape=demand.shape,
            hardware=hardware,
            precision=demand.precision,
            static_batch=STATIC_BATCH,
            kv_cache=KvCache.PAGED if paged else KvCache.CONTIGUOUS,
            max_model_len=demand.max_model_len,
        )
    sequences, tokens = _scheduler_limits(demand, hardware)
    return EngineSetup(
        shape=demand.shape,
        hardware=hardware,
        precision=demand.precision,
        kv_cache=KvCache.PAGED if paged else KvCache.CONTIGUOUS,
        prefix_cache=LeverId.PREFIX_CACHE in levers,
        shared_tokens=case.load.shared_tokens,
        speculation=_speculation(case, demand, hardware),
        draft=demand.draft,
        max_model_len=demand.max_model_len,
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
    )


def _scheduler_limits(demand: Demand, hardware: Hardware) -> tuple[int, int]:
    """Return the limits that the operator would set, or the engine's where none keep the SLO."""
    drafted = 1 if demand.draft is None else 1 + DRAFT_TOKENS
    sequences, tokens = DEFAULT_MAX_NUM_SEQS, DEFAULT_MAX_NUM_BATCHED_TOKENS
    sizing = size(demand, hardware)
    if isinstance(sizing, ReplicaFit):
        sequences = sizing.limits.max_num_seqs
        tokens = sizing.limits.max_num_batched_tokens
    return min(sequences, tokens // drafted), tokens


def _speculation(case: ServiceCase, demand: Demand, hardware: Hardware) -> Speculation | None:
    if demand.draft is None:
        return None
    cost = draft_cost(demand.draft, demand.shape, demand.precision, hardware)
    return Speculation.at_temperature(
        case.assumptions.temperature, draft_tokens=DRAFT_TOKENS, draft_cost=cost
    )
