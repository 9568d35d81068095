"""The load of a live service: its requests as its engines counted them, as replicas."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace

from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.text import format_time, no_samples, parse_since
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.placement.checks import pooling_task, shape_of
from tessera.domain.scaling.policies.capacity.variant_capacity import variant_capacity
from tessera.settings import CommandSettings
from tessera_lab.cli.live_series import OUTPUTS, PROMPTS, LiveSeries, selector_of
from tessera_lab.cli.mix.instance_type import type_message
from tessera_lab.cli.simulate.fleet_file import FleetFile
from tessera_lab.fleet.sizing import widest_bounds

_DAY = timedelta(days=1)
# What Prometheus answers at most.
_MAX_STEPS = 11_000
_MAX_REPLICAS = 1000
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CACHED, _ALL_INPUT = "vllm:prompt_tokens_cached_total", "vllm:prompt_tokens_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveLoad:
    """A load as replicas, and what it was counted from."""

    curve: LoadCurve
    service: Ref
    since: datetime
    requests: int
    input_tokens: int
    """Mean of a request."""
    output_tokens: int
    replica_rate: float
    """Requests per second of a replica at the peak."""
    is_predicted: bool
    """False of a rate that the user gave."""
    type_message: str = ""
    """What the instance types of its pool cost; empty where nothing is decided on them."""


def read_live_load(
    arguments: SimpleNamespace, file: FleetFile | None, rate: float | None, at: datetime
) -> LiveLoad:
    """Return the load since a moment; CommandError where it cannot be read or is too short.

    A replica carries so many requests per second, or what sizing predicts of that in the file.
    """
    service = _service(arguments.service, file)
    begin, step = _span(arguments, at)
    end, span = at.timestamp(), round(at.timestamp() - begin)
    url = arguments.from_prometheus or CommandSettings().prometheus_url
    if url is None:
        raise CommandError("--from-prometheus: write its URL there, or in $TESSERA_PROMETHEUS_URL")
    since = at - timedelta(seconds=span)
    series = LiveSeries(url, selector_of(service))
    with series.reported_errors():
        if not series.has_samples(begin + step):
            problem = no_samples(since, series.oldest_sample(begin, end))
            raise CommandError(f"--from-prometheus {series.url} {problem}")
        counts = series.requests_by_step(begin, end, step)
        requests, inputs, outputs, cached, all_input = (
            series.increase(counter, span, end)
            for counter in (
                *(f"{PROMPTS}_count", f"{PROMPTS}_sum", f"{OUTPUTS}_sum"),
                *(_CACHED, _ALL_INPUT),
            )
        )
    if not sum(counts) or not requests:
        raise CommandError(
            f"--from-prometheus {series.url} has no request of {service} since "
            f"{format_time(since)} UTC by {PROMPTS}_count{{{series.selector}}}"
        )
    reading = SpeedReading(
        requests=requests,
        mean_input_tokens=inputs / requests,
        mean_output_tokens=outputs / requests,
        cached_share=min(1.0, cached / all_input) if all_input else None,
    )
    carried = (lambda _: rate) if rate is not None else _predicted(file, reading)
    fleets = _fleets(carried, max(counts) / step)
    least = widest_bounds(file.spec.scaling)[0] if file is not None else 0
    return LiveLoad(
        curve=LoadCurve(
            tuple(
                (float(step), max(least, bisect_left(fleets, each / step - 1e-9)))
                for each in counts
            )
        ),
        service=service,
        since=since,
        requests=round(sum(counts)),
        input_tokens=round(inputs / requests),
        output_tokens=round(outputs / requests),
        replica_rate=carried(max(1, len(fleets) - 1)),
        is_predicted=rate is None,
        type_message=type_message(series.url, file, at) if file is not None else "",
    )


def _service(name: str | None, file: FleetFile | None) -> Ref:
    if file is not None:
        return file.objects.service.ref
    namespace, slash, short = (name or "").partition("/")
    if not slash or not (_NAME.fullmatch(namespace) and _NAME.fullmatch(short)):
        raise CommandError(
            f"--service {name or ''}: write NAMESPACE/NAME with --from-prometheus, or the name of "
            "an InferenceService of --fleet"
        )
    return Ref(namespace, short)


def _span(arguments: SimpleNamespace, at: datetime) -> tuple[float, int]:
    """Return the begin in whole steps before `at`, and the seconds of a step."""
    step = round(arguments.window)
    steps = (at - parse_since(arguments.since, at)) // timedelta(seconds=step)
    if steps * step < _DAY.total_seconds():
        raise CommandError(
            f"--since {arguments.since} is too short: what is reserved is paid day and night, so a "
            "load of 1d at least decides"
        )
    if steps > _MAX_STEPS:
        raise CommandError(
            f"--since {arguments.since} has {counted(steps, 'window')} of {step} s, above "
            f"{_MAX_STEPS}: write a longer --window"
        )
    return at.timestamp() - steps * step, step


def _predicted(file: FleetFile | None, reading: SpeedReading) -> Callable[[int], float]:
    """Return what each of so many replicas behind a gateway carries of such requests."""
    if file is None:
        raise CommandError(
            "say with --replica-rate how many requests per second one replica carries, or with "
            "--fleet on which hardware it runs"
        )
    spec, fit = file.spec, file.choice.fit
    shape = shape_of(spec)
    assert shape is not None  # noqa: S101 - hardware was chosen for it
    if pooling_task(spec) is not None:
        raise CommandError(
            f"{file.objects.service.ref} is of a pooling model, whose capacity is not predicted by "
            "requests: write --replica-rate"
        )

    def carried(replicas: int) -> float:
        return variant_capacity(
            spec,
            shape,
            fit,
            reading=reading,
            measured_ratio=None,
            lead=timedelta(),
            replicas=replicas,
            servers=replicas,
        ).requests_per_second

    return carried


def _fleets(carried: Callable[[int], float], peak: float) -> list[float]:
    """Return the requests per second that 0, 1, 2 and more replicas carry, up to the peak."""
    totals = [*_totals(carried, peak)]
    if totals[-1] < peak:
        raise CommandError(
            f"a peak of {peak:g} requests/s is more than {counted(_MAX_REPLICAS, 'replica')} carry "
            f"at {carried(_MAX_REPLICAS):g} each"
        )
    return totals


def _totals(carried: Callable[[int], float], peak: float) -> Iterator[float]:
    total = 0.0
    yield total
    for replicas in range(1, _MAX_REPLICAS + 1):
        if total >= peak:
            return
        # A rounded rate is no reason for a further replica to carry less.
        total = max(total, replicas * carried(replicas))
        yield total
