"""`tessera engine`: setups of an engine side by side on one load."""

from datetime import timedelta
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded, objectives
from tessera.cli.output import Output
from tessera_lab.cli.engine.loads import RequestLoad, engine_load
from tessera_lab.cli.engine.report import EngineReport, SetupResult, output
from tessera_lab.cli.engine.setups import engine_setups
from tessera_lab.engine.play import MAX_OBJECTIVE, highest_rate, play
from tessera_lab.engine.setup import EngineSetup, EngineSetupError

_MAX_PRICE = 10_000.0


def run(arguments: SimpleNamespace) -> Output:
    """Return the report; raise CommandError for invalid options and files."""
    if arguments.price is not None:
        bounded("--price", arguments.price, 1e-4, _MAX_PRICE)
    slo = None if arguments.slo is None else _objectives(arguments.slo)
    load = engine_load(arguments)
    setups = engine_setups(arguments, load.shared_tokens)
    results = tuple(_result(name, setup, load, slo) for name, setup in setups.items())
    report = EngineReport(load=load, slo=slo, price=arguments.price, results=results)
    return output(report, arguments.output)


def _result(
    name: str, setup: EngineSetup, load: RequestLoad, slo: tuple[float, float] | None
) -> SetupResult:
    try:
        if slo is None:
            return SetupResult(name, play(setup, load.requests), None)
        capacity = highest_rate(setup, load.at_rate, *slo)
    except EngineSetupError as error:
        raise CommandError(f"{name}: {error}") from None
    return SetupResult(name, capacity.played, capacity)


def _objectives(text: str) -> tuple[float, float]:
    ttft, itl = objectives(text, timedelta(seconds=MAX_OBJECTIVE))
    return ttft.total_seconds(), itl.total_seconds()
