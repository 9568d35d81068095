"""The options of `tessera simulate` as a scenario; every invalid one is a sentence with its fix."""

import gzip
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.files import writable_file
from tessera.cli.numbers import bounded
from tessera_lab.cli.simulate.fleet_file import FleetFile, read_fleet_file
from tessera_lab.cli.simulate.live_load import draw_live_trace
from tessera_lab.fleet.model import COLD_START, FleetModel, Purchase, Router
from tessera_lab.fleet.observation import Policy
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import OURS, ProductPolicy, router_of
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.spot import SpotMarket, hazard_market
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace, trace_csv
from tessera_lab.load.trace_rows import TRACE_FORMATS, TraceError

_HOUR = 3600.0
_MAX_COPIES = 1000
_MAX_REQUESTS = 50_000_000
# Copies are shifted by this part of the window, so that daily waves of whole hours do not align.
_SHIFT = 0.381966


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPolicy:
    """A policy to play."""

    name: str
    """As on the command line, with its knobs."""
    create: Callable[[], Policy]
    router: Router


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
    notes: tuple[str, ...]
    """What limits the result."""


def read_scenario(arguments: SimpleNamespace, at: datetime) -> Scenario:
    """Return the scenario; raise CommandError for invalid options and files."""
    file = read_fleet_file(arguments.fleet, arguments.service, arguments.prices, at)
    lead = bounded("--start-up", arguments.start_up, 0, 3600)
    reserved, hazard = arguments.reserved or 0, arguments.spot
    bounded("--reserved", reserved, 0, 1000)
    sized = partial(
        sized_fleet,
        file.spec,
        start_up=COLD_START.scaled(lead / COLD_START.mean),
        purchase=Purchase(reserved=reserved, spot=hazard is not None),
    )
    fleet = sized(file.choice.fit)
    # Policies before the trace, whose reading takes seconds.
    policies = tuple(_policies(arguments, file, fleet))
    svg = writable_file("--svg", arguments.svg) if arguments.svg else None
    (trace, load), trace_notes = _trace(arguments, file, at)
    types = file.objects.types(load, trace.seconds, timedelta(seconds=lead))
    if types is not None:
        file = file.by_recorded_load(types)
        fleet = sized(file.choice.fit)
        policies = tuple(_policies(arguments, file, fleet))
    spot = None
    if hazard is not None:
        bounded("--spot", hazard, 0, 60)
        spot = hazard_market(fleet.max_replicas, hazard, trace.seconds, arguments.seed)
    return Scenario(
        trace=trace,
        file=file,
        fleet=fleet,
        policies=policies,
        spot=spot,
        seed=arguments.seed,
        svg=svg,
        notes=(*trace_notes, *file.notes),
    )


class _TracePart(NamedTuple):
    """The part of a trace that is played."""

    trace: Trace
    load: Trace
    """The same, after the hours before it."""


def _trace(
    arguments: SimpleNamespace, file: FleetFile, at: datetime
) -> tuple[_TracePart, tuple[str, ...]]:
    if (arguments.trace is None) == (arguments.from_prometheus is None):
        raise CommandError("give --trace FILE or --from-prometheus URL, and not both")
    if arguments.trace is None:
        return _live_trace(arguments, file, at)
    if arguments.save_trace is not None:
        raise CommandError("--save-trace writes what --from-prometheus draws; leave it out")
    part = _part(arguments, _read_trace(arguments))
    return part, tuple(_step_notes(part.trace))


def recorded_trace(arguments: SimpleNamespace) -> Trace:
    """Return the chosen part of `--trace`; raise CommandError for a file that cannot be read."""
    return _part(arguments, _read_trace(arguments)).trace


def _live_trace(
    arguments: SimpleNamespace, file: FleetFile, at: datetime
) -> tuple[_TracePart, tuple[str, ...]]:
    saved = arguments.save_trace
    target = writable_file("--save-trace", saved) if saved else None
    trace, sentence = draw_live_trace(arguments, file.objects.service.ref, at)
    if target is not None:
        text = f"# {sentence}\n{trace_csv(trace)}".encode()
        target.write_bytes(gzip.compress(text, mtime=0) if target.suffix == ".gz" else text)
    return _part(arguments, trace), (sentence,)


def _step_notes(trace: Trace) -> Iterator[str]:
    """Say so where most requests share the time of another one."""
    moments = sorted(set(trace.arrivals))
    if len(trace) > 100 and len(moments) * 4 < len(trace):
        step = sorted(late - early for early, late in pairwise(moments))[len(moments) // 2 - 1]
        yield (
            f"Arrivals are recorded in steps of about {step:g} s, in which many come at once: "
            f"--spread {step:g} spreads them"
        )


def _read_trace(arguments: SimpleNamespace) -> Trace:
    try:
        trace = read_trace(arguments.trace)
    except TraceError as error:
        hint = "" if TRACE_FORMATS in str(error) else f"; {TRACE_FORMATS}"
        raise CommandError(f"--trace {error}{hint}") from None
    if arguments.spread is not None:
        trace = trace.spread(bounded("--spread", arguments.spread, 0, _HOUR), arguments.seed)
    return trace


def _part(arguments: SimpleNamespace, trace: Trace) -> _TracePart:
    """Return the part of the trace to play, in copies."""
    copies = bounded("--copies", arguments.copies, 1, _MAX_COPIES)
    if copies * len(trace) > _MAX_REQUESTS:
        raise CommandError(
            f"--copies {arguments.copies} makes {counted(int(copies) * len(trace), 'request')}, "
            f"above {_MAX_REQUESTS}; take fewer"
        )
    if copies > 1:
        trace = trace.overlaid(arguments.copies, trace.seconds * _SHIFT)
    begin = bounded("--from", getattr(arguments, "from"), 0, 1e6) * _HOUR
    hours = arguments.hours
    end = trace.seconds if hours is None else begin + bounded("--hours", hours, 0, 1e6) * _HOUR
    load = trace
    if begin or end < trace.seconds:
        end = min(end, trace.seconds)
        try:
            trace = trace.cut(begin, end)
        except ValueError as error:
            raise CommandError(f"--from and --hours: {error}") from None
        load = load.cut(0.0, end)
    if not len(trace):
        raise CommandError(f"{trace.name} has no request from --from on")
    return _TracePart(trace, load)


def _policies(
    arguments: SimpleNamespace, file: FleetFile, fleet: FleetModel
) -> Iterator[NamedPolicy]:
    compared = arguments.compare.split(",") if arguments.compare else ()
    names = dict.fromkeys((*arguments.policy, *compared)) or {OURS: None}
    for name in names:
        yield _policy(name, file, fleet)


def _policy(text: str, file: FleetFile, fleet: FleetModel) -> NamedPolicy:
    name, _, knobs = text.partition(":")
    if name == OURS:
        if knobs:
            raise CommandError(f"--policy {text}: {name} has no knobs; change the fleet file")
        return NamedPolicy(
            name=name,
            create=lambda: ProductPolicy(file.objects, types=file.types),
            router=router_of(name),
        )
    family = FAMILIES.get(name)
    if family is None:
        known = ", ".join((OURS, *FAMILIES))
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
    return NamedPolicy(
        name=text,
        create=lambda: family.create(settings, fleet.replica),
        router=router_of(name),
    )
