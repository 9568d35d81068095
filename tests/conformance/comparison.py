"""Compares the observed behavior of two engines, case by case."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from tests.conformance.observed_facts import Facts

DIFFERENCES = Path(__file__).with_name("differences.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of the comparison of two engines."""

    cases: int
    equal: int
    explained: tuple[str, ...]
    """Cases that differ, with a reason in `differences.toml`."""
    unexplained: tuple[str, ...]
    """Differences without a reason, one sentence for each case."""
    stale: tuple[str, ...]
    """Cases with a reason that are equal."""

    @override
    def __str__(self) -> str:
        differing = len(self.explained) + len(self.unexplained)
        return f"{self.cases} cases, {self.equal} equal, {differing} differing"


def reasons() -> dict[str, str]:
    """Return the reasons of cases that may differ, by the name of the case."""
    entries = tomllib.loads(DIFFERENCES.read_text(encoding="utf-8"))
    return {entry["case"]: entry["reason"] for entry in entries["difference"]}


def compare(
    expected: Mapping[str, Facts], actual: Mapping[str, Facts], left_out: Mapping[str, str]
) -> Comparison:
    """Compare every case of either engine."""
    names = sorted({*expected, *actual})
    differing = [name for name in names if expected.get(name) != actual.get(name)]
    sentences = (_describe(name, expected.get(name), actual.get(name)) for name in differing)
    return Comparison(
        cases=len(names),
        equal=len(names) - len(differing),
        explained=tuple(name for name in differing if name in left_out),
        unexplained=tuple(
            line for name, line in zip(differing, sentences, strict=True) if name not in left_out
        ),
        stale=tuple(name for name in names if name in left_out and name not in differing),
    )


def _describe(name: str, expected: Facts | None, actual: Facts | None) -> str:
    if expected is None or actual is None:
        return f"{name}: only in the {'second' if expected is None else 'first'} engine"
    aspects = [
        aspect
        for aspect in sorted({*expected, *actual})
        if expected.get(aspect) != actual.get(aspect)
    ]
    lines = (
        f"{aspect}: wanted {expected.get(aspect)}, got {actual.get(aspect)}" for aspect in aspects
    )
    return f"{name}: {'; '.join(lines)}"
