"""Answers and loads for tests of the load test."""

from collections.abc import Sequence

from tessera.domain.bench.answers import Answer
from tessera.domain.bench.counters import Look
from tessera.domain.bench.figures import Level
from tessera.domain.bench.jobs import Job


def a_job(number: int = 0, *, inputs: int = 100, outputs: int = 5) -> Job:
    return Job(number=number, input_tokens=inputs, output_tokens=outputs)


def an_answer(
    *,
    due: float = 0.0,
    sent: float | None = None,
    first: float = 0.5,
    gaps: Sequence[float] = (0.1, 0.1, 0.1, 0.1),
    tokens: int | None = None,
    cached: int | None = None,
    job: Job | None = None,
    exact: bool = True,
) -> Answer:
    """Whole; `first` counts from when it was due."""
    return Answer(
        job=job or a_job(),
        due=due,
        sent=due if sent is None else sent,
        first=due + first,
        gaps=gaps,
        ended=due + first + sum(gaps),
        prompt_tokens=100,
        output_tokens=1 + len(gaps) if tokens is None else tokens,
        cached_tokens=cached,
        exact=exact,
    )


def a_failure(kind: str = "Http503", detail: str = "busy") -> Answer:
    return Answer(job=a_job(), due=0.0, sent=0.0, ended=0.1, failure=kind, detail=detail)


def a_level(
    *answers: Answer,
    seconds: float = 10.0,
    concurrency: int | None = 2,
    cpu_seconds: float = 0.1,
    before: Look | None = None,
    after: Look | None = None,
    during: Sequence[Look] = (),
    unfinished: int = 0,
) -> Level:
    return Level(
        name=str(concurrency or "trace"),
        concurrency=concurrency,
        answers=answers,
        unfinished=unfinished,
        began=0.0,
        ended=seconds,
        cpu_seconds=cpu_seconds,
        before=before or Look(0.0),
        after=after or Look(seconds),
        during=during,
    )


def a_look(at: float, **values: float) -> Look:
    """Names of vLLM's metrics without their prefix."""
    return Look(at, {f"vllm:{name}": value for name, value in values.items()})
