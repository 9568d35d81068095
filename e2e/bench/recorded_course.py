"""The file of a recorded course: what clients sent and saw, what was scraped, what each cycle saw.

Of a cycle only the parts that differ from the cycle before are written.
"""

import itertools
import json
import lzma
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from tessera.domain.observed.snapshot import Readings, Ref, Snapshot

# What a plan for services reads; the rest is about batches.
_PARTS = (
    *("services", "pools", "nodes", "pods", "workloads", "addresses", "demand"),
    *("probe_results", "in_flight", "budgets", "resolutions"),
)
_Hints = Mapping[str, Any]
_SNAPSHOT_HINTS: _Hints = get_type_hints(Snapshot)
_READINGS_HINTS: _Hints = get_type_hints(Readings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """What a cycle decided for one service."""

    replicas: int
    reason: str
    desired: Mapping[str, int]
    """Replicas of each variant, by its pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCycle:
    """One reconcile cycle of the operator."""

    snapshot: Snapshot
    decisions: Mapping[Ref, RecordedDecision]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """One request as its client saw it; seconds since the first moment of the load."""

    second: float
    prompt_tokens: int
    output_tokens: int
    ttft: float
    """Infinite if no token came."""


# Samples of Prometheus: the second since the first moment of the load, and the value.
Samples = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedService:
    """What came to one service, and what was scraped of it."""

    requests: Sequence[RecordedRequest]
    scrapes: Mapping[str, Mapping[str, Samples]]
    """By pod and metric."""
    costs: Mapping[str, Samples]
    """The bill by pool, in nano-units since the operator started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCourse:
    """A course of several services."""

    source: str
    """How it was recorded."""
    begin: datetime
    """The first moment of the load."""
    seconds: float
    """Its length."""
    late_share: float
    """Share of the time in which other work kept the client from running for 50 ms or more."""
    services: Mapping[Ref, RecordedService]
    cycles: Sequence[RecordedCycle]


def write_course(path: Path, course: RecordedCourse) -> None:
    """Write the file, compressed; equal courses give equal files."""
    document = {
        "source": course.source,
        "begin": course.begin.isoformat(),
        "seconds": course.seconds,
        "lateShare": course.late_share,
        "services": [
            {
                "service": ref,
                "requests": _columns(service.requests),
                "scrapes": service.scrapes,
                "costs": service.costs,
            }
            for ref, service in course.services.items()
        ],
        "cycles": list(changes_of(course.cycles)),
    }
    write_document(path, document)


def write_document(path: Path, document: object) -> None:
    """Write a file of JSON, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(json.dumps(document, separators=(",", ":")).encode(), preset=9))


def read_document(path: Path) -> Any:
    """Return what `write_document` wrote."""
    return json.loads(lzma.decompress(path.read_bytes()))


def read_course(path: Path) -> RecordedCourse:
    """Return what `write_course` wrote."""
    document = read_document(path)
    return RecordedCourse(
        source=document["source"],
        begin=datetime.fromisoformat(document["begin"]),
        seconds=document["seconds"],
        late_share=document["lateShare"],
        services={
            Ref(*each["service"]): RecordedService(
                requests=list(_requests(*each["requests"])),
                scrapes=each["scrapes"],
                costs=each["costs"],
            )
            for each in document["services"]
        },
        cycles=list(cycles_of(document["cycles"])),
    )


def _columns(requests: Sequence[RecordedRequest]) -> list[list[int | None]]:
    """Return the times between requests, their prompts, their answers and TTFTs, in ms."""
    begins = [round(each.second * 1000) for each in requests]
    return [
        [after - before for before, after in itertools.pairwise([0, *begins])],
        [each.prompt_tokens for each in requests],
        [each.output_tokens for each in requests],
        [round(each.ttft * 1000) if math.isfinite(each.ttft) else None for each in requests],
    ]


def _requests(
    spans: Sequence[int],
    prompts: Sequence[int],
    outputs: Sequence[int],
    ttfts: Sequence[int | None],
) -> Iterator[RecordedRequest]:
    begins = itertools.accumulate(spans)
    for begin, prompt, output, ttft in zip(begins, prompts, outputs, ttfts, strict=True):
        yield RecordedRequest(
            second=begin / 1000,
            prompt_tokens=prompt,
            output_tokens=output,
            ttft=math.inf if ttft is None else ttft / 1000,
        )


def changes_of(cycles: Sequence[RecordedCycle]) -> Iterator[dict[str, Any]]:
    before: dict[str, Any] = {}
    for cycle in cycles:
        readings = cycle.snapshot.readings
        parts = {
            "snapshot": {name: getattr(cycle.snapshot, name) for name in _PARTS},
            "readings": {}
            if readings is None
            else {name: getattr(readings, name) for name in _READINGS_HINTS},
        }
        values = {
            f"{kind}.{name}": _dump(hints[name], value)
            for kind, hints in (("snapshot", _SNAPSHOT_HINTS), ("readings", _READINGS_HINTS))
            for name, value in parts[kind].items()
        }
        yield {
            "at": cycle.snapshot.at.isoformat(),
            "decisions": [
                [ref, decision.replicas, decision.reason, decision.desired]
                for ref, decision in cycle.decisions.items()
            ],
            "changes": {name: v for name, v in values.items() if before.get(name, _NEVER) != v},
        }
        before = values


_NEVER = object()


def cycles_of(documents: Sequence[Mapping[str, Any]]) -> Iterator[RecordedCycle]:
    snapshot: dict[str, Any] = {}
    readings: dict[str, Any] = {}
    for document in documents:
        for name, value in document["changes"].items():
            kind, _, part = name.partition(".")
            if kind == "snapshot":
                snapshot[part] = _parse(_SNAPSHOT_HINTS[part], value)
            else:
                readings[part] = _parse(_READINGS_HINTS[part], value)
        yield RecordedCycle(
            snapshot=Snapshot(
                at=datetime.fromisoformat(document["at"]),
                readings=Readings(**readings) if readings else None,
                **snapshot,
            ),
            decisions={
                Ref(*ref): RecordedDecision(replicas=replicas, reason=reason, desired=desired)
                for ref, replicas, reason, desired in document["decisions"]
            },
        )


def _dump(hint: Any, value: Any) -> Any:
    if _mapping(hint) and value is not None:
        value = tuple(sorted(value.items()))
    return _adapter(hint).dump_python(value, mode="json", by_alias=True)


def _parse(hint: Any, value: Any) -> Any:
    parsed = _adapter(hint).validate_python(value)
    return dict(parsed) if parsed is not None and _mapping(hint) else parsed


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Return the adapter of a part; a mapping is written as pairs, since JSON keys are strings."""
    mapping = _mapping(hint)
    if not mapping:
        return TypeAdapter(hint)
    pairs: Any = GenericAlias(tuple, (GenericAlias(tuple, get_args(mapping)), ...))
    return TypeAdapter(pairs | None)


def _mapping(hint: Any) -> Any:
    """Return the mapping that a hint is, or is unless it is None; None for another hint."""
    return next((each for each in (hint, *get_args(hint)) if get_origin(each) is Mapping), None)
