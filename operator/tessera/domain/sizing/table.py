"""One model on all hardware in all precisions: what fits, what it gives, what it costs, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tessera.domain.hardware.device import Hardware, product_slices, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import Product
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.money import Money, per_million_tokens
from tessera.domain.perf import footprint
from tessera.domain.sizing import precision, tensor_parallel
from tessera.domain.sizing.oversized import MIN_CONCURRENCY, memory_share, oversize_message
from tessera.domain.sizing.prices import PriceBook
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import MIB, ReplicaFit, ReplicaMisfit, size

# GPUs of one node that a replica may take.
GPU_COUNTS = (1, 2, 4, 8)


class SizeVerdict(StrEnum):
    """What became of a model on hardware."""

    FITS = "fits"
    LOW_CONCURRENCY = "toy"
    TOO_SLOW = "too slow"
    TOO_LARGE = "too large"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRow:
    """A model in one precision on one form of hardware."""

    hardware: Hardware
    precision: str | None
    label: str
    """Of the precision; that of the files where none is asked."""
    verdict: SizeVerdict
    message: str
    kv_tokens: int = 0
    max_concurrency: float = 0.0
    """Requests of the longest context that its cache holds at once."""
    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    """Of a usual prompt at full load."""
    inter_token_ms: float | None = None
    """Mean gap at full load."""
    memory_share: float | None = None
    """Share of the device's memory that weights, reserve and usual cache take."""
    hourly: Money | None = None
    per_million: Money | None = None
    """Price of a million output tokens at full load."""
    oversize_message: str | None = None
    """Why a smaller part would do, and which."""

    @property
    def can_serve(self) -> bool:
        return self.verdict in (SizeVerdict.FITS, SizeVerdict.LOW_CONCURRENCY)


def smallest_serving_rows(
    demand: Demand, products: Sequence[Product], precisions: Sequence[str | None], book: PriceBook
) -> list[SizeRow]:
    """For every product and precision the smallest form that serves, else the one nearest to it.

    A slice comes before a whole GPU and one GPU before several: what fits on one device is
    multiplied by replicas rather than spread out.
    """
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
    """Every product in every precision and form: the cheapest tokens first, then what fails."""
    demands = [replace(demand, precision=precision_name) for precision_name in precisions]
    rows = [
        _evaluate(replica_demand, product, hardware, book)
        for product in products
        for replica_demand in demands
        for hardware in hardware_options(product)
    ]
    return sorted(rows, key=_price_order)


def hardware_options(product: Product) -> list[Hardware]:
    """Slices from the smallest on, then whole GPUs."""
    return [*product_slices(product), *(whole_gpu_hardware(product, count) for count in GPU_COUNTS)]


def replicas_before_parallel(rows: Sequence[SizeRow]) -> Iterator[str]:
    """Where one GPU suffices: what two replicas give against one that is spread over two."""
    single_gpu_rates = {
        (row.hardware.product, row.label): row.tokens_per_second
        for row in rows
        if row.verdict is SizeVerdict.FITS and row.hardware.name == "1x whole"
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
                f"2 replicas of 1x {row.hardware.product} in {row.label} give "
                f"{2 * single_gpu_rate:,.0f} "
                f"tokens/s, one over 2 GPUs {parallel_rate:,.0f}"
            )


def break_even(hourly: Money, target: Money) -> float:
    """Tokens per second at which a million of them cost `target` (F02)."""
    return hourly.nanos / 3600 * 1e6 / target.nanos


def _rows_until_served(
    demand: Demand, product: Product, options: list[Hardware], book: PriceBook
) -> Iterator[SizeRow]:
    """Forms from the smallest on that could serve, the last of them the first that does."""
    if (problem := _precision_problem(demand, product)) is not None:
        yield _refused_row(demand, whole_gpu_hardware(product, 1), book, problem)
        return
    weights = footprint.resident_bytes(demand.shape, demand.precision)
    divisible = [
        option for option in options if tensor_parallel.can_shard(demand.shape, option.devices)
    ]
    large_enough = [
        option for option in divisible if weights < option.memory_mib * MIB * option.devices
    ]
    for hardware in large_enough or divisible[-1:]:
        row = _sized_row(demand, product, hardware, book)
        yield row
        if row.verdict is SizeVerdict.FITS:
            return


def _precision_problem(demand: Demand, product: Product) -> str | None:
    """Why no form of a product takes a precision of the model."""
    shape, precision_name = demand.shape, demand.precision
    return precision.mismatch_reason(shape, precision_name) or precision.unsupported_reason(
        shape, precision_name, product
    )


def _best_row(rows: list[SizeRow]) -> SizeRow:
    """The form that fits, else the largest toy, else what came nearest."""
    order = (
        SizeVerdict.FITS,
        SizeVerdict.LOW_CONCURRENCY,
        SizeVerdict.TOO_SLOW,
        SizeVerdict.TOO_LARGE,
        SizeVerdict.REFUSED,
    )
    best = min(order.index(row.verdict) for row in rows)
    same = [row for row in rows if row.verdict is order[best]]
    return same[-1]


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
    shape = demand.shape
    problem = _precision_problem(demand, product) or tensor_parallel.sharding_problem(
        shape, hardware.devices
    )
    if problem is not None:
        return _refused_row(demand, hardware, book, problem)
    return _sized_row(demand, product, hardware, book)


def _refused_row(demand: Demand, hardware: Hardware, book: PriceBook, problem: str) -> SizeRow:
    return SizeRow(
        hardware=hardware,
        precision=demand.precision,
        label=precision.label(demand.shape, demand.precision),
        verdict=SizeVerdict.REFUSED,
        message=problem,
        hourly=_hourly(hardware, book),
    )


def _sized_row(demand: Demand, product: Product, hardware: Hardware, book: PriceBook) -> SizeRow:
    label = precision.label(demand.shape, demand.precision)
    hourly = _hourly(hardware, book)
    sizing = size(demand, hardware)
    if isinstance(sizing, ReplicaMisfit):
        return _misfit_row(demand, sizing, label, hourly)
    caveat = precision.caveat(demand.shape, demand.precision, product)
    return _fit_row(demand, sizing, label, hourly, caveat)


def _hourly(hardware: Hardware, book: PriceBook) -> Money | None:
    whole_gpu = book.hourly.get(hardware.product)
    return whole_gpu and whole_gpu.times(billing_weight(hardware))


def _misfit_row(demand: Demand, misfit: ReplicaMisfit, label: str, hourly: Money | None) -> SizeRow:
    slow = misfit.needed_mib == 0
    message = _too_slow_message(demand, misfit) if slow else _too_large_message(demand, misfit)
    return SizeRow(
        hardware=misfit.hardware,
        precision=misfit.precision,
        label=label,
        verdict=SizeVerdict.TOO_SLOW if slow else SizeVerdict.TOO_LARGE,
        message=message,
        kv_tokens=misfit.kv_tokens,
        max_concurrency=misfit.kv_tokens / demand.max_model_len,
        hourly=hourly,
    )


def _too_slow_message(demand: Demand, misfit: ReplicaMisfit) -> str:
    gap, first = demand.inter_token.total_seconds() * 1e3, demand.ttft.total_seconds() * 1e3
    return (
        f"alone {misfit.inter_token_ms:.1f} ms a token and {misfit.prefill_ms:.0f} ms for a prompt "
        "of "
        f"{demand.input_tokens}; {gap:.0f} and {first:.0f} ms with others are asked"
    )


def _too_large_message(demand: Demand, misfit: ReplicaMisfit) -> str:
    weights = footprint.resident_bytes(demand.shape, misfit.precision) / misfit.hardware.devices
    remaining = (
        f"room for {misfit.kv_tokens:,} tokens" if misfit.kv_tokens else "no room for a cache"
    )
    return (
        f"weights {weights / 2**30:.1f} GiB leave {remaining}; a device of "
        f"{misfit.needed_mib / 1024:.0f} GiB would do"
    )


def _fit_row(
    demand: Demand, fit: ReplicaFit, label: str, hourly: Money | None, caveat: str | None
) -> SizeRow:
    limits, memory = fit.limits, fit.memory
    max_concurrency = memory.kv_tokens / fit.max_model_len
    low_concurrency = max_concurrency < MIN_CONCURRENCY
    message = (
        f"weights {memory.weights_mib / 1024:.1f}, reserve {memory.reserve_mib / 1024:.1f}, cache "
        f"{memory.cache_mib / 1024:.1f} GiB; {limits.max_num_seqs} at a time"
    )
    if low_concurrency:
        message = f"only {max_concurrency:.1f} requests of full length at a time; {message}"
    chunk = limits.max_num_batched_tokens - limits.max_num_seqs
    full_seconds = fit.step.seconds(
        decoding=limits.max_num_seqs,
        kv_tokens=limits.max_num_seqs * demand.resident_tokens,
        prefill_tokens=chunk,
    )
    return SizeRow(
        hardware=fit.hardware,
        precision=fit.precision,
        label=label,
        verdict=SizeVerdict.LOW_CONCURRENCY if low_concurrency else SizeVerdict.FITS,
        message=f"{message}; {caveat}" if caveat else message,
        kv_tokens=memory.kv_tokens,
        max_concurrency=max_concurrency,
        tokens_per_second=limits.tokens_per_second,
        ttft_ms=-(-demand.input_tokens // chunk) * full_seconds * 1e3,
        inter_token_ms=limits.max_num_seqs / limits.tokens_per_second * 1e3,
        memory_share=memory_share(demand, fit),
        oversize_message=oversize_message(demand, fit),
        hourly=hourly,
        per_million=hourly and per_million_tokens(hourly, limits.tokens_per_second),
    )
