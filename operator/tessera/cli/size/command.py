"""`tessera size`: the hardware that a model fits on, with speed and price."""

from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.cli.output import Output
from tessera.cli.size.report import SizeReport, output
from tessera.cli.size.request import SizeRequest, size_request
from tessera.domain.sizing import table as size_table


def run(arguments: SimpleNamespace) -> Output:
    """Return the table as text or JSON."""
    request = size_request(arguments, now().date())
    return output(build_report(request), arguments.output)


def build_report(request: SizeRequest) -> SizeReport:
    """Return the rows of a request."""
    sizing_inputs = (request.demand, request.products, request.precisions, request.book)
    devices = request.tensor_parallel
    if request.compare or devices is not None:
        rows = size_table.all_rows(*sizing_inputs)
    else:
        rows = size_table.smallest_serving_rows(*sizing_inputs)
    chosen = (
        row
        for row in rows
        if devices is None or (row.hardware.profile is None and row.hardware.devices == devices)
    )
    return SizeReport(request=request, rows=tuple(chosen))
