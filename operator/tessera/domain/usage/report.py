"""Sums of usage records, and what they are grouped by."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.api.meta import Wire
from tessera.domain.gateway.usage_record import RecordDimension


def fields_of(text: str) -> tuple[str, ...]:
    """Return the fields of a list, each once; a target, whose name is one of its route, has it."""
    names = text.split(",")
    if RecordDimension.TARGET in names:
        at = names.index(RecordDimension.TARGET)
        names[at:at] = [RecordDimension.ROUTE.value]
    return tuple(dict.fromkeys(names))


def target_shares(by: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[float | None]:
    """Yield the share of requests that each row has among those that differ in the target alone.

    None of a row without a target, and without requests.
    """
    others = [name for name in by if name != RecordDimension.TARGET]
    requests = Counter[tuple[Any, ...]]()
    for row in rows:
        requests[tuple(row[name] for name in others)] += row["requests"]
    for row in rows:
        count = requests[tuple(row[name] for name in others)]
        yield row["requests"] / count if row[RecordDimension.TARGET] and count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """Which records are summed: those that started in a half-open interval of Unix time."""

    by: tuple[RecordDimension, ...]
    since_ns: int
    until_ns: int
    tenant: str | None = None
    """Only this tenant's records; None for all."""
    limit: int = 1000
    """Rows at most, those with the most tokens first."""


class UsageRow(Wire):
    """The requests of one group, and the tokens that they used."""

    group: tuple[str | None, ...]
    """One value for each dimension of the query; None where the records have none."""
    requests: int
    failed: int
    aborted: int
    estimated: int
    """Requests whose tokens the gateway counted, since the engine reported none."""
    input_tokens: int
    cached_tokens: int
    """Input tokens that a prefix cache answered; they are part of the input tokens."""
    output_tokens: int
    reasoning_tokens: int
    """They are part of the output tokens."""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The answer to a query."""

    rows: tuple[UsageRow, ...]
    is_truncated: bool
    """There are more groups than the query's limit."""
    oldest_ns: int | None = None
    """Unix time of the oldest record of all; None where there is none."""
