"""An earlier report of a load test, and what changed since then."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tessera.cli.bench_json import FORM, KIND, Json, fields
from tessera.cli.bench_report import Report
from tessera.cli.errors import CommandError
from tessera.domain.bench.changes import Against, Measures, changes, unmatched

_SPREADS = ("firstToken", "perToken", "answer")
_PERCENTILES = ("p50", "p95")
_RATES = ("requestsPerSecond", "outputTokensPerSecond")
_SAME = ("model", "load", "endpoint", "warmup", "interrupted")
"""What should be equal in both, by its key."""
_MAKE = "make one with tessera bench URL -o json > FILE"


def baseline(file: str) -> Json:
    """The report in a file; CommandError where it is none."""
    try:
        found = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--baseline {file}: {error.strerror or error}; {_MAKE}") from None
    except (ValueError, RecursionError):
        raise CommandError(f"--baseline {file} is not JSON; {_MAKE}") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise CommandError(f"--baseline {file} is no report of tessera bench; {_MAKE}")
    if found.get("form") != FORM:
        raise CommandError(
            f"--baseline {file} has form {found.get('form')}, this version reads {FORM}; {_MAKE}"
        )
    try:
        _measures(found)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CommandError(f"--baseline {file} is broken off or was changed; {_MAKE}") from None
    return found


def against(before: Json, report: Report) -> Against:
    """The present report held against an earlier one."""
    now = fields(report)
    then, present = _measures(before), _measures(now)
    return Against(
        at=str(before.get("at")),
        changes=tuple(changes(then, present)),
        doubts=(*_differences(before, now), *_missing(then, present)),
    )


def _measures(report: Json) -> dict[str, Measures]:
    """Of each load, by the keys of the report."""
    return {str(level["load"]): dict(_level(level)) for level in report["levels"]}


def _level(level: Json) -> Iterator[tuple[str, float]]:
    for key in _RATES:
        yield key, float(level[key])
    for name in _SPREADS:
        spread = level["latencySeconds"][name]
        for percentile in _PERCENTILES if spread else ():
            yield f"{name}.{percentile}", float(spread[percentile])
    price = (level["cost"] or {}).get("perMillionOutput")
    if price is not None:
        yield "perMillionOutput", float(price)


def _differences(before: Json, now: Json) -> Iterator[str]:
    for key in _SAME:
        if before.get(key) != now[key]:
            yield f"the baseline differs in {key}: {_told(before.get(key))}, now {_told(now[key])}"
    currencies = [(one.get("price") or {}).get("currency") for one in (before, now)]
    if None not in currencies and currencies[0] != currencies[1]:
        yield f"the baseline's prices are in {currencies[0]}, now in {currencies[1]}"


def _missing(before: Mapping[str, Measures], now: Mapping[str, Measures]) -> Iterator[str]:
    if lacking := unmatched(before, now):
        yield f"the baseline has no load {', '.join(lacking)}; it has {', '.join(before)}"


def _told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
