"""`tessera levers`: the ladder of one's own load, and what to do next."""

from datetime import UTC, datetime
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera_lab.cli.levers.report import LeverReport, output
from tessera_lab.cli.levers.scenario import LeverScenario, read_scenario
from tessera_lab.levers.advice import advise
from tessera_lab.levers.figure import ladder_figure
from tessera_lab.levers.ladder import MonthlyCosts, climb
from tessera_lab.levers.picture import draw_ladders
from tessera_lab.levers.setups import LeverUnavailableError


def run(arguments: SimpleNamespace) -> Output:
    """Return the report; raise CommandError for invalid options and files."""
    scenario = read_scenario(arguments, datetime.now(UTC))  # noqa: TID251 - prices are of today
    report = lever_report(scenario)
    if scenario.svg is not None:
        try:
            scenario.svg.write_text(draw_ladders([report.ladder]), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"--svg {scenario.svg}: {error.strerror}") from None
    return output(report, arguments.output)


def lever_report(scenario: LeverScenario) -> LeverReport:
    """Return the ladder of a scenario, and the advice for its fleet as it is."""
    costs = MonthlyCosts(scenario.case)
    service = scenario.file.objects.service.ref
    try:
        ladder = climb(costs)
        advice = advise(costs, scenario.in_use, scenario.seed)
    except LeverUnavailableError as error:
        raise CommandError(f"InferenceService/{service}: {error}") from None
    name = f"{service}, {scenario.trace.name}"
    return LeverReport(
        scenario=scenario,
        ladder=ladder_figure(name, ladder),
        advice=advice,
        routing=costs.routing_blends(scenario.in_use),
    )
