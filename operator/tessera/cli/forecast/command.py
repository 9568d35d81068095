"""`tessera forecast`: what a service will use and cost, and which factor of it was wrong."""

from datetime import datetime
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.cli.errors import CommandError
from tessera.cli.files import writable_file
from tessera.cli.forecast import accuracy_report, forecast_report
from tessera.cli.forecast.alert_rule import alert_rule
from tessera.cli.forecast.records import usage_of_records
from tessera.cli.forecast.request import requested_assumptions, saved_assumptions
from tessera.cli.output import Output
from tessera.domain.economics.accuracy import MeasuredUsage
from tessera.domain.economics.forecast import Assumptions

_SOURCES = ("records", "gateway", "prometheus")


def run(arguments: SimpleNamespace) -> Output:
    """Return the forecast, its comparison, or its alert, and save it to a file if one is named."""
    at = now()
    if arguments.compare is None:
        assumptions = requested_assumptions(arguments)
        if arguments.save is not None:
            text = assumptions.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"
            writable_file("--save", arguments.save).write_text(text, encoding="utf-8")
    else:
        assumptions = saved_assumptions(arguments)
    if arguments.alert_rule:
        return Output.of_json(alert_rule(assumptions))
    if arguments.compare is None:
        forecast = forecast_report.build_report(arguments, assumptions, at.date())
        return forecast_report.output(forecast, arguments.output)
    accuracy = accuracy_report.build_report(assumptions, measured_usage(arguments, assumptions, at))
    return accuracy_report.output(accuracy, arguments.output)


def measured_usage(
    arguments: SimpleNamespace, assumptions: Assumptions, at: datetime
) -> MeasuredUsage:
    """Return what was used, of the one source that the options name."""
    named = [name for name in _SOURCES if getattr(arguments, name) is not None]
    if len(named) != 1:
        raise CommandError(
            f"--compare {arguments.compare}: write one of --records, --gateway and --prometheus "
            "to say where the usage is read"
        )
    if named == ["records"]:
        return usage_of_records(arguments, assumptions.service)
    # Its clients are slow to import.
    from tessera.cli.forecast.sums import usage_of_sums  # noqa: PLC0415 - see above

    return usage_of_sums(arguments, assumptions.service, at)
