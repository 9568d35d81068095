"""`tessera breakeven`: from which volume own GPUs cost less than an API."""

from datetime import datetime
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.cli.breakeven.inputs import MeasuredMonth
from tessera.cli.breakeven.report import draw, output
from tessera.cli.breakeven.request import BreakEvenRequest, break_even_request
from tessera.cli.files import writable_file
from tessera.cli.output import Output


def run(arguments: SimpleNamespace) -> Output:
    """Return the report in the requested format, and draw it to a file if one is named."""
    request = build_request(arguments, now())
    if arguments.svg is not None:
        writable_file("--svg", arguments.svg).write_text(draw(request), encoding="utf-8")
    return output(request, arguments.output)


def build_request(arguments: SimpleNamespace, at: datetime) -> BreakEvenRequest:
    """Return what the options ask for; what was used is read only where they name a source."""
    measured: tuple[MeasuredMonth, ...] = ()
    if arguments.gateway is not None or arguments.prometheus is not None:
        # Its clients are slow to import, and most questions are about no cluster.
        from tessera.cli.breakeven.measured import measured_months  # noqa: PLC0415 - see above

        measured = measured_months(arguments, at)
    return break_even_request(arguments, at.date(), measured)
