"""The size table: one model on all hardware in all precisions, with speed and price."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tessera.api.text import counted
from tessera.domain.hardware.device import Hardware, product_slices, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import Product
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.money import Money, per_million_tokens
from tessera.domain.perf import footprint
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.step_range import decoding_source, prompt_source
from tessera.domain.sizing import pooling, precision, tensor_parallel
from tessera.domain.sizing.oversized import (
    MIN_CONCURRENCY,
    max_concurrency,
    memory_share,
    oversize_message,
)
from tessera.domain.sizing.prices import PriceBook
from tessera.domain.sizing.scheduler_limits import Demand, full_step_seconds
from tessera.domain.sizing.sizing import MIB, ReplicaFit, ReplicaMisfit, size

# Numbers of GPUs of one node that a replica may use.
GPU_COUNTS = (1, 2, 4, 8)


class SizeVerdict(StrEnum):
    """The result of sizing a model on hardware, best first."""

    FITS = "Fits"
    LOW_CONCURRENCY = "LowConcurrency"
    TOO_SLOW = "TooSlow"
    TOO_LARGE = "TooLarge"
    REFUSED = "Unsupported"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRow:
    """A model in one precision on one instance of hardware."""

    hardware: Hardware
    precision: str | None
    label: str
    """Name of the precision; that of the files when `precision` is None."""
    verdict: SizeVerdict
    message: str
    kv_tokens: int = 0
    max_concurrency: float = 0.0
    """Requests of the longest context that its cache holds at once."""
    tokens_per_second: float | None = None
    """Output tokens per second at full load; of a pooling model input tokens."""
    ttft_ms: float | None = None
    """TTFT of a typical prompt at full load, of a pooling model the time to its answer."""
    inter_token_ms: float | None = None
    """Mean ITL at full load; None of a pooling model."""
    memory_share: float | None = None
    """Share of the device's memory for weights, reserve and typical cache."""
    step: StepTime | None = None
    """The step time that the speeds are computed from; None where the model does not run."""
    rate_error: float | None = None
    """Error of the throughput and of the price of tokens, as a share."""
    hourly: Money | None = None
    seller: str = ""
    """Who asks the price, where that is known: prices of several differ by their terms."""
    per_million: Money | None = None
    """Price of a million output tokens at full load; of a pooling model of input tokens."""
    oversize_message: str | None = None
    """A hint when a smaller slice or GPU is enough."""

    @property
    def can_serve(self) -> bool:
        """Return whether the model can run, also at low concurrency."""
        return self.verdict in (SizeVerdict.FITS, SizeVerdict.LOW_CONCURRENCY)


def smallest_serving_rows(
    demand: Demand, products: Sequence[Product], precisions: Sequence[str | None], book: PriceBook
) -> list[SizeRow]:
    """Return the smallest instance that serves, or the nearest to it, by product and precision."""
    # A slice comes before a whole GPU and one GPU before several: what fits on one device is
    # scaled by replicas rather than by tensor parallelism.
    demands = [replace(demand, precision=precision_name) for precision_name in precisions]
    return [
        _best_row(list(_rows_until_served(replica_demand, product, options, book)))
        for product in products
        for options in (hardware_options(product),)
        for replica_demand in demands
    ]


def all_rows(
    demand: Demand, products: Sequence[Product], precisions: Sequence[str | None], book: PriceBook
) -> list[SizeRow]:
    """Return every product in every precision and instance, the cheapest tokens first."""
    demands = [replace(demand, precision=precision_name) for precision_name in precisions]
    rows = [
        _evaluate(replica_demand, product, hardware, book)
        for product in products
        for replica_demand in demands
        for hardware in hardware_options(product)
    ]
    return sorted(rows, key=_price_order)


def hardware_options(product: Product) -> list[Hardware]:
    """Return the slices from the smallest on, then whole GPUs."""
    return [*product_slices(product), *(whole_gpu_hardware(product, count) for count in GPU_COUNTS)]


def replicas_before_parallel(rows: Sequence[SizeRow]) -> Iterator[str]:
    """Yield where 2 replicas on 1 GPU each are faster than 1 replica over 2 GPUs."""
    single_gpu_rates = {
        (row.hardware.product, row.label): row.tokens_per_second
        for row in rows
        if row.verdict is SizeVerdict.FITS and row.hardware.name == "whole GPU"
    }
    for row in rows:
        single_gpu_rate = single_gpu_rates.get((row.hardware.product, row.label))
        parallel_rate = row.tokens_per_second
        if (
            row.hardware.devices == 2
            and single_gpu_rate
            and parallel_rate
            and 2 * single_gpu_rate > parallel_rate
        ):
            yield (
                f"2 replicas on 1x {row.hardware.product} in {row.label}: "
                f"{2 * single_gpu_rate:,.0f} tok/s, 1 replica over 2 GPUs: {parallel_rate:,.0f}"
            )


def _rows_until_served(
    demand: Demand, product: Product, options: list[Hardware], book: PriceBook
) -> Iterator[SizeRow]:
    """Yield instances from the smallest on, up to the first that fits."""
    if (problem := _precision_problem(demand, product)) is not None:
        yield _refused_row(demand, whole_gpu_hardware(product, 1), book, problem)
        return
    shape = demand.shape
    weights = footprint.resident_bytes(shape, demand.precision)
    divisible = [option for option in options if not _sharding_problem(demand, option.devices)]
    large_enough = [
        option for option in divisible if weights < option.memory_mib * MIB * option.devices
    ]
    for hardware in large_enough or divisible[-1:]:
        row = _sized_row(demand, product, hardware, book)
        yield row
        if row.verdict is SizeVerdict.FITS:
            return


def _precision_problem(demand: Demand, product: Product) -> str | None:
    """Return why no instance of a product runs a precision of the model; None if one may."""
    shape, precision_name = demand.shape, demand.precision
    return precision.mismatch_reason(shape, precision_name) or precision.unsupported_reason(
        shape, precision_name, product
    )


def _best_row(rows: list[SizeRow]) -> SizeRow:
    """Return the row that fits, else the largest at low concurrency, else the nearest."""
    best = min((row.verdict for row in rows), key=list(SizeVerdict).index)
    return [row for row in rows if row.verdict is best][-1]


def _price_order(row: SizeRow) -> tuple[int, bool, int, float, str, int, str, str]:
    price, hardware = row.per_million, row.hardware
    return (
        list(SizeVerdict).index(row.verdict),
        price is None,
        price.nanos if price else 0,
        -(row.tokens_per_second or 0),
        hardware.product,
        hardware.devices,
        hardware.name,
        row.label,
    )


def _evaluate(demand: Demand, product: Product, hardware: Hardware, book: PriceBook) -> SizeRow:
    problem = _precision_problem(demand, product) or _sharding_problem(demand, hardware.devices)
    if problem is not None:
        return _refused_row(demand, hardware, book, problem)
    return _sized_row(demand, product, hardware, book)


def _sharding_problem(demand: Demand, devices: int) -> str | None:
    """Return why model or draft cannot be sharded over so many devices; None if both can."""
    draft = demand.engine.draft
    problem = tensor_parallel.sharding_problem(demand.shape, devices)
    if problem is not None or draft is None:
        return problem
    of_draft = tensor_parallel.sharding_problem(draft, devices)
    return of_draft and f"the draft's {of_draft}"


def _refused_row(demand: Demand, hardware: Hardware, book: PriceBook, problem: str) -> SizeRow:
    """Return the row of hardware that does not run the model, where its size does not matter."""
    whole_gpu = book.hourly.get(hardware.product)
    return SizeRow(
        hardware=hardware,
        precision=demand.precision,
        label=precision.label(demand.shape, demand.precision),
        verdict=SizeVerdict.REFUSED,
        message=problem,
        hourly=whole_gpu and whole_gpu.times(billing_weight(hardware)),
        seller=book.sellers.get(hardware.product, ""),
    )


def _sized_row(demand: Demand, product: Product, hardware: Hardware, book: PriceBook) -> SizeRow:
    sizing = size(demand, hardware)
    row = _refused_row(demand, hardware, book, "")
    if isinstance(sizing, ReplicaFit):
        return _fit_row(row, demand, sizing, product)
    slow = sizing.needed_mib == 0
    return replace(
        row,
        verdict=SizeVerdict.TOO_SLOW if slow else SizeVerdict.TOO_LARGE,
        message=(_too_slow_message if slow else _too_large_message)(demand, sizing),
        kv_tokens=sizing.kv_tokens,
        max_concurrency=sizing.kv_tokens / demand.max_model_len,
        step=sizing.step,
    )


def _too_slow_message(demand: Demand, misfit: ReplicaMisfit) -> str:
    if misfit.limits is not None:
        requested = counted(demand.engine.max_num_seqs or 1, "concurrent request")
        bounds = "the SLO" if demand.shape.encoder_only else "the cache and the SLO"
        return f"of {requested} {misfit.limits.max_num_seqs} fit into {bounds}"
    tokens = demand.engine.max_num_batched_tokens
    step = misfit.step
    itl_ms, ttft_ms = demand.inter_token.total_seconds() * 1e3, demand.ttft.total_seconds() * 1e3
    if demand.is_pooling:
        return (
            f"a text of {counted(demand.input_tokens, 'token')} beside others is answered in "
            f"{misfit.prefill_ms:.0f} ms ({prompt_source(step)}); at most "
            f"{ttft_ms:.0f} ms under load are requested"
        )
    return (
        f"a single request has ITL {misfit.inter_token_ms:.1f} ms "
        f"({decoding_source(step)}) and TTFT {misfit.prefill_ms:.0f} ms "
        f"({prompt_source(step)}) "
        f"for a prompt of {counted(demand.input_tokens, 'token')}; at most {itl_ms:.0f} and "
        f"{ttft_ms:.0f} ms under load are requested"
        + (f", with full steps of {counted(tokens, 'token')}" if tokens else "")
    )


def _too_large_message(demand: Demand, misfit: ReplicaMisfit) -> str:
    weights = footprint.resident_bytes(demand.shape, misfit.precision) / misfit.hardware.devices
    cache = f"{misfit.kv_tokens:,} KV tokens" if misfit.kv_tokens else "no KV cache"
    return (
        f"weights of {weights / 2**30:.1f} GiB leave {cache}; use a device "
        f"of {misfit.needed_mib / 1024:.0f} GiB"
    )


def _fit_row(row: SizeRow, demand: Demand, fit: ReplicaFit, product: Product) -> SizeRow:
    limits, memory, hourly = fit.limits, fit.memory, row.hourly
    caveat = precision.caveat(demand.shape, demand.precision, product)
    concurrency = max_concurrency(demand, fit)
    low_concurrency = concurrency < MIN_CONCURRENCY
    max_num_seqs = limits.max_num_seqs
    load = counted(max_num_seqs, "concurrent request")
    if demand.is_pooling:
        load = f"{counted(limits.max_num_batched_tokens, 'token')} a step"
    message = (
        f"weights {memory.weights_mib / 1024:.1f}, reserve {memory.reserve_mib / 1024:.1f}, cache "
        f"{memory.cache_mib / 1024:.1f} GiB; {load}"
    )
    if low_concurrency:
        message = f"max concurrency only {concurrency:.1f} at full context; {message}"
    if demand.is_pooling:
        ttft = pooling.longest_reading(limits, demand.input_tokens).total_seconds()
    else:
        tokens = limits.max_num_batched_tokens
        full_seconds = full_step_seconds(demand, fit.step, max_num_seqs, tokens)
        ttft = -(-demand.input_tokens // limits.prompt_tokens) * full_seconds
    return replace(
        row,
        verdict=SizeVerdict.LOW_CONCURRENCY if low_concurrency else SizeVerdict.FITS,
        message=f"{message}; {caveat}" if caveat else message,
        kv_tokens=memory.kv_tokens,
        max_concurrency=concurrency,
        tokens_per_second=limits.tokens_per_second,
        ttft_ms=ttft * 1e3,
        inter_token_ms=None if demand.is_pooling else max_num_seqs / limits.tokens_per_second * 1e3,
        memory_share=memory_share(demand, fit),
        step=fit.step,
        rate_error=fit.rate_error,
        oversize_message=oversize_message(demand, fit),
        per_million=hourly and per_million_tokens(hourly, limits.tokens_per_second),
    )
