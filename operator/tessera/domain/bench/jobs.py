"""The requests of a load test before they are sent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK = 512
"""Tokens that one id of a trace stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request."""

    number: int
    arrival: float = 0.0
    """Seconds from the begin, where arrivals are given."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None = None
    """What the prompt is made of, `BLOCK` tokens each: equal ids are equal text."""
    shared: int = 0
    """Tokens at its begin that all prompts have in common."""


def shared_by_design(jobs: Iterable[Job]) -> float:
    """Share of the prompts' tokens that stood at the begin of an earlier prompt."""
    seen: set[int] = set()
    repeated = total = begun = 0
    for job in jobs:
        total += job.input_tokens
        if job.blocks is None:
            repeated += job.shared if begun else 0
            begun += 1
            continue
        known = 0
        for block in job.blocks:
            if block not in seen:
                break
            known += 1
        seen.update(job.blocks)
        repeated += min(known * BLOCK, job.input_tokens)
    return repeated / total if total else 0.0


def fitting(jobs: Sequence[Job], longest: int | None) -> list[Job]:
    """Those whose prompt and answer the model can hold together."""
    if longest is None:
        return list(jobs)
    return [job for job in jobs if job.input_tokens + job.output_tokens <= longest]
