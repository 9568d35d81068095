"""`tessera size`: what a model fits on, what it then gives, and what that costs."""

import argparse
import time
from collections.abc import Iterable
from datetime import timedelta

from tessera.adapters.clock import now
from tessera.cli.size_ask import Ask, ask
from tessera.cli.size_report import FORMS, Report
from tessera.cli.told import Told
from tessera.domain import prices, size_table
from tessera.domain.catalog import models, products
from tessera.domain.limits import Demand
from tessera.domain.size_table import Row, Verdict
from tessera.domain.sizing import DEFAULT_MAX_MODEL_LEN


def run(arguments: argparse.Namespace) -> Told:
    """The table as text or JSON."""
    found = ask(arguments, now().date())
    return Told(FORMS[arguments.output](report(found)))


def report(asked: Ask) -> Report:
    """All rows, the simplest form, and what else is worth knowing."""
    given = (asked.demand, asked.products, asked.precisions, asked.book)
    everything = asked.compare or asked.tensor_parallel is not None
    rows = size_table.every(*given) if everything else size_table.simplest(*given)
    if asked.tensor_parallel is not None:
        rows = [row for row in rows if _whole(row, asked.tensor_parallel)]
    return Report(ask=asked, rows=tuple(rows), simplest=simplest(rows))


def simplest(rows: Iterable[Row]) -> Row | None:
    """Fewest devices, then the cheapest hour."""
    fitting = [row for row in rows if row.verdict is Verdict.FITS]
    return min(fitting, key=_simplicity, default=None)


def _simplicity(row: Row) -> tuple[int, bool, int, str, str, str]:
    price = row.hourly.nanos if row.hourly else 0
    hardware = row.hardware
    return (
        hardware.devices, row.hourly is None, price, hardware.product, hardware.name, row.label,
    )  # fmt: skip


def _whole(row: Row, devices: int) -> bool:
    return row.hardware.profile is None and row.hardware.devices == devices


def size_all_ms() -> float:
    """CPU of sizing every known model on every product in every precision, for `bench-engine`."""
    book = prices.book(prices.ASSUMED, prices.assumed(), now().date())
    hardware = tuple(products().values())
    known = tuple(models().values())
    begun = time.process_time()
    for shape in known:
        demand = Demand(
            shape=shape,
            precision=None,
            max_model_len=min(DEFAULT_MAX_MODEL_LEN, shape.max_position_embeddings),
            input_tokens=min(1200, shape.max_position_embeddings // 2),
            output_tokens=250,
            ttft=timedelta(seconds=10),
            inter_token=timedelta(milliseconds=250),
        )
        own_only = shape.quantization is not None
        size_table.simplest(
            demand, hardware, (None,) if own_only else (None, "fp8", "awq-int4"), book
        )
    return round((time.process_time() - begun) * 1e3)
