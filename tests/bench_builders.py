"""Responses and loads for the tests of the load test."""

from array import array
from collections.abc import Sequence

from tessera_lab.load.engine_metrics import MetricsSnapshot
from tessera_lab.load.load_metrics import LoadMeasurement
from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.responses import BenchResponse


def a_job(number: int = 0, *, inputs: int = 100, outputs: int = 5) -> BenchRequest:
    return BenchRequest(number=number, input_tokens=inputs, output_tokens=outputs)


def an_answer(
    *,
    due: float = 0.0,
    sent: float | None = None,
    first: float = 0.5,
    gaps: Sequence[float] = (0.1, 0.1, 0.1, 0.1),
    tokens: int | None = None,
    cached: int | None = None,
    job: BenchRequest | None = None,
    exact: bool = True,
) -> BenchResponse:
    """Build a complete response; `first` counts from the due time."""
    return BenchResponse(
        request=job or a_job(),
        due_at=due,
        sent_at=due if sent is None else sent,
        first_token_at=due + first,
        chunk_gaps=array("d", gaps),
        ended_at=due + first + sum(gaps),
        prompt_tokens=100,
        output_tokens=1 + len(gaps) if tokens is None else tokens,
        cached_tokens=cached,
        exact_tokens=exact,
    )


def a_failure(kind: str = "Http503", detail: str = "busy") -> BenchResponse:
    return BenchResponse(
        request=a_job(), due_at=0.0, sent_at=0.0, ended_at=0.1, failure=kind, detail=detail
    )


def a_level(
    *answers: BenchResponse,
    seconds: float = 10.0,
    concurrency: int | None = 2,
    cpu_seconds: float = 0.1,
    before: MetricsSnapshot | None = None,
    after: MetricsSnapshot | None = None,
    during: Sequence[MetricsSnapshot] = (),
    unfinished: int = 0,
) -> LoadMeasurement:
    return LoadMeasurement(
        name=str(concurrency or "trace"),
        concurrency=concurrency,
        responses=answers,
        unfinished=unfinished,
        started_at=0.0,
        ended_at=seconds,
        cpu_seconds=cpu_seconds,
        before=before or MetricsSnapshot(0.0),
        after=after or MetricsSnapshot(seconds),
        during=during,
    )


def a_look(at: float, **values: float) -> MetricsSnapshot:
    """Names of vLLM's metrics without their prefix."""
    return MetricsSnapshot(at, {f"vllm:{name}": value for name, value in values.items()})
