"""A trace drawn from what the engines of a live service have counted."""

import math
import random
import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from tessera.adapters.prometheus.session import PrometheusSession
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.settings import CommandSettings
from tessera_lab.fleet.generators import arrival_times
from tessera_lab.fleet.trace import Trace

_STEP = 300
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_MAX_WINDOW = 30 * 86400
_MAX_REQUESTS = 20_000_000
_TIMEOUT_SECONDS = 60
_QUERY_STRING = re.compile(r"[?]query=\S+")
_PROMPTS, _OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"


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
    url, selector = arguments.from_prometheus.rstrip("/"), arguments.selector
    if selector is None:
        selector = f'namespace="{service.namespace}",tessera_dev_service="{service.name}"'
    try:
        session = PrometheusSession(CommandSettings().prometheus_access)
        counts = _counts(session, url, selector, window, at.timestamp())
        total = sum(counts)
        if not total:
            raise CommandError(
                f"--from-prometheus {url} has no request in {arguments.window} by "
                f"{_PROMPTS}_count{{{selector}}}; take a longer --window or another --selector"
            )
        if total > _MAX_REQUESTS:
            raise CommandError(
                f"--window {arguments.window} has {counted(round(total), 'request')}; take a "
                "shorter one"
            )
        prompts, outputs = (
            _histogram(session, url, f"{metric}_bucket{{{selector}}}", window, at.timestamp())
            for metric in (_PROMPTS, _OUTPUTS)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        # The query in an address hides what went wrong.
        summary = _QUERY_STRING.sub("", f"{type(error).__name__}: {error}")[:300]
        raise CommandError(f"--from-prometheus {url}: {summary}") from None
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


def _counts(
    session: PrometheusSession, url: str, selector: str, window: int, end: float
) -> Sequence[float]:
    """Return the requests of every 5 minutes."""
    rows = _query(
        session,
        f"{url}/api/v1/query_range",
        query=f"sum(increase({_PROMPTS}_count{{{selector}}}[{_STEP}s]))",
        start=end - window + _STEP,
        end=end,
        step=_STEP,
    )
    counts = [0.0] * (window // _STEP)
    for at, value in rows[0]["values"] if rows else ():
        index = round((float(at) - end + window) / _STEP) - 1
        if 0 <= index < len(counts):
            counts[index] = _count(value)
    return counts


def _histogram(
    session: PrometheusSession, url: str, series: str, window: int, end: float
) -> LengthHistogram:
    rows = _query(
        session,
        f"{url}/api/v1/query",
        query=f"sum by (le) (increase({series}[{window}s]))",
        time=end,
    )
    edges = sorted((float(row["metric"]["le"]), _count(row["value"][1])) for row in rows)
    if not edges or not edges[-1][1]:
        raise CommandError(f"--from-prometheus {url} has no lengths by {series}")
    # Rounded increases may fall from an edge to the next.
    cumulative = accumulate((count for _, count in edges), max)
    return LengthHistogram(tuple(edge for edge, _ in edges), tuple(cumulative))


def _count(text: Any) -> float:
    value = float(text)
    return value if 0 <= value <= 1e12 else 0.0


def _query(session: PrometheusSession, url: str, **params: Any) -> list[Any]:
    response = session.get(url, params=params, timeout=_TIMEOUT_SECONDS)
    body = response.json()
    if body["status"] != "success":
        raise ValueError(body.get("error", body["status"]))
    rows: list[Any] = body["data"]["result"]
    return rows
