"""Compares what two engines were seen to do, case by case."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from tests.conformance.seen import Facts

DIFFERENCES = Path(__file__).with_name("differences.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two engines compare."""

    cases: int
    equal: int
    explained: tuple[str, ...]
    """Cases that differ, with a reason in the file."""
    unexplained: tuple[str, ...]
    """What differs without one, in a sentence each."""
    stale: tuple[str, ...]
    """Cases with a reason that are equal."""

    @override
    def __str__(self) -> str:
        differing = len(self.explained) + len(self.unexplained)
        return f"{self.cases} cases, {self.equal} equal, {differing} differing"


def reasons() -> dict[str, str]:
    """Why a case may differ, by its name."""
    entries = tomllib.loads(DIFFERENCES.read_text(encoding="utf-8"))
    return {entry["case"]: entry["reason"] for entry in entries["difference"]}


def compare(
    wanted: Mapping[str, Facts], got: Mapping[str, Facts], left_out: Mapping[str, str]
) -> Comparison:
    """Every case of either side once."""
    names = sorted({*wanted, *got})
    differing = [name for name in names if wanted.get(name) != got.get(name)]
    sentences = (_describe(name, wanted.get(name), got.get(name)) for name in differing)
    return Comparison(
        cases=len(names),
        equal=len(names) - len(differing),
        explained=tuple(name for name in differing if name in left_out),
        unexplained=tuple(
            line for name, line in zip(differing, sentences, strict=True) if name not in left_out
        ),
        stale=tuple(name for name in names if name in left_out and name not in differing),
    )


def _describe(name: str, wanted: Facts | None, got: Facts | None) -> str:
    if wanted is None or got is None:
        return f"{name}: only in the {'second' if wanted is None else 'first'} engine"
    aspects = [
        aspect for aspect in sorted({*wanted, *got}) if wanted.get(aspect) != got.get(aspect)
    ]
    lines = (f"{aspect}: wanted {wanted.get(aspect)}, got {got.get(aspect)}" for aspect in aspects)
    return f"{name}: {'; '.join(lines)}"
