"""The report of a load test, and its tables for a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.cli.text import moment, table
from tessera.domain.bench.changes import Against, Change
from tessera.domain.bench.counters import Peaks, Work
from tessera.domain.bench.dollars import Dollars, Price
from tessera.domain.bench.figures import Figures
from tessera.domain.bench.knee import RULE, Knee
from tessera.domain.bench.spread import Spread
from tessera.domain.money import Money

NONE = "-"
PERCENTILES = "nearest rank: the ceil(p n / 100)-th of n values in order, always a measured one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is shown."""

    tessera: str
    at: datetime
    url: str
    model: str
    endpoint: str
    told: str
    """The load in words."""
    seed: int
    warmup: int
    timeout_seconds: float
    levels: tuple[Figures, ...]
    cautions: tuple[tuple[str, ...], ...]
    """Of each load."""
    knee: Knee | None
    swept: bool
    peaks: Peaks | None
    price: Price | None
    interrupted: bool
    notes: tuple[str, ...]
    against: Against | None = None
    """An earlier report to which this one is compared."""

    @property
    def title(self) -> str:
        return f"{self.model} at {self.url}"


def as_text(report: Report) -> str:
    """Tables for a terminal."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"{report.title}, {moment(report.at)} UTC"
    yield f"{report.told}; seed {report.seed}, {report.warmup} requests before did not count"
    if report.interrupted:
        yield "INTERRUPTED: this is what was measured until then"
    for head, rows in tables(report):
        yield ""
        yield from table(head, rows)
    yield ""
    yield from knee_lines(report)
    yield from client_lines(report)
    yield f"Percentiles are by {PERCENTILES}."
    yield from (f"Note: {note}" for note in all_notes(report))


Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def tables(report: Report) -> Iterator[Table]:
    """Throughput and latency never stand without each other."""
    levels = report.levels
    yield (
        (
            *("LOAD", "WHOLE", "FAILED", "SECONDS", "HELD", "REQ/S", "OUT TOK/S", "WHILE FULL"),
            *("ALL TOK/S", "A USER", "BOUND BY"),
        ),
        [_throughput(one) for one in levels],
    )
    yield (
        ("LOAD", "LATENCY", "MEAN", "P50", "P90", "P95", "P99", "MOST"),
        [row for one in levels for row in _latency(one)],
    )
    if any(one.work for one in levels):
        yield (
            (
                *("LOAD", "BATCH", "RUNNING", "QUEUED", "PREEMPTED", "KV AT MOST"),
                *("CACHE HITS", "MFU", "MBU"),
            ),
            [_engine(one.level.name, one.work) for one in levels],
        )
    if report.price is not None:
        ratio, code = report.price.output_over_input, report.price.per_hour.currency
        yield (
            (
                *("LOAD", f"{code}/M OUT", f"{code}/M ALL", f"{code}/M OUT, IN AT 1/{ratio:f}"),
                *(f"OUT TOK/{code}", f"ALL TOK/{code}", "THIS RUN"),
            ),
            [_money(one.level.name, one.dollars) for one in levels],
        )
    if report.against is not None and report.against.changes:
        yield (
            ("LOAD", f"SINCE {report.against.at[:16]}", "BEFORE", "NOW", "CHANGE"),
            [_change(one) for one in report.against.changes],
        )


def knee_lines(report: Report) -> Iterator[str]:
    """Where the knee of a sweep is, and by which rule."""
    if not report.swept:
        return
    if report.knee is None:
        yield (
            "Knee: not to be told; it needs three loads without failures, and one below the best"
        )
    elif report.knee.passed:
        yield f"Knee: {report.knee.concurrency} at once. It is {RULE}."
    else:
        yield (
            f"Knee: {report.knee.concurrency} at once or beyond, which was the greatest load. It "
            f"is {RULE}."
        )


def client_lines(report: Report) -> Iterator[str]:
    """The client's own limit, at the busiest load."""
    told = [one.client for one in report.levels if one.client.cpu_ms_per_request is not None]
    if not told:
        return
    client = max(told, key=lambda one: one.cpu_share)
    yield (
        f"Client: {client.cpu_share:.0%} of a processor, {client.cpu_ms_per_request:.2f} ms a "
        f"request ({client.cpu_us_per_chunk or 0:.0f} us a chunk); it would be the limit at about "
        f"{client.requests_per_second or 0:.0f} such requests/s. Sent late by at most "
        f"{client.late_seconds * 1e3:.1f} ms (P95)."
    )


def all_notes(report: Report) -> Iterator[str]:
    """Cautions with their load where there are several, then what is missing."""
    for one, found in zip(report.levels, report.cautions, strict=True):
        prefix = f"load {one.level.name}: " if report.swept else ""
        yield from (prefix + caution for caution in found)
    if report.against is not None:
        yield from report.against.doubts
    yield from report.notes


def _throughput(one: Figures) -> list[str]:
    failed = ", ".join(f"{count} {kind}" for kind, count in one.failures.items())
    return [
        one.level.name,
        str(one.whole),
        failed or "0",
        f"{one.level.seconds:.1f}",
        f"{one.held:.1f}",
        f"{one.requests_per_second:.2f}",
        f"{one.output_per_second:.0f}",
        _number(one.full, ".0f"),
        f"{one.total_per_second:.0f}",
        _number(one.per_user, ".1f"),
        str(one.bound),
    ]


def _latency(one: Figures) -> Iterator[list[str]]:
    found = one.latencies
    for name, spread in (
        ("first token", found.first_token),
        ("between tokens", found.per_token),
        ("gap of chunks", found.gap),
        ("whole answer", found.answer),
    ):
        yield [one.level.name, name, *_spread(spread)]


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return [NONE] * 6
    values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most)
    return [span(value) for value in values]


def span(seconds: float) -> str:
    """Three digits or so, in the unit that suits."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"


def _engine(name: str, done: Work | None) -> list[str]:
    if done is None:
        return [name, *[NONE] * 8]
    return [
        name,
        _number(done.batch, ".1f"),
        _number(done.running, ".1f"),
        NONE if done.queued_seconds is None else span(done.queued_seconds),
        _number(done.preemptions, ".0f"),
        _number(done.most_kv, ".1%"),
        _number(done.prefix_hits, ".1%"),
        _number(done.mfu, ".1%"),
        _number(done.mbu, ".1%"),
    ]


def _money(name: str, found: Dollars | None) -> list[str]:
    if found is None:
        return [name, *[NONE] * 6]
    return [
        name,
        _amount(found.per_million_output),
        _amount(found.per_million_total),
        _amount(found.per_million_weighted),
        _number(found.output_tokens_per_unit, ",.0f"),
        _number(found.total_tokens_per_unit, ",.0f"),
        _amount(found.run, 6),
    ]


_SECONDS = {
    "firstToken": "first token",
    "perToken": "between tokens",
    "answer": "whole answer",
}
_FORMS = {
    "requestsPerSecond": ("requests/s", ".2f"),
    "outputTokensPerSecond": ("output tokens/s", ".0f"),
    "perMillionOutput": ("price of a million output tokens", ".4f"),
}


def _change(one: Change) -> list[str]:
    share = NONE if one.share is None else f"{one.share:+.1%}"
    key, _, percentile = one.figure.partition(".")
    if percentile:
        named = f"{_SECONDS[key]} {percentile.upper()}"
        return [one.load, named, span(one.before), span(one.now), share]
    named, form = _FORMS[key]
    return [one.load, named, format(one.before, form), format(one.now, form), share]


def _amount(value: Money | None, digits: int = 4) -> str:
    return NONE if value is None else str(value.rounded(digits))


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
