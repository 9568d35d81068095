"""One model on all hardware in all precisions: what fits, what it gives, what it costs, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tessera.domain import footprint, precision, tensor_parallel
from tessera.domain.catalog import Product
from tessera.domain.hardware import Hardware, slices, whole
from tessera.domain.limits import Demand
from tessera.domain.money import Money, billing_weight, per_million_tokens
from tessera.domain.oversize import REAL, oversized, used
from tessera.domain.prices import PriceBook
from tessera.domain.sizing import MIB, Fit, Misfit, size

COUNTS = (1, 2, 4, 8)
"""GPUs of one node that a replica may take."""


class Verdict(StrEnum):
    """What became of a model on hardware."""

    FITS = "fits"
    TOY = "toy"
    TOO_SLOW = "too slow"
    TOO_LARGE = "too large"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model in one precision on one form of hardware."""

    hardware: Hardware
    precision: str | None
    label: str
    """Of the precision; that of the files where none is asked."""
    verdict: Verdict
    why: str
    kv_tokens: int = 0
    sequences: float = 0.0
    """Requests of the longest context that its cache holds at once."""
    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    """Of a usual prompt at full load."""
    inter_token_ms: float | None = None
    """Mean gap at full load."""
    used: float | None = None
    """Share of the device's memory that weights, reserve and usual cache take."""
    hourly: Money | None = None
    per_million: Money | None = None
    """Price of a million output tokens at full load."""
    oversized: str | None = None
    """Why a smaller part would do, and which."""

    @property
    def serves(self) -> bool:
        return self.verdict in (Verdict.FITS, Verdict.TOY)


def simplest(
    demand: Demand, products: Sequence[Product], precisions: Sequence[str | None], book: PriceBook
) -> list[Row]:
    """For every product and precision the smallest form that serves, else the one nearest to it.

    A slice comes before a whole GPU and one GPU before several: what fits on one device is
    multiplied by replicas rather than spread out.
    """
    asked = [replace(demand, precision=one) for one in precisions]
    return [
        _first(list(_until_served(one, product, found, book)))
        for product in products
        for found in (forms(product),)
        for one in asked
    ]


def every(
    demand: Demand, products: Sequence[Product], precisions: Sequence[str | None], book: PriceBook
) -> list[Row]:
    """Every product in every precision and form: the cheapest tokens first, then what fails."""
    asked = [replace(demand, precision=one) for one in precisions]
    rows = [
        _row(one, product, hardware, book)
        for product in products
        for one in asked
        for hardware in forms(product)
    ]
    return sorted(rows, key=_by_price)


def forms(product: Product) -> list[Hardware]:
    """Slices from the smallest on, then whole GPUs."""
    return [*slices(product), *(whole(product, count) for count in COUNTS)]


def replicas_before_parallel(rows: Sequence[Row]) -> Iterator[str]:
    """Where one GPU suffices: what two replicas give against one that is spread over two."""
    alone = {
        (row.hardware.product, row.label): row.tokens_per_second
        for row in rows
        if row.verdict is Verdict.FITS and row.hardware.name == "1x whole"
    }
    for row in rows:
        single = alone.get((row.hardware.product, row.label))
        spread = row.tokens_per_second
        if row.hardware.devices == 2 and single and spread and 2 * single > spread:
            yield (
                f"2 replicas of 1x {row.hardware.product} in {row.label} give {2 * single:,.0f} "
                f"tokens/s, one over 2 GPUs {spread:,.0f}"
            )


def break_even(hourly: Money, target: Money) -> float:
    """Tokens per second at which a million of them cost `target` (F02)."""
    return hourly.nanos / 3600 * 1e6 / target.nanos


def _until_served(
    demand: Demand, product: Product, found: list[Hardware], book: PriceBook
) -> Iterator[Row]:
    """Forms from the smallest on that could serve, the last of them the first that does."""
    if (fault := _unfit(demand, product)) is not None:
        yield _refused(demand, whole(product, 1), book, fault)
        return
    weights = footprint.resident_bytes(demand.shape, demand.precision)
    divided = [form for form in found if tensor_parallel.can_shard(demand.shape, form.devices)]
    roomy = [form for form in divided if weights < form.memory_mib * MIB * form.devices]
    for hardware in roomy or divided[-1:]:
        row = _sized(demand, product, hardware, book)
        yield row
        if row.verdict is Verdict.FITS:
            return


def _unfit(demand: Demand, product: Product) -> str | None:
    """Why no form of a product takes a precision of the model."""
    shape, one = demand.shape, demand.precision
    return precision.mismatch(shape, one) or precision.lacking(shape, one, product)


def _first(rows: list[Row]) -> Row:
    """The form that fits, else the largest toy, else what came nearest."""
    order = (Verdict.FITS, Verdict.TOY, Verdict.TOO_SLOW, Verdict.TOO_LARGE, Verdict.REFUSED)
    best = min(order.index(row.verdict) for row in rows)
    same = [row for row in rows if row.verdict is order[best]]
    return same[-1]


def _by_price(row: Row) -> tuple[int, bool, int, float, str, int, str, str]:
    price, hardware = row.per_million, row.hardware
    return (
        list(Verdict).index(row.verdict),
        price is None,
        price.nanos if price else 0,
        -(row.tokens_per_second or 0),
        hardware.product,
        hardware.devices,
        hardware.name,
        row.label,
    )


def _row(demand: Demand, product: Product, hardware: Hardware, book: PriceBook) -> Row:
    shape = demand.shape
    fault = _unfit(demand, product) or tensor_parallel.sharding_problem(shape, hardware.devices)
    if fault is not None:
        return _refused(demand, hardware, book, fault)
    return _sized(demand, product, hardware, book)


def _refused(demand: Demand, hardware: Hardware, book: PriceBook, fault: str) -> Row:
    return Row(
        hardware=hardware,
        precision=demand.precision,
        label=precision.label(demand.shape, demand.precision),
        verdict=Verdict.REFUSED,
        why=fault,
        hourly=_hourly(hardware, book),
    )


def _sized(demand: Demand, product: Product, hardware: Hardware, book: PriceBook) -> Row:
    label = precision.label(demand.shape, demand.precision)
    hourly = _hourly(hardware, book)
    got = size(demand, hardware)
    if isinstance(got, Misfit):
        return _misfit(demand, got, label, hourly)
    told = precision.note(demand.shape, demand.precision, product)
    return _fit(demand, got, label, hourly, told)


def _hourly(hardware: Hardware, book: PriceBook) -> Money | None:
    whole_gpu = book.hourly.get(hardware.product)
    return whole_gpu and whole_gpu.times(billing_weight(hardware))


def _misfit(demand: Demand, got: Misfit, label: str, hourly: Money | None) -> Row:
    slow = got.needed_mib == 0
    why = _slow(demand, got) if slow else _large(demand, got)
    return Row(
        hardware=got.hardware,
        precision=got.precision,
        label=label,
        verdict=Verdict.TOO_SLOW if slow else Verdict.TOO_LARGE,
        why=why,
        kv_tokens=got.kv_tokens,
        sequences=got.kv_tokens / demand.max_model_len,
        hourly=hourly,
    )


def _slow(demand: Demand, got: Misfit) -> str:
    gap, first = demand.inter_token.total_seconds() * 1e3, demand.ttft.total_seconds() * 1e3
    return (
        f"alone {got.inter_token_ms:.1f} ms a token and {got.prefill_ms:.0f} ms for a prompt of "
        f"{demand.input_tokens}; {gap:.0f} and {first:.0f} ms with others are asked"
    )


def _large(demand: Demand, got: Misfit) -> str:
    weights = footprint.resident_bytes(demand.shape, got.precision) / got.hardware.devices
    room = f"room for {got.kv_tokens:,} tokens" if got.kv_tokens else "no room for a cache"
    return (
        f"weights {weights / 2**30:.1f} GiB leave {room}; a device of "
        f"{got.needed_mib / 1024:.0f} GiB would do"
    )


def _fit(demand: Demand, got: Fit, label: str, hourly: Money | None, told: str | None) -> Row:
    limits, memory = got.limits, got.memory
    sequences = memory.kv_tokens / got.max_model_len
    toy = sequences < REAL
    why = (
        f"weights {memory.weights_mib / 1024:.1f}, reserve {memory.reserve_mib / 1024:.1f}, cache "
        f"{memory.cache_mib / 1024:.1f} GiB; {limits.max_num_seqs} at a time"
    )
    if toy:
        why = f"only {sequences:.1f} requests of full length at a time; {why}"
    chunk = limits.max_num_batched_tokens - limits.max_num_seqs
    full = got.step.seconds(
        decoding=limits.max_num_seqs,
        kv_tokens=limits.max_num_seqs * demand.resident,
        prefill_tokens=chunk,
    )
    return Row(
        hardware=got.hardware,
        precision=got.precision,
        label=label,
        verdict=Verdict.TOY if toy else Verdict.FITS,
        why=f"{why}; {told}" if told else why,
        kv_tokens=memory.kv_tokens,
        sequences=sequences,
        tokens_per_second=limits.tokens_per_second,
        ttft_ms=-(-demand.input_tokens // chunk) * full * 1e3,
        inter_token_ms=limits.max_num_seqs / limits.tokens_per_second * 1e3,
        used=used(demand, got),
        oversized=oversized(demand, got),
        hourly=hourly,
        per_million=hourly and per_million_tokens(hourly, limits.tokens_per_second),
    )
