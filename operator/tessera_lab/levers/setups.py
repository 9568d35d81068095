"""The engine that a set of levers makes, on the hardware that they choose."""

import functools
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.perf.engine_terms import EngineTerms
from tessera.domain.sizing.prices import PriceBook
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera.domain.sizing.table import SizeRow, SizeVerdict, all_rows
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
_NO_PRICES = PriceBook(name="", hourly={})


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
    NO_TIER = "NoTier"
    """No price is lower than that on demand."""
    MISSES_SLO = "MissesSLO"
    NEEDS_EVALUATION = "NeedsEvaluation"
    """Answers change in a way that only a test with the user's own requests judges."""


class LeverUnavailableError(Exception):
    """A lever cannot be computed; the sentence says what would have to be there."""

    def __init__(self, obstacle: Obstacle, message: str) -> None:
        super().__init__(message)
        self.obstacle = obstacle


def main_setup(case: ServiceCase, levers: Set[LeverId]) -> EngineSetup:
    """Return a replica of the model; raise LeverUnavailableError where the levers leave none."""
    _check(case, levers)
    demand = _demand(case, levers, case.shape)
    slices, sized = LeverId.MIG in levers, LeverId.RIGHT_SIZE in levers
    if not slices and not sized:
        return _first_setup(case, levers, demand, (case.baseline,))
    if slices and not sized and case.slice is not None:
        return _first_setup(case, levers, demand, (case.slice,))
    setup = _first_setup(case, levers, demand, _hardware(case, demand, slices, sized))
    if slices and setup.hardware.profile is None:
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
    demand, sized = _demand(case, own, case.small), LeverId.RIGHT_SIZE in levers
    hardware = [*_hardware(case, demand, True, sized), *_hardware(case, demand, False, True)]
    return _first_setup(case, own, demand, hardware)


def unlimited(setup: EngineSetup) -> EngineSetup:
    """Return continuous batching with the limits that an engine has of itself."""
    drafted = 1 if setup.speculation is None else 1 + setup.speculation.draft_tokens
    return replace(
        setup,
        max_num_seqs=min(DEFAULT_MAX_NUM_SEQS, DEFAULT_MAX_NUM_BATCHED_TOKENS // drafted),
        max_num_batched_tokens=DEFAULT_MAX_NUM_BATCHED_TOKENS,
    )


def serving_hardware(
    case: ServiceCase, levers: Set[LeverId], products: Iterable[str]
) -> tuple[Hardware, ...]:
    """Return the hardware of these products that serves the model, the cheapest tokens first."""
    prices = tuple((name, case.prices[name].on_demand) for name in products)
    return _serving_hardware(_demand(case, levers, case.shape), prices)


def setup_on(case: ServiceCase, levers: Set[LeverId], hardware: Hardware) -> EngineSetup:
    """Return a replica on this hardware; raise LeverUnavailableError where it does not run."""
    return _first_setup(case, levers, _demand(case, levers, case.shape), (hardware,))


def replica_prices(case: ServiceCase, hardware: Hardware) -> GpuPrices:
    """Return the prices of a replica and hour."""
    return case.prices[hardware.product].times(_gpus(hardware))


def _gpus(hardware: Hardware) -> float:
    """Return the GPUs of a replica, or its share of one that is cut into equal slices."""
    if hardware.profile is None:
        return hardware.devices
    gpu_model = find_gpu_model(hardware.product)
    profile = gpu_model and gpu_model.find_profile(hardware.profile)
    return 1 / profile.max_instances if profile else 1.0


def _check(case: ServiceCase, levers: Set[LeverId]) -> None:
    """Raise LeverUnavailableError for what the case does not have."""
    gpu, prices = case.baseline.product, case.prices[case.baseline.product]
    problems = {
        LeverId.PREFIX_CACHE: case.load.shared_tokens is None
        and (
            Obstacle.NO_PREFIXES,
            "the load names no prefixes: record hash_ids, as in Mooncake's JSON lines",
        ),
        LeverId.QUANTIZATION: case.precision is not None
        and (
            Obstacle.NO_FIT,
            f"the model fits {gpu} ({case.baseline.name}) only in {case.precision}, in which the "
            "baseline is",
        ),
        LeverId.RIGHT_SIZE: len(case.prices) < 2
        and (Obstacle.ONE_PRODUCT, f"{gpu} is the only GPU with a price: add pools of others"),
        LeverId.PRICE_MIX: prices.reserved >= prices.on_demand
        and (Obstacle.NO_TIER, f"no pool of {gpu} is of tier Reserved: add one, or use --prices"),
        LeverId.SPOT_BATCH: prices.spot >= prices.on_demand
        and (Obstacle.NO_TIER, f"no pool of {gpu} is of tier Spot: add one, or use --prices"),
    }
    for lever in sorted(levers):
        if problem := problems.get(lever):
            raise LeverUnavailableError(*problem)


def _first_setup(
    case: ServiceCase, levers: Set[LeverId], demand: Demand, options: Iterable[Hardware]
) -> EngineSetup:
    """Return the setup on the first hardware that runs it."""
    sliced = LeverId.MIG in levers
    problem = LeverUnavailableError(
        Obstacle.NO_SLICE if sliced else Obstacle.NO_FIT,
        f"no {'slice' if sliced else 'GPU'} serves the model within the SLO",
    )
    for hardware in options:
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
    precision = case.precision
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
        engine=EngineTerms(draft=case.draft if LeverId.SPECULATION in levers else None),
    )


def _hardware(case: ServiceCase, demand: Demand, slices: bool, sized: bool) -> Iterator[Hardware]:
    """Yield what serves the demand, the cheapest tokens first by the figures of `tessera size`.

    These are `slices`, and where it is `sized` whole GPUs and all products, else that of the
    baseline.
    """
    names = tuple(case.prices) if sized else (case.baseline.product,)
    prices = tuple((name, case.prices[name].on_demand) for name in names)
    for hardware in _serving_hardware(demand, prices):
        if slices if hardware.profile is not None else sized:
            yield hardware


@functools.cache
def _serving_hardware(
    demand: Demand, prices: tuple[tuple[str, float], ...]
) -> tuple[Hardware, ...]:
    hourly, by_name = dict(prices), products()
    rows = all_rows(demand, [by_name[name] for name in hourly], [demand.precision], _NO_PRICES)
    serving = [row for row in rows if row.can_serve]

    def order(row: SizeRow) -> tuple[bool, float, str, int]:
        hardware = row.hardware
        price = hourly[hardware.product] * _gpus(hardware) / (row.tokens_per_second or 1)
        return (row.verdict is not SizeVerdict.FITS, price, hardware.product, hardware.devices)

    return tuple(row.hardware for row in sorted(serving, key=order))


def _setup(
    case: ServiceCase, levers: Set[LeverId], demand: Demand, hardware: Hardware
) -> EngineSetup:
    if case.static_batches:
        return _static_setup(demand, hardware)
    sequences, tokens = _scheduler_limits(demand, hardware)
    return EngineSetup(
        shape=demand.shape,
        hardware=hardware,
        precision=demand.precision,
        prefix_cache=LeverId.PREFIX_CACHE in levers,
        shared_tokens=case.load.shared_tokens,
        speculation=_speculation(case, demand, hardware),
        draft=demand.engine.draft,
        max_model_len=demand.max_model_len,
        max_num_seqs=sequences,
        max_num_batched_tokens=tokens,
    )


def _static_setup(demand: Demand, hardware: Hardware) -> EngineSetup:
    """Return static batches of `STATIC_BATCH`, or of fewer where the KV cache holds no more."""
    single = EngineSetup(
        shape=demand.shape,
        hardware=hardware,
        precision=demand.precision,
        static_batch=1,
        kv_cache=KvCache.CONTIGUOUS,
        max_model_len=demand.max_model_len,
    )
    most = single.memory.kv_tokens // single.max_model_len
    return replace(single, static_batch=max(1, min(STATIC_BATCH, most)))


def _scheduler_limits(demand: Demand, hardware: Hardware) -> tuple[int, int]:
    """Return the limits that the operator would set, or the engine's where none keep the SLO."""
    drafted = 1 if demand.engine.draft is None else 1 + DRAFT_TOKENS
    sequences, tokens = DEFAULT_MAX_NUM_SEQS, DEFAULT_MAX_NUM_BATCHED_TOKENS
    sizing = size(demand, hardware)
    if isinstance(sizing, ReplicaFit):
        sequences = sizing.limits.max_num_seqs
        tokens = sizing.limits.max_num_batched_tokens
    return min(sequences, tokens // drafted), tokens


def _speculation(case: ServiceCase, demand: Demand, hardware: Hardware) -> Speculation | None:
    draft = demand.engine.draft
    if draft is None:
        return None
    cost = draft_cost(draft, demand.shape, demand.precision, hardware)
    return Speculation.at_temperature(
        case.assumptions.temperature, draft_tokens=DRAFT_TOKENS, draft_cost=cost
    )
