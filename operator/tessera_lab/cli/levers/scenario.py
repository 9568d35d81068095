"""The options of `tessera levers` as a case; every invalid one is a sentence with its fix."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

from tessera.api.model_files import ModelShape
from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.files import writable_file
from tessera.cli.numbers import bounded
from tessera.domain.hardware.device import Hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.placement.checks import max_model_len, shape_of
from tessera_lab.cli.simulate.fleet_file import FleetFile, read_fleet_file
from tessera_lab.cli.simulate.scenario import recorded_trace
from tessera_lab.fleet.sizing import widest_bounds
from tessera_lab.fleet.trace import Trace
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.lever import LeverId
from tessera_lab.levers.replica_rate import LatencyObjectives
from tessera_lab.levers.sample import load_sample, sampled, window_rates
from tessera_lab.levers.setups import LeverUnavailableError, main_setup

# Of a longer trace whole sessions with so many requests are played.
MOST_REQUESTS = 20_000
_DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverScenario:
    """What the command computes."""

    case: ServiceCase
    in_use: frozenset[LeverId]
    """Levers that the fleet has."""
    file: FleetFile
    trace: Trace
    seed: int
    svg: Path | None
    notes: tuple[str, ...]
    """What limits the figures."""


def read_scenario(arguments: SimpleNamespace, at: datetime) -> LeverScenario:
    """Return the scenario; raise CommandError for invalid options and files."""
    assumptions = _assumptions(arguments)
    draft, small = (_model(f"--{name}", getattr(arguments, name)) for name in ("draft", "small"))
    file = read_fleet_file(arguments.fleet, arguments.service, arguments.prices, at)
    svg = writable_file("--svg", arguments.svg) if arguments.svg else None
    if arguments.trace is None:
        raise CommandError("give --trace FILE, the requests that the service answered")
    trace = recorded_trace(arguments)
    shape = shape_of(file.spec)
    assert shape is not None  # noqa: S101 - the service has been placed
    longest = max_model_len(file.spec, shape)
    part = _part(trace, longest, arguments.seed)
    hardware, slo = file.choice.fit.hardware, file.spec.slo
    case = ServiceCase(
        shape=shape,
        load=load_sample(part),
        objectives=LatencyObjectives(
            ttft=slo.ttft_p95.total_seconds(), tpot=slo.itl_p95.total_seconds()
        ),
        demand=window_rates(trace),
        baseline=_whole_gpus(hardware),
        slice=hardware if hardware.profile is not None else None,
        prices={name: price for name, price in file.gpu_prices.items() if name in products()},
        draft=draft,
        small=small,
        max_model_len=longest,
        min_replicas=max(1, widest_bounds(file.spec.scaling)[0]),
        assumptions=assumptions,
    )
    case = _with_precision(case, file.choice.fit.precision)
    return LeverScenario(
        case=case,
        in_use=frozenset(_in_use(case, file)),
        file=file,
        trace=trace,
        seed=arguments.seed,
        svg=svg,
        notes=(*_notes(trace, part, longest), *file.notes),
    )


def _assumptions(arguments: SimpleNamespace) -> LeverAssumptions:
    shares = {
        name: bounded(f"--{name.replace('_', '-')}", getattr(arguments, name), 0, 0.99)
        for name in ("hit_share", "small_share", "batch_share", "wasted")
    }
    return LeverAssumptions(
        **shares,
        temperature=bounded("--temperature", arguments.temperature, 0, 1),
        engineer_hour=bounded("--engineer-hour", arguments.engineer_hour, 0, 10_000),
    )


def _model(option: str, name: str | None) -> ModelShape | None:
    if name is None:
        return None
    shape = models().get(name)
    if shape is None:
        near = difflib.get_close_matches(name, models(), cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CommandError(f"{option} {name} is not among the {len(models())} known models{hint}")
    return shape


def _part(trace: Trace, longest: int, seed: int) -> Trace:
    """Return what is played; raise CommandError where no request fits the model."""
    fitting = trace.fitting(longest)
    if not len(fitting):
        raise CommandError(
            f"--trace {trace.name}: every request is longer than {counted(longest, 'token')}; "
            "raise spec.context.maxModelLen"
        )
    return sampled(fitting, MOST_REQUESTS, seed)


def _whole_gpus(hardware: Hardware) -> Hardware:
    """Return the GPUs of a replica, or the whole GPU of its slice."""
    if hardware.profile is None:
        return hardware
    return whole_gpu_hardware(products()[hardware.product], 1)


def _with_precision(case: ServiceCase, precision: str | None) -> ServiceCase:
    """Return the case in the files' precision, or in the service's where that does not fit."""
    try:
        main_setup(case, frozenset())
    except LeverUnavailableError:
        return replace(case, precision=precision)
    return case


def _in_use(case: ServiceCase, file: FleetFile) -> Iterator[LeverId]:
    """Yield what the fleet does today, as far as the trace shows what that brings."""
    if file.choice.fit.precision == "fp8" and case.precision is None:
        yield LeverId.QUANTIZATION
    if case.load.shared_tokens is not None:
        yield LeverId.PREFIX_CACHE
    if case.slice is not None:
        yield LeverId.MIG
    least, most = widest_bounds(file.spec.scaling)
    if most > least:
        yield LeverId.SCALING


def _notes(trace: Trace, part: Trace, longest: int) -> Iterator[str]:
    fitting = len(trace.fitting(longest))
    if fitting < len(trace):
        yield (
            f"Longer than {counted(longest, 'token')}, and not played: "
            f"{counted(len(trace) - fitting, 'request')}; the demand has them"
        )
    if len(part) < fitting:
        yield (
            f"Played: {len(part)} of {counted(fitting, 'request')}, in whole sessions; the demand "
            "is that of all"
        )
    if trace.seconds < _DAY:
        yield (
            f"The month repeats {trace.seconds / 3600:.2f} h: what scaling and a mix of prices "
            "save over a day and a week is not in it"
        )
    if trace.prefixes is None:
        yield "The prefix cache is in use, but the trace does not say which prompts share a prefix"
