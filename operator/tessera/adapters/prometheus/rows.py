"""Rows of Prometheus within bounds: whatever is scraped, reading the answer raises nothing.

Engines run images of tenants and export what they like, so an answer may have labels that are
missing, numbers that are none, and times far outside of any calendar.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from tessera.adapters.prometheus.queries import SERVICE, VARIANT, Bounds
from tessera.domain.observed.snapshot import Ref
from tessera.ports import RejectedSample

QueryRow = Mapping[str, Any]
KeyT = TypeVar("KeyT")

MAX_ROWS = 200_000
_MAX_LABELS = 64
# Prometheus' own default limit for a label value is none; pod and service names are far shorter.
_MAX_LABEL_LENGTH = 1024
# The last second that `datetime` can express, less a day for any time zone.
MAX_TIMESTAMP = 253_402_214_400.0


def well_formed_rows(answer: object, rejected: Counter[RejectedSample]) -> list[QueryRow]:
    """Return the rows whose labels are texts and whose samples are numbers, as floats.

    A value that is not finite is no data and left out without a count.
    """
    if not isinstance(answer, list):
        rejected[RejectedSample.MALFORMED] += 1
        return []
    if len(answer) > MAX_ROWS:
        rejected[RejectedSample.TOO_MANY_ROWS] += len(answer) - MAX_ROWS
    rows: list[QueryRow] = []
    for row in answer[:MAX_ROWS]:
        labels = _labels(row)
        samples = _samples(row) if labels is not None else None
        if labels is None or samples is None:
            rejected[RejectedSample.MALFORMED] += 1
        elif finite := [sample for sample in samples if math.isfinite(sample[1])]:
            rows.append({"metric": labels, "value": finite[-1], "values": finite})
    return rows


def bounded_rows(
    rows: Iterable[QueryRow], bounds: Bounds, rejected: Counter[RejectedSample]
) -> list[QueryRow]:
    """Return the rows that have the labels, without the samples out of range."""
    accepted: list[QueryRow] = []
    for row in rows:
        if not all(map(row["metric"].get, bounds.labels)):
            rejected[RejectedSample.MISSING_LABEL] += 1
            continue
        samples = [sample for sample in row["values"] if 0 <= sample[1] <= bounds.high]
        if len(samples) == len(row["values"]):
            accepted.append(row)
            continue
        rejected[RejectedSample.OUT_OF_RANGE] += len(row["values"]) - len(samples)
        if samples:
            accepted.append({**row, "value": samples[-1], "values": samples})
    return accepted


def sample_value(row: QueryRow) -> float:
    """Return the latest value of a row."""
    return float(row["value"][1])


def to_datetime(seconds: float) -> datetime:
    """Return the time of a sample, or in its value."""
    return datetime.fromtimestamp(seconds, UTC)


def values_by(rows: Iterable[QueryRow], key_of: Callable[[QueryRow], KeyT]) -> dict[KeyT, float]:
    """Return the latest value of each key."""
    return {key_of(row): sample_value(row) for row in rows}


def pod_ref(row: QueryRow) -> Ref:
    """Return the pod of a row."""
    return Ref(row["metric"]["namespace"], row["metric"]["pod"])


def service_ref(row: QueryRow) -> Ref:
    """Return the service of a row about engines."""
    return Ref(row["metric"]["namespace"], row["metric"][SERVICE])


def variant_key(row: QueryRow) -> tuple[Ref, str]:
    """Return the service and the variant of a row about engines; empty without a variant."""
    return service_ref(row), row["metric"].get(VARIANT, "")


def gateway_key(row: QueryRow) -> Ref:
    """Return the service of a row about gateways, whose label has namespace and name."""
    namespace, _, name = row["metric"]["service"].partition("/")
    return Ref(namespace, name)


def _labels(row: object) -> Mapping[str, str] | None:
    labels = row.get("metric") if isinstance(row, dict) else None
    if not isinstance(labels, dict) or len(labels) > _MAX_LABELS:
        return None
    for texts in (labels, labels.values()):
        for text in texts:
            if not isinstance(text, str) or len(text) > _MAX_LABEL_LENGTH:
                return None
    return labels


def _samples(row: Mapping[str, object]) -> list[tuple[float, float]] | None:
    """Return the samples of an instant or a range query; None if any is no pair of numbers."""
    samples = row["values"] if "values" in row else [row.get("value")]
    if not isinstance(samples, Sequence) or isinstance(samples, str):
        return None
    pairs = []
    try:
        for moment, value in samples:
            if not 0 <= float(moment) <= MAX_TIMESTAMP:
                return None
            pairs.append((float(moment), float(value)))
    except (TypeError, ValueError, OverflowError):
        return None
    return pairs
