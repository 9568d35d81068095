"""The file of a recorded day of energy: what the exporters counted, and what each round read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.recorded_course import (
    RecordedCycle,
    changes_of,
    cycles_of,
    read_document,
    write_document,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEnergy:
    """A day of some GPUs."""

    source: str
    """How it was recorded."""
    counters: Mapping[str, Sequence[tuple[float, int]]]
    """Millijoules of each GPU by its UUID, at the times of scrapes."""
    joules: Sequence[tuple[str, str, str, float]]
    """What the operator showed at the end, by source, split and state."""
    cycles: Sequence[RecordedCycle]
    """What the meter reads of the cycles with new readings of GPUs."""


def write_energy(path: Path, day: RecordedEnergy) -> None:
    """Write the file, compressed; equal days give equal files."""
    document = {
        "source": day.source,
        "counters": day.counters,
        "joules": day.joules,
        "cycles": list(changes_of(day.cycles)),
    }
    write_document(path, document)


def read_energy(path: Path) -> RecordedEnergy:
    """Return what `write_energy` wrote."""
    document = read_document(path)
    return RecordedEnergy(
        source=document["source"],
        counters={
            uuid: [(at, count) for at, count in values]
            for uuid, values in document["counters"].items()
        },
        joules=[
            (source, split, state, joules) for source, split, state, joules in document["joules"]
        ],
        cycles=list(cycles_of(document["cycles"])),
    )
