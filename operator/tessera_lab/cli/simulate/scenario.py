"""The options of `tessera simulate` as a scenario; every invalid one is a sentence with its fix."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera_lab.cli.simulate.fleet_file import FleetFile, read_fleet_file
from tessera_lab.fleet.model import COLD_START, FleetModel, Purchase
from tessera_lab.fleet.observation import Policy
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import ProductPolicy
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.spot import SpotMarket, hazard_market
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace
from tessera_lab.load.trace_rows import TRACE_FORMATS, TraceError

PRODUCT_POLICY = "tessera"
_HOUR = 3600.0
_MAX_COPIES = 1000
# Copies are shifted by this part of the window, so that daily waves of whole hours do not align.
_SHIFT = 0.381966


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPolicy:
    """A policy to play."""

    name: str
    """As on the command line, with its knobs."""
    create: Callable[[], Policy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a run needs."""

    trace: Trace
    file: FleetFile
    fleet: FleetModel
    policies: tuple[NamedPolicy, ...]
    spot: SpotMarket | None
    seed: int
    svg: Path | None


def read_scenario(arguments: SimpleNamespace, at: datetime) -> Scenario:
    """Return the scenario; raise CommandError for invalid options and files."""
    file = read_fleet_file(arguments.fleet, arguments.service, arguments.prices, at)
    lead = _number("--start-up", arguments.start_up, 0, 3600)
    reserved, hazard = arguments.reserved or 0, arguments.spot
    _number("--reserved", reserved, 0, 1000)
    fleet = sized_fleet(
        file.spec,
        file.choice.fit,
        start_up=COLD_START.scaled(lead / COLD_START.mean),
        purchase=Purchase(reserved=reserved, spot=hazard is not None),
    )
    # Policies before the trace, whose reading takes seconds.
    policies = tuple(_policies(arguments, file, fleet))
    svg = _writable(arguments.svg)
    trace = _trace(arguments)
    spot = None
    if hazard is not None:
        _number("--spot", hazard, 0, 60)
        spot = hazard_market(fleet.max_replicas, hazard, trace.seconds, arguments.seed)
    return Scenario(
        trace=trace,
        file=file,
        fleet=fleet,
        policies=policies,
        spot=spot,
        seed=arguments.seed,
        svg=svg,
    )


def _number(option: str, value: float, least: float, most: float) -> float:
    if not (math.isfinite(value) and least <= value <= most):
        raise CommandError(f"{option} {value:g}: write a number from {least:g} to {most:g}")
    return value


def _trace(arguments: SimpleNamespace) -> Trace:
    try:
        trace = read_trace(arguments.trace)
    except TraceError as error:
        hint = "" if TRACE_FORMATS in str(error) else f"; {TRACE_FORMATS}"
        raise CommandError(f"--trace {error}{hint}") from None
    if arguments.spread is not None:
        trace = trace.spread(_number("--spread", arguments.spread, 0, _HOUR), arguments.seed)
    copies = _number("--copies", arguments.copies, 1, _MAX_COPIES)
    if copies > 1:
        trace = trace.overlaid(arguments.copies, trace.seconds * _SHIFT)
    begin = _number("--from", getattr(arguments, "from"), 0, 1e6) * _HOUR
    hours = arguments.hours
    end = trace.seconds if hours is None else begin + _number("--hours", hours, 0, 1e6) * _HOUR
    if begin or end < trace.seconds:
        try:
            trace = trace.cut(begin, min(end, trace.seconds))
        except ValueError as error:
            raise CommandError(f"--from and --hours: {error}") from None
    if not len(trace):
        raise CommandError(f"--trace {arguments.trace} has no request from --from on")
    return trace


def _policies(
    arguments: SimpleNamespace, file: FleetFile, fleet: FleetModel
) -> Iterator[NamedPolicy]:
    compared = arguments.compare.split(",") if arguments.compare else ()
    names = dict.fromkeys((*arguments.policy, *compared)) or {PRODUCT_POLICY: None}
    for name in names:
        yield _policy(name, file, fleet)


def _policy(text: str, file: FleetFile, fleet: FleetModel) -> NamedPolicy:
    name, _, knobs = text.partition(":")
    if name == PRODUCT_POLICY:
        if knobs:
            raise CommandError(f"--policy {text}: {name} has no knobs; change the fleet file")
        return NamedPolicy(name=name, create=lambda: ProductPolicy(file.objects))
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join((PRODUCT_POLICY, *FAMILIES))
        raise CommandError(f"--policy {text}: no policy {name}; choose from {known}")
    settings = dict(family.published)
    for knob in knobs.split(",") if knobs else ():
        key, _, value = knob.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if key not in settings or not math.isfinite(number):
            known = ", ".join(f"{each}={settings[each]:g}" for each in settings) or "none"
            raise CommandError(f"--policy {text}: write KNOB=NUMBER; {name} has {known}")
        settings[key] = number
    return NamedPolicy(name=text, create=lambda: family.create(settings, fleet.replica))


def _writable(name: str | None) -> Path | None:
    """Check that the file can be written before the run, not after it."""
    if name is None:
        return None
    path = Path(name).expanduser()
    try:
        path.touch()
    except OSError as error:
        raise CommandError(f"--svg {name} cannot be written: {error.strerror}") from None
    return path
