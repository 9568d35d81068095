"""The file of a recorded course: what clients sent and saw, what was scraped, what each cycle saw.

Of a cycle only the parts that differ from the cycle before are written.
"""

import gzip
import json
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
class RecordedCycle:
    """One reconcile cycle of the operator."""

    snapshot: Snapshot
    replicas: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """One request as its client saw it; seconds since the first moment of the load."""

    second: float
    prompt_tokens: int
    output_tokens: int
    ttft: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCourse:
    """A course of one service."""

    source: str
    """How it was recorded."""
    service: Ref
    begin: datetime
    """The first moment of the load."""
    seconds: float
    """Its length."""
    requests: Sequence[RecordedRequest]
    scrapes: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
    """Samples of Prometheus, by pod and metric: the second since `begin`, and the value."""
    late_share: float
    """Share of the time in which other work kept the client from running for 50 ms or more."""
    cycles: Sequence[RecordedCycle]


def write_course(path: Path, course: RecordedCourse) -> None:
    """Write the file, compressed; equal courses give equal files."""
    document = {
        "source": course.source,
        "service": course.service,
        "begin": course.begin.isoformat(),
        "seconds": course.seconds,
        "lateShare": course.late_share,
        "requests": [
            [round(each.second, 4), each.prompt_tokens, each.output_tokens, round(each.ttft, 4)]
            for each in course.requests
        ],
        "scrapes": course.scrapes,
        "cycles": list(_changes(course.cycles)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0))


def read_course(path: Path) -> RecordedCourse:
    """Return what `write_course` wrote."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    return RecordedCourse(
        source=document["source"],
        service=Ref(*document["service"]),
        begin=datetime.fromisoformat(document["begin"]),
        seconds=document["seconds"],
        late_share=document["lateShare"],
        requests=[
            RecordedRequest(second=second, prompt_tokens=prompt, output_tokens=output, ttft=ttft)
            for second, prompt, output, ttft in document["requests"]
        ],
        scrapes=document["scrapes"],
        cycles=list(_cycles(document["cycles"])),
    )


def _changes(cycles: Sequence[RecordedCycle]) -> Iterator[dict[str, Any]]:
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
            "replicas": cycle.replicas,
            "reason": cycle.reason,
            "changes": {name: v for name, v in values.items() if before.get(name, _NEVER) != v},
        }
        before = values


_NEVER = object()


def _cycles(documents: Sequence[Mapping[str, Any]]) -> Iterator[RecordedCycle]:
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
            replicas=document["replicas"],
            reason=document["reason"],
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
