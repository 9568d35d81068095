"""`tessera simulate`: a trace through a fleet of simulated engines."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera_lab.cli.simulate.charts import render_svg
from tessera_lab.cli.simulate.report import output as output_of
from tessera_lab.cli.simulate.run import INTERRUPTED, Interrupt, play
from tessera_lab.cli.simulate.scenario import read_scenario


def run(arguments: SimpleNamespace) -> Output:
    """Play the policies; the exit code is 130 after Ctrl-C."""
    return run_until(Interrupt(), arguments)


def run_until(interrupt: Interrupt, arguments: SimpleNamespace) -> Output:
    """Play the policies until an interrupt."""
    scenario = read_scenario(arguments, datetime.now(UTC))  # noqa: TID251 - prices are of today
    with interrupt.watched():
        results = play(scenario, interrupt)
    if scenario.svg is not None:
        try:
            scenario.svg.write_text(render_svg(scenario, results), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"--svg {scenario.svg}: {error.strerror}") from None
    output = output_of(scenario, results, arguments.output)
    return replace(output, exit_code=INTERRUPTED) if interrupt.requested else output
