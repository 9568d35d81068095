"""`tessera size`: the hardware that a model fits on, with speed and price."""

from collections.abc import Iterable
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.cli.output import Output
from tessera.cli.size.report import FORMATTERS, SizeReport
from tessera.cli.size.request import SizeRequest, size_request
from tessera.domain.sizing import table as size_table
from tessera.domain.sizing.table import SizeRow, SizeVerdict


def run(arguments: SimpleNamespace) -> Output:
    """Return the table as text or JSON."""
    request = size_request(arguments, now().date())
    return FORMATTERS[arguments.output](build_report(request))


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
