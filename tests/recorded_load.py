"""Recorded days of a service, written into the storage of a Prometheus as if it had scraped them.

Prometheus finds them when it starts, or within a minute. They are one block, or two, which it keeps
however short its retention is, save the older one.
"""

import math
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from tessera.api.ref import Ref
from tessera.domain.observed.load_history import SPAN, LoadSpan
from world import binaries

_SCRAPE_SECONDS = 60
# A running request waits so long for each token of its answer.
_SECONDS_PER_TOKEN = 0.02
_PROMPT_BOUNDS = [factor * 10.0**power for power in range(6) for factor in (1, 2, 5)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEngine:
    """One engine that has served all of a load."""

    service: Ref
    variant: str
    model_name: str
    pod: str = "recorded-0"
    kv_tokens: int = 100_000

    @property
    def labels(self) -> str:
        """Return the labels that each of its series has."""
        labels = {
            "namespace": self.service.namespace,
            "tessera_dev_service": self.service.name,
            "tessera_dev_variant": self.variant,
            "pod": self.pod,
            "model_name": self.model_name,
            "engine": "0",
        }
        return ",".join(f'{name}="{value}"' for name, value in labels.items())


def record_load(storage: Path, engine: RecordedEngine, *spans: Sequence[LoadSpan]) -> None:
    """Write the series that an engine would have had of a load into `--storage.tsdb.path`.

    Each sequence of spans is one run of the engine, and begins with counters of 0.
    """
    samples = (sample for run in spans for sample in _samples(engine, run))
    by_metric: dict[str, list[str]] = {}
    for family, line in samples:
        by_metric.setdefault(family, []).append(line)
    lines = [line for each in by_metric.values() for line in each]
    with tempfile.NamedTemporaryFile("w", suffix=".om") as file:
        file.write("".join([*lines, "# EOF\n"]))
        file.flush()
        tool = binaries.ensure(print, ["promtool"]) / "promtool"
        command = [str(tool), "tsdb", "create-blocks-from", "--max-block-duration=21d"]
        subprocess.run(
            [*command, "openmetrics", file.name, str(storage)], check=True, capture_output=True
        )


def _samples(engine: RecordedEngine, spans: Iterable[LoadSpan]) -> Iterator[tuple[str, str]]:
    """Yield the metric and the text of each sample, of each series in the order of time."""
    counters: dict[tuple[str, str], float] = {}
    for span in spans:
        growth = _growth(span)
        end = round(span.end.timestamp())
        running = span.rate * span.output_tokens * _SECONDS_PER_TOKEN
        gauges = {
            ("num_requests_running", ""): running,
            ("kv_cache_usage_perc", ""): running * span.resident_tokens / engine.kv_tokens,
            ("cache_config_info", f',kv_cache_size_tokens="{engine.kv_tokens}"'): 1.0,
        }
        begin = end - round(SPAN.total_seconds())
        # A run begins with a scrape of an engine that has counted nothing.
        first = [] if counters else [begin + 1]
        for moment in (*first, *range(begin + _SCRAPE_SECONDS, end + 1, _SCRAPE_SECONDS)):
            share = _SCRAPE_SECONDS / SPAN.total_seconds() if counters else 0.0
            for key, value in growth.items():
                counters[key] = counters.get(key, 0.0) + share * value
            for (metric, labels), value in (counters | gauges).items():
                series = f"vllm:{metric}{{{engine.labels}{labels}}}"
                yield series, f"{series} {value!r} {moment}\n"


def _growth(span: LoadSpan) -> dict[tuple[str, str], float]:
    """Return by how much the engine's counters grow in a span, by metric and further labels."""
    requests = span.rate * SPAN.total_seconds()
    prompts, answers = requests * span.input_tokens, requests * span.output_tokens
    growth = {
        ("request_success_total", ',finished_reason="stop"'): requests,
        ("request_generation_tokens_count", ""): requests,
        ("request_generation_tokens_sum", ""): answers,
        ("request_prompt_tokens_sum", ""): prompts,
        ("prompt_tokens_total", ""): prompts,
        ("prompt_tokens_cached_total", ""): prompts * span.cached_share,
    }
    for bound in (*_PROMPT_BOUNDS, math.inf):
        label = f',le="{"+Inf" if bound == math.inf else bound}"'
        growth["request_prompt_tokens_bucket", label] = requests * _share_below(span, bound)
    return growth


def _share_below(span: LoadSpan, bound: float) -> float:
    """Return the share of the prompts up to a bound, which are lognormally distributed."""
    if not span.input_tokens or bound == math.inf:
        return 1.0
    width = math.log1p(span.input_variation)
    mean = math.log(span.input_tokens) - width / 2
    if not width:
        return float(span.input_tokens <= bound)
    return NormalDist(mean, math.sqrt(width)).cdf(math.log(bound))
