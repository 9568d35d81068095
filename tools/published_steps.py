"""Predict published measurements that no fit has seen, and compare: published_steps.py.

The rows of `docs/figures/published-steps.json` are figures that others published, with their
conditions. Each is predicted from its conditions by the shipped speed table alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shares import rms
from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf.sources import predict_step_time
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.table import SpeedTable, shipped_speed_table

FIGURES = Path(__file__).parents[1] / "docs/figures/published-steps.json"
# Tokens of a step at most, as vLLM serves on these GPUs unless a flag says otherwise.
_STEP_TOKENS = 8192

# What was measured: the gap between two tokens while no prompt is read (ms), the mean gap of whole
# answers (ms), requests that start together until all have ended (ms), or output tokens a second.
Metric = Literal["itl", "tpot", "latency", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One published figure with its conditions; requests are as many at a time as stated."""

    source: str
    family: str
    model: str
    precision: str | None
    product: str
    gpus: int
    concurrency: int
    input: int
    output: int
    metric: Metric
    measured: float

    def step(self, speed_table: SpeedTable | None = None) -> StepTime:
        """Return the step time by a table, else by the shipped one."""
        hardware = whole_gpu_hardware(products()[self.product], self.gpus)
        used_table = speed_table or shipped_speed_table()
        return predict_step_time(used_table, models()[self.model], self.precision, hardware)

    def predicted(self, speed_table: SpeedTable | None = None) -> float:
        """Return the prediction of what was measured, from the conditions alone."""
        step, sequences, gaps = self.step(speed_table), self.concurrency, self.output - 1
        resident = sequences * (self.input + self.output / 2)
        decode = step.seconds(decoding=sequences, kv_tokens=resident)
        # What a prompt adds to a step that decodes all requests.
        prompt = (
            step.seconds(
                decoding=sequences,
                kv_tokens=resident,
                prefill_tokens=self.input,
                prefill_pairs=self.input**2,
            )
            - decode
        )
        first = decode + prompt
        if sequences == 1:
            first = step.prefill_seconds(self.input, chunk=_STEP_TOKENS)
        # While a request is answered, the prompt of each other request is read once.
        answer = first + gaps * decode + (sequences - 1) * prompt
        match self.metric:
            case "itl":
                return 1e3 * decode
            case "tpot":
                return 1e3 * (answer - first) / gaps
            case "latency":
                return 1e3 * answer
            case "throughput":
                return sequences * self.output / answer

    def time_error(self, speed_table: SpeedTable | None = None) -> float:
        """Return predicted over measured time, less one; a throughput is the inverse of a time."""
        ratio = self.predicted(speed_table) / self.measured
        return (1 / ratio if self.metric == "throughput" else ratio) - 1

    def stated_error(self) -> float:
        """Return the error of decoding that the product states with its prediction."""
        error = self.step().error
        if error is None:
            raise ValueError(f"{self.model} is predicted without an error")
        return error.decode


def published_rows() -> Sequence[PublishedRow]:
    """Return the rows, by family."""
    rows = [PublishedRow(**row) for row in _figures()["rows"]]
    return sorted(rows, key=lambda row: row.family)


def published_sources() -> Mapping[str, Mapping[str, str]]:
    """Return where the rows come from, by the name that they use."""
    sources: Mapping[str, Mapping[str, str]] = _figures()["sources"]
    return sources


def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures


def root_mean_square(rows: Sequence[PublishedRow]) -> float:
    """Return that of the errors of times."""
    return rms(row.time_error() for row in rows)


def _errors(rows: Sequence[PublishedRow]) -> str:
    """Return the error that was seen and those that the product states, which differ by GPU."""
    stated = [row.stated_error() for row in rows]
    seen = f"{root_mean_square(rows):.1%} of {len(rows)}"
    return f"{seen}, stated {min(stated):.1%} to {max(stated):.1%}"


def table() -> str:
    """Return all rows with their predictions as a table, and the errors by family and source."""
    sources, rows = published_sources(), published_rows()
    lines = [
        "| source, engine | model | hardware | requests, input, output | what | measured "
        "| predicted | time, error | by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[str, list[PublishedRow]] = {}
    for row in rows:
        by = row.step().source
        model = row.model.split("/")[-1] + (f", {row.precision}" if row.precision else "")
        gpu = f"{row.gpus} x {row.product.removeprefix('NVIDIA-')}"
        lengths = f"{row.concurrency}, {row.input:,}, {row.output:,}"
        lines.append(
            f"| {row.source}, {sources[row.source]['engine']} | {model} | {gpu} | {lengths} "
            f"| {row.metric} | {row.measured:,.4g} | {row.predicted():,.4g} "
            f"| {row.time_error():+.0%} | {by} |"
        )
        groups.setdefault(f"{row.family} by {by}", []).append(row)
    errors = [f"{name}: {_errors(of)}" for name, of in groups.items()]
    return "\n".join([*lines, "", *errors])


if __name__ == "__main__":
    print(table())
