"""A trace drawn from what the engines of a live service have counted."""

import math
import random
import re
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from types import SimpleNamespace

from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera_lab.cli.live_series import OUTPUTS, PROMPTS, LiveSeries, count, selector_of
from tessera_lab.fleet.generators import arrival_times
from tessera_lab.fleet.trace import Trace

_STEP = 300
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_MAX_WINDOW = 30 * 86400
_MAX_REQUESTS = 20_000_000


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Lengths by the upper edges of buckets; those in a bucket are spread evenly by logarithm."""

    edges: tuple[float, ...]
    cumulative: tuple[float, ...]

    def draw(self, rng: random.Random) -> int:
        index = bisect_right(self.cumulative, rng.random() * self.cumulative[-1])
        index = min(index, len(self.edges) - 1)
        low = max(1.0, self.edges[index - 1] if index else 1.0)
        high = self.edges[index]
        # Nothing is known of lengths beyond the last edge but that they are longer.
        return (
            math.ceil(low * (max(high, low) / low) ** rng.random()) if high < math.inf else int(low)
        )


def draw_live_trace(arguments: SimpleNamespace, service: Ref, at: datetime) -> tuple[Trace, str]:
    """Return a synthetic trace of the service's last days, and the sentence that says so."""
    window = _window(arguments.window)
    end = at.timestamp()
    series = LiveSeries(arguments.from_prometheus, arguments.selector or selector_of(service))
    with series.reported_errors():
        counts = series.requests_by_step(end - window, end, _STEP)
        total = sum(counts)
        if not total:
            raise CommandError(
                f"--from-prometheus {series.url} has no request in {arguments.window} by "
                f"{PROMPTS}_count{{{series.selector}}}; take a longer --window or another "
                "--selector"
            )
        if total > _MAX_REQUESTS:
            raise CommandError(
                f"--window {arguments.window} has {counted(round(total), 'request')}; take a "
                "shorter one"
            )
        prompts, outputs = (
            _histogram(series, metric, window, end) for metric in (PROMPTS, OUTPUTS)
        )
    rng = random.Random(arguments.seed)  # noqa: S311 - not a secret
    times = arrival_times(lambda second: counts[int(second // _STEP)] / _STEP, window, rng)
    # As precise as in a file.
    arrivals = array("d", (round(moment, 3) for moment in times))
    trace = Trace(
        name=f"synthetic-{service.name}-seed-{arguments.seed}",
        seconds=float(window),
        arrivals=arrivals,
        input_tokens=array("i", (prompts.draw(rng) for _ in arrivals)),
        output_tokens=array("i", (outputs.draw(rng) for _ in arrivals)),
    )
    return trace, (
        f"Synthetic: drawn with seed {arguments.seed} from the requests of {service} in the "
        f"{arguments.window} until {at:%Y-%m-%d %H:%M} UTC. Arrivals are random within 5 minutes "
        "and lengths independent, so that bursts may be missing"
    )


def _window(text: str) -> int:
    matched = re.fullmatch(r"(\d{1,4})([mhd])", text)
    seconds = int(matched[1]) * _UNITS[matched[2]] // _STEP * _STEP if matched else 0
    if not _STEP <= seconds <= _MAX_WINDOW:
        raise CommandError(f"--window {text}: write a span from 5m to 30d, such as 24h or 7d")
    return seconds


def _histogram(series: LiveSeries, metric: str, window: int, end: float) -> LengthHistogram:
    increases = series.increases(f"{metric}_bucket", window, "le")
    rows = series.query("query", query=f"sum by (le) ({increases})", time=end)
    edges = sorted((float(row["metric"]["le"]), count(row["value"][1])) for row in rows)
    if not edges or not edges[-1][1]:
        buckets = f"{metric}_bucket{{{series.selector}}}"
        raise CommandError(f"--from-prometheus {series.url} has no lengths by {buckets}")
    # Rounded increases may fall from an edge to the next.
    cumulative = accumulate((requests for _, requests in edges), max)
    return LengthHistogram(tuple(edge for edge, _ in edges), tuple(cumulative))
