"""`tessera size`: the hardware that a model fits on, with speed and price."""

import argparse
import time
from collections.abc import Iterable
from datetime import timedelta

from tessera.adapters.clock import now
from tessera.cli.output import Output
from tessera.cli.size.report import FORMATTERS, SizeReport
from tessera.cli.size.request import SizeRequest, size_request
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.sizing import prices
from tessera.domain.sizing import table as size_table
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera.domain.sizing.table import SizeRow, SizeVerdict


def run(arguments: argparse.Namespace) -> Output:
    """Return the table as text or JSON."""
    request = size_request(arguments, now().date())
    return Output(FORMATTERS[arguments.output](build_report(request)))


def build_report(request: SizeRequest) -> SizeReport:
    """Return the rows of a request with the simplest of them."""
    sizing_inputs = (request.demand, request.products, request.precisions, request.book)
    all_instances = request.compare or request.tensor_parallel is not None
    rows = (
        size_table.all_rows(*sizing_inputs)
        if all_instances
        else size_table.smallest_serving_rows(*sizing_inputs)
    )
    if request.tensor_parallel is not None:
        rows = [
            row
            for row in rows
            if row.hardware.profile is None and row.hardware.devices == request.tensor_parallel
        ]
    return SizeReport(request=request, rows=tuple(rows), simplest=simplest_row(rows))


def simplest_row(rows: Iterable[SizeRow]) -> SizeRow | None:
    """Return the fitting row with the fewest devices, then the lowest price; None without any."""
    fitting = [row for row in rows if row.verdict is SizeVerdict.FITS]
    return min(fitting, key=_simplicity_order, default=None)


def _simplicity_order(row: SizeRow) -> tuple[int, bool, int, str, str, str]:
    price = row.hourly.nanos if row.hourly else 0
    hardware = row.hardware
    return (
        hardware.devices, row.hourly is None, price, hardware.product, hardware.name, row.label,
    )  # fmt: skip


def size_all_ms() -> float:
    """Return the CPU milliseconds of sizing all known models on all products, for benchmarks."""
    book = prices.price_book(prices.ASSUMED, prices.list_prices(), now().date())
    gpu_products = tuple(products().values())
    shapes = tuple(models().values())
    started_at = time.process_time()
    for shape in shapes:
        demand = Demand(
            shape=shape,
            precision=None,
            max_model_len=min(DEFAULT_MAX_MODEL_LEN, shape.max_position_embeddings),
            input_tokens=min(1200, shape.max_position_embeddings // 2),
            output_tokens=250,
            ttft=timedelta(seconds=10),
            inter_token=timedelta(milliseconds=250),
        )
        # Quantized files have no other precision.
        precisions = (None, "fp8", "awq-int4") if shape.quantization is None else (None,)
        size_table.smallest_serving_rows(demand, gpu_products, precisions, book)
    return round((time.process_time() - started_at) * 1e3)
