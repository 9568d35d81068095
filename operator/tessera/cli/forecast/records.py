"""What a service used, by records of single requests in a file.

Either CSV of the table `usage_records` of the gateway's database, or lines of its access log.
"""

import csv
import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded
from tessera.domain.economics.accuracy import MeasuredUsage
from tessera.domain.economics.measurement import LoggedRequest, measure
from tessera.domain.gateway.usage_record import Phase

_ServiceRequest: TypeAlias = tuple[str, LoggedRequest]

_COLUMNS = ("started_at_ns", "total_ns", "input_tokens", "output_tokens")
_MAX_RECORDS = 3_000_000
_MAX_COUNT = 2**63
_DAY_SECONDS = 86_400
_MIN_DAYS = 1 / 24
_FORMAT_HELP = (
    "records are CSV of the table usage_records, or lines of the gateway's access log "
    "(docs/tasks/forecast.md)"
)


def usage_of_records(arguments: SimpleNamespace, service: str | None) -> MeasuredUsage:
    """Return what the file of --records shows; CommandError where it is none."""
    name = f"--records {arguments.records}"
    records = _of_service(name, _read(name, arguments.records), service)
    starts = [record.started_at for record in records]
    days = arguments.days
    if days is None:
        days = (max(starts) - min(starts)) / _DAY_SECONDS
        if days < _MIN_DAYS:
            raise CommandError(
                f"{name} covers less than an hour: write the days that it stands for with --days"
            )
    usage = measure(records, bounded("--days", days, _MIN_DAYS, 3660))
    if usage is None:
        raise CommandError(f"{name} has no tokens: export a time with requests that were answered")
    return usage


def _read(name: str, path: str) -> Mapping[str, list[LoggedRequest]]:
    """Return the records of each service."""
    records = defaultdict[str, list[LoggedRequest]](list)
    try:
        with _opened(path) as lines:
            for count, (service, record) in enumerate(_parsed(name, lines)):
                if count == _MAX_RECORDS:
                    raise CommandError(
                        f"{name} has more than {_MAX_RECORDS} records: export a shorter time"
                    )
                records[service].append(record)
    except (EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise CommandError(f"{name}: {error}; {_FORMAT_HELP}") from None
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror or error}; check the path") from None
    return records


def _opened(path: str) -> Any:
    file = Path(path).expanduser()
    return (
        gzip.open(file, "rt", encoding="utf-8")
        if path.endswith(".gz")
        else file.open(encoding="utf-8")
    )


def _of_service(
    name: str, records: Mapping[str, list[LoggedRequest]], service: str | None
) -> list[LoggedRequest]:
    """Return the records of the service; without its name there may only be one."""
    if service is None and len(records) == 1:
        return next(iter(records.values()))
    # A file without the column is of the service that the forecast is of.
    chosen = records.get(service or "") or records.get("", [])
    if not chosen:
        others = ", ".join(sorted(records)[:5]) or "none"
        raise CommandError(
            f"{name} has no records of {service or 'one service alone'}: write --service with "
            f"one of {others}"
        )
    return chosen


def _parsed(name: str, lines: Iterable[str]) -> Iterator[_ServiceRequest]:
    """Yield the records with their services."""
    rows = iter(lines)
    head = next(rows, "")
    text = chain((head,), rows)
    numbered: Iterable[tuple[int, Any]]
    parse: Callable[[Any], _ServiceRequest | None]
    if head.startswith("{"):
        parse, numbered = _of_log, enumerate(text, start=1)
    else:
        table = csv.DictReader(text)
        if missing := sorted(set(_COLUMNS) - set(table.fieldnames or ())):
            raise CommandError(f"{name} has no column {', '.join(missing)}; {_FORMAT_HELP}")
        parse, numbered = _of_table, enumerate(table, start=2)
    for line, row in numbered:
        try:
            record = parse(row)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CommandError(f"{name}, line {line}: {reason}; {_FORMAT_HELP}") from None
        if record is not None:
            yield record


def _of_log(line: str) -> _ServiceRequest | None:
    """Return a request that reached an engine; a gateway writes other lines beside them."""
    if '"log":"access"' not in line:
        return None
    row = dict(json.loads(line))
    if row["phase"] == Phase.REFUSED:
        return None
    started_at = datetime.fromisoformat(row["time"]).timestamp()
    return str(row["service"]), LoggedRequest(
        started_at=started_at,
        ended_at=started_at + _count(row["totalMs"]) / 1e3,
        sender=_sender(row),
        input_tokens=_count(row["inputTokens"]),
        output_tokens=_count(row["outputTokens"]),
        reasoning_tokens=_count(row["reasoningTokens"]),
        # A call of a route that did not answer is of none.
        requests=_count(row.get("requests", 1)),
    )


def _of_table(row: Mapping[str, Any]) -> _ServiceRequest:
    started_at = _count(row["started_at_ns"]) / 1e9
    return row.get("service") or "", LoggedRequest(
        started_at=started_at,
        ended_at=started_at + _count(row["total_ns"]) / 1e9,
        sender=_sender(row),
        input_tokens=_count(row["input_tokens"]),
        output_tokens=_count(row["output_tokens"]),
        reasoning_tokens=_count(row.get("reasoning_tokens") or 0),
        requests=_count(row.get("requests") or 1),
    )


def _sender(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(name) or "") for name in ("tenant", "key", "user"))


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count < _MAX_COUNT:
        raise ValueError(f"{value} is no count")
    return count
