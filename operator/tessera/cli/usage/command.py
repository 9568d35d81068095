"""`tessera usage`: requests and tokens by tenant, key, model and other fields."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

from tessera.adapters.clock import now
from tessera.cli.errors import CommandError
from tessera.cli.gateway_port import read_gateway
from tessera.cli.output import Output
from tessera.cli.text import cell, column_head, format_time, parse_since, table
from tessera.cli.usage import import_job
from tessera.domain.gateway.usage_record import USAGE_COLUMNS, RecordDimension
from tessera.domain.usage.report import fields_of, target_shares

_COUNTS = ("requests", "failed", "aborted", "estimated")
_TARGET, _SHARE = RecordDimension.TARGET, "share"
_TOKENS = ("inputTokens", "cachedTokens", "outputTokens", "reasoningTokens")


def run(arguments: SimpleNamespace) -> Output:
    """Return the sums in the requested format, or the Job of an import."""
    if arguments.action == "import":
        return import_job.run(arguments)
    by = parse_fields(arguments.by)
    until = now()
    since = parse_since(arguments.since, until)
    query = {"by": ",".join(by), "since": since.isoformat(), "until": until.isoformat()}
    if arguments.tenant:
        query["tenant"] = arguments.tenant
    answer = read_gateway(arguments, "/usage", query)
    return output(UsageTable(by, since, until, answer), arguments.output)


class UsageTable:
    """The answer of a gateway, with the question."""

    def __init__(
        self, by: Sequence[str], since: datetime, until: datetime, answer: Mapping[str, Any]
    ) -> None:
        self.by, self.since, self.until = by, since, until
        self.rows: Sequence[Mapping[str, Any]] = answer["rows"]
        self.is_truncated: bool = answer["truncated"]
        oldest: str | None = answer["oldest"]
        self.oldest = datetime.fromisoformat(oldest) if oldest is not None else None
        """Start of the oldest record of all tenants; None where the database has none."""
        if _TARGET in by:
            shares = target_shares(by, self.rows)
            self.rows = [
                {**row, _SHARE: None if self.is_truncated or share is None else round(share, 6)}
                for row, share in zip(self.rows, shares, strict=True)
            ]

    @property
    def shares(self) -> Sequence[str]:
        """Return the column that rows of targets have besides."""
        return [_SHARE] if _TARGET in self.by else []


def output(usage: UsageTable, form: str) -> Output:
    """Return the sums as table, JSON or CSV."""
    return Output.of(form, _lines(usage), partial(_body, usage), partial(_csv, usage))


def _lines(usage: UsageTable) -> Iterator[str]:
    """Yield a table without columns in which all counts are 0."""
    if not usage.rows:
        yield f"No usage {_period(usage)}"
        return
    counts = [
        name
        for name in (*_COUNTS, *_TOKENS)
        if name == "requests" or any(row[name] for row in usage.rows)
    ]
    names = (*usage.by, *counts, *usage.shares)
    body = [
        [
            *(row[name] or "-" for name in usage.by),
            *(str(row[name]) for name in counts),
            *(cell(row[name], "{:.1%}") for name in usage.shares),
        ]
        for row in usage.rows
    ]
    yield from table([*map(column_head, names)], body, str.rjust, len(usage.by))
    yield from ("", f"Usage {_period(usage)}")
    if usage.is_truncated:
        yield "Only the rows with the most tokens: choose a tenant, or fewer fields."


def _period(usage: UsageTable) -> str:
    period = f"from {format_time(usage.since)} to {format_time(usage.until)} UTC."
    if usage.oldest is None:
        return (
            f"{period}\nThe database has no records at all. Another one begins empty: "
            "tessera usage import adds those of a SQLite file."
        )
    if usage.oldest > usage.since:
        return f"{period}\nThe database has no records from before {format_time(usage.oldest)} UTC."
    return period


def _body(usage: UsageTable) -> dict[str, Any]:
    return {
        "groupBy": list(usage.by),
        "from": usage.since.isoformat(),
        "to": usage.until.isoformat(),
        "rows": usage.rows,
        "truncated": usage.is_truncated,
        "oldest": usage.oldest.isoformat() if usage.oldest is not None else None,
    }


def _csv(usage: UsageTable) -> tuple[list[str], list[dict[str, Any]]]:
    """Return rows with the time in each."""
    period = {"from": usage.since.isoformat(), "to": usage.until.isoformat()}
    columns = [*usage.by, *_COUNTS, *_TOKENS, *usage.shares, *period]
    return columns, [{**row, **period} for row in usage.rows]


def parse_fields(text: str) -> tuple[str, ...]:
    """Return the fields of a list; CommandError for an unknown one."""
    names = fields_of(text)
    if unknown := [name for name in names if name not in USAGE_COLUMNS]:
        raise CommandError(
            f"--by {text}: there is no {unknown[0] or 'empty field'}; choose of "
            f"{', '.join(USAGE_COLUMNS)}"
        )
    return names
