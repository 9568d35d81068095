"""`tessera engine`: setups of an engine side by side on one load."""

from datetime import timedelta
from types import SimpleNamespace

from pydantic import TypeAdapter, ValidationError

from tessera.api.inference_service import Slo
from tessera.api.meta import Duration
from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded
from tessera.cli.output import Output
from tessera_lab.cli.engine.loads import RequestLoad, engine_load
from tessera_lab.cli.engine.report import FORMATTERS, EngineReport, SetupResult
from tessera_lab.cli.engine.setups import engine_setups
from tessera_lab.engine.play import MAX_OBJECTIVE, highest_rate, play
from tessera_lab.engine.setup import EngineSetup, EngineSetupError

_MAX_PRICE = 10_000.0


def run(arguments: SimpleNamespace) -> Output:
    """Return the report; raise CommandError for invalid options and files."""
    if arguments.price is not None:
        bounded("--price", arguments.price, 1e-4, _MAX_PRICE)
    slo = None if arguments.slo is None else _parse_slo(arguments.slo)
    load = engine_load(arguments)
    setups = engine_setups(arguments, load.shared_tokens)
    results = tuple(_result(name, setup, load, slo) for name, setup in setups.items())
    report = EngineReport(load=load, slo=slo, price=arguments.price, results=results)
    return FORMATTERS[arguments.output](report)


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


def _parse_slo(text: str) -> tuple[float, float]:
    """Return the objectives of TTFT and ITL in seconds, each with its default if not named."""
    objectives = {"ttft": Slo().ttft_p95, "itl": Slo().itl_p95}
    for item in text.split(","):
        key, _, value = item.partition("=")
        try:
            span: timedelta = TypeAdapter(Duration).validate_python(value)
        except ValidationError:
            span = timedelta()
        if key not in objectives or not 0 < span.total_seconds() <= MAX_OBJECTIVE:
            raise CommandError(
                f"--slo {text}: write ttft=1s,itl=50ms or only one of them, up to 60s each"
            )
        objectives[key] = span
    return objectives["ttft"].total_seconds(), objectives["itl"].total_seconds()
