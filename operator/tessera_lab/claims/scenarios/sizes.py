"""Claims by sizing: what `tessera size` says of a model within an SLO."""

import math
from datetime import timedelta
from decimal import Decimal

from tessera.api.model_files import ModelShape
from tessera.domain.economics.api_prices import TokenPrices, TokenUse
from tessera.domain.economics.break_even import (
    HostingComparison,
    OwnGpus,
    break_even_rate,
    break_even_tokens,
)
from tessera.domain.money import Money, money
from tessera.domain.perf import footprint, sources
from tessera.domain.sizing.oversized import MIN_CONCURRENCY
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera.domain.sizing.table import GPU_COUNTS
from tessera_lab.claims.formulas import reduction
from tessera_lab.claims.scenarios.setups import (
    detail,
    engine,
    hardware,
    prices,
    shape,
    smallest_engine,
)
from tessera_lab.claims.verdict import ClaimDetail, Conditions, ScenarioError, ScenarioResult

_HOUR = 3600.0


def _replica(
    conditions: Conditions, precision: str | None, model: ModelShape | None = None
) -> ReplicaFit:
    """Return the replica with the cheapest tokens within the SLO."""
    demand = Demand(
        shape=model or shape(conditions),
        precision=precision,
        max_model_len=conditions.integer("maxModelLen"),
        input_tokens=conditions.integer("inputTokens"),
        output_tokens=conditions.integer("outputTokens"),
        ttft=timedelta(milliseconds=conditions.number("ttftMs")),
        inter_token=timedelta(milliseconds=conditions.number("itlMs")),
    )
    fits = [
        fit
        for count in GPU_COUNTS
        if isinstance(fit := size(demand, hardware(conditions, count=count)), ReplicaFit)
        and fit.memory.kv_tokens >= MIN_CONCURRENCY * demand.max_model_len
    ]
    if not fits:
        raise ScenarioError(f"No node of {conditions.text('gpu')} keeps the SLO.")
    return min(fits, key=lambda fit: fit.hardware.devices / fit.limits.tokens_per_second)


def _usd_per_million(conditions: Conditions, fit: ReplicaFit) -> float:
    hourly = prices(conditions).on_demand * fit.hardware.devices
    return hourly / (fit.limits.tokens_per_second * _HOUR) * 1e6


def _details(conditions: Conditions, **replicas: ReplicaFit) -> tuple[ClaimDetail, ...]:
    return tuple(
        item
        for name, fit in replicas.items()
        for item in (
            detail(f"GPUs, {name}", fit.hardware.devices, ""),
            detail(f"cost, {name}", _usd_per_million(conditions, fit), "USD/M"),
        )
    )


def narrow_cost(conditions: Conditions) -> ScenarioResult:
    """H19: cost at 4 bits over 16."""
    wide, narrow = _replica(conditions, None), _replica(conditions, conditions.text("precision"))
    ratio = _usd_per_million(conditions, narrow) / _usd_per_million(conditions, wide)
    return ScenarioResult({"cost": ratio}, _details(conditions, bf16=wide, int4=narrow))


def quantized_savings(conditions: Conditions) -> ScenarioResult:
    """H20: cost and memory saved at 8 and at 4 bits."""
    wide = _replica(conditions, None)
    wide_cost, model = _usd_per_million(conditions, wide), shape(conditions)
    figures: dict[str, float] = {}
    replicas = {"bf16": wide}
    for name, precision in (("int8", "int8"), ("int4", "awq-int4")):
        replicas[name] = _replica(conditions, precision)
        cost = _usd_per_million(conditions, replicas[name])
        figures[f"{name} saving"] = reduction(wide_cost, cost)
        figures[f"{name} memory"] = reduction(
            footprint.resident_bytes(model, None), footprint.resident_bytes(model, precision)
        )
    return ScenarioResult(figures, _details(conditions, **replicas))


def quarter_of_hardware(conditions: Conditions) -> ScenarioResult:
    """H22: GPUs and concurrency in int4 against contiguous slots in bf16."""
    longest = conditions.integer("maxModelLen")
    slots = engine(conditions).memory.kv_tokens // longest
    narrow = smallest_engine(conditions, longest, precision=conditions.text("precision"))
    request = conditions.integer("inputTokens") + conditions.integer("outputTokens")
    gpus = conditions.integer("gpus")
    replicas = gpus // narrow.hardware.devices
    concurrency = replicas * (narrow.memory.kv_tokens // request)
    return ScenarioResult(
        {"hardware": narrow.hardware.devices / gpus, "concurrency": concurrency / slots},
        (
            detail("bf16 slots", slots, "requests"),
            detail("int4 on all GPUs", concurrency, "requests"),
        ),
    )


def student(conditions: Conditions) -> ScenarioResult:
    """H25: cost and speed of a teacher over its student."""
    small = shape(conditions, "student")
    teacher_fit, student_fit = _replica(conditions, None), _replica(conditions, None, small)
    streams = [
        sources.step_time(model, None, fit.hardware).seconds(
            decoding=1, kv_tokens=conditions.integer("inputTokens")
        )
        for model, fit in ((shape(conditions), teacher_fit), (small, student_fit))
    ]
    costs = [_usd_per_million(conditions, fit) for fit in (teacher_fit, student_fit)]
    return ScenarioResult(
        {"cost": costs[0] / costs[1], "speed": streams[0] / streams[1]},
        _details(conditions, teacher=teacher_fit, student=student_fit),
    )


def fine_tuning_payback(conditions: Conditions) -> ScenarioResult:
    """H26: months until one-time costs are saved."""
    small = _replica(conditions, None, shape(conditions, "student"))
    costs = [_usd_per_million(conditions, fit) for fit in (_replica(conditions, None), small)]
    once = conditions.number("gpuHours") * conditions.number("gpuHourUsd")
    once += conditions.number("engineerHours") * conditions.number("engineerHourUsd")
    monthly = conditions.number("monthlyMillions") * (costs[0] - costs[1])
    return ScenarioResult(
        {"payback": once / monthly},
        (detail("one-time", once, "USD"), detail("saving", monthly, "USD a month")),
    )


def use_to_beat_an_api(conditions: Conditions) -> ScenarioResult:
    """H42: the share of a replica's full load from which it costs less than an API."""
    fit = _replica(conditions, conditions.text("precision"))
    outputs = conditions.number("outputTokens")
    price = _usd(conditions.number("apiUsdPerMillion"))
    comparison = HostingComparison(
        request=TokenUse(input_tokens=conditions.number("inputTokens"), output_tokens=outputs),
        prices=TokenPrices(input=price, cached_input=price, output=price),
        own=OwnGpus(
            hourly=_usd(prices(conditions).on_demand * fit.hardware.devices),
            monthly=_usd(0),
            capacity=fit.limits.tokens_per_second / outputs,
        ),
    )
    month, source_price = _usd(2520), _usd(0.90)
    return ScenarioResult(
        {"use": comparison.needed_load() or math.inf},
        (
            detail("full load", fit.limits.tokens_per_second, "output tokens/s"),
            detail(
                "2,520 USD at 0.90", break_even_tokens(month, source_price) / 1e6, "million tokens"
            ),
            detail("3.50 USD an hour", break_even_rate(_usd(3.50), source_price), "tokens/s"),
        ),
    )


def _usd(amount: float) -> Money:
    return money(Decimal(repr(amount)), "USD")
