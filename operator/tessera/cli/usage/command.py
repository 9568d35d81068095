"""`tessera usage`: requests and tokens by tenant, key, model and other fields."""

import asyncio
import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import aiohttp

from tessera.adapters.clock import now
from tessera.cli.cluster import Reader, open_reader
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.cli.text import column_head, format_time, parse_since, table
from tessera.domain.names import USAGE_READER
from tessera.domain.usage.report import UsageDimension
from tessera.settings import CommandSettings

_COUNTS = ("requests", "failed", "aborted", "estimated")
_TOKENS = ("inputTokens", "cachedTokens", "outputTokens", "reasoningTokens")
_TOKEN_SECONDS = 600
_TIMEOUT = aiohttp.ClientTimeout(total=90)
_PORT_FORWARD_HINT = (
    "kubectl -n {namespace} port-forward deploy/tessera-gateway 8080, "
    "then --gateway http://127.0.0.1:8080"
)


def run(arguments: SimpleNamespace) -> Output:
    """Return the sums in the requested format."""
    settings = CommandSettings()
    by = parse_fields(arguments.by)
    hint = _PORT_FORWARD_HINT.format(namespace=settings.namespace)
    url = arguments.gateway or settings.gateway_url
    if not url:
        raise CommandError(
            "no address of the gateway's metrics port: pass --gateway URL or set "
            f"TESSERA_GATEWAY_URL; from outside the cluster: {hint}"
        )
    until = now()
    since = parse_since(arguments.since, until)
    query = {"by": ",".join(by), "since": since.isoformat(), "until": until.isoformat()}
    if arguments.tenant:
        query["tenant"] = arguments.tenant
    try:
        answer = asyncio.run(_read(arguments, settings.namespace, url, query))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise CommandError(f"{url}: {error or type(error).__name__}; try {hint}") from error
    return Output(FORMATTERS[arguments.output](UsageTable(by, since, until, answer)))


class UsageTable:
    """The answer of a gateway, with the question."""

    def __init__(
        self, by: Sequence[str], since: datetime, until: datetime, answer: Mapping[str, Any]
    ) -> None:
        self.by, self.since, self.until = by, since, until
        self.rows: Sequence[Mapping[str, Any]] = answer["rows"]
        self.is_truncated: bool = answer["truncated"]


def as_table(usage: UsageTable) -> str:
    """Return a table for people, without columns in which all counts are 0."""
    counts = [
        name
        for name in (*_COUNTS, *_TOKENS)
        if name == "requests" or any(row[name] for row in usage.rows)
    ]
    groups = [[row[name] or "-" for name in usage.by] for row in usage.rows]
    widths = [
        max(map(len, column))
        for column in zip([column_head(name) for name in usage.by], *groups, strict=True)
    ]
    head = [column_head(name).ljust(width) for name, width in zip(usage.by, widths, strict=True)]
    body = [
        [
            *(cell.ljust(width) for cell, width in zip(group, widths, strict=True)),
            *(str(row[name]) for name in counts),
        ]
        for group, row in zip(groups, usage.rows, strict=True)
    ]
    lines = [*table([*head, *map(column_head, counts)], body, str.rjust), ""]
    lines.append(f"Usage from {format_time(usage.since)} to {format_time(usage.until)} UTC.")
    if usage.is_truncated:
        lines.append("Only the rows with the most tokens: choose a tenant, or fewer fields.")
    return "\n".join(lines) + "\n"


def as_json(usage: UsageTable) -> str:
    """Return JSON for programs."""
    body = {
        "groupBy": list(usage.by),
        "from": usage.since.isoformat(),
        "to": usage.until.isoformat(),
        "rows": usage.rows,
        "truncated": usage.is_truncated,
    }
    return json.dumps(body, indent=2) + "\n"


def as_csv(usage: UsageTable) -> str:
    """Return CSV for spreadsheets, with the time in every line."""
    text = io.StringIO()
    columns = [*usage.by, *_COUNTS, *_TOKENS, "from", "to"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    period = {"from": usage.since.isoformat(), "to": usage.until.isoformat()}
    writer.writerows({**row, **period} for row in usage.rows)
    return text.getvalue()


# Functions that write the sums, by output format.
FORMATTERS = {"table": as_table, "json": as_json, "csv": as_csv}


def parse_fields(text: str) -> tuple[str, ...]:
    """Return the fields of a list; CommandError for an unknown one."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in tuple(UsageDimension)]:
        raise CommandError(
            f"--by {text}: there is no {unknown[0] or 'empty field'}; choose of "
            f"{', '.join(UsageDimension)}"
        )
    return names


async def read_usage(
    reader: Reader, namespace: str, url: str, query: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return the answer of the gateway at a URL; raises CommandError, ClientError, OSError."""
    token = await _token(reader, namespace)
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT) as session,
        session.get(
            f"{url.rstrip('/')}/usage",
            params=query,
            headers={"Authorization": f"Bearer {token}"},
        ) as response,
    ):
        body: Mapping[str, Any] = await response.json()
        if response.status != HTTPStatus.OK:
            raise CommandError(f"{url}: {response.status}: {body['error']}")
        return body


async def _token(reader: Reader, namespace: str) -> str:
    """Return a token of the reader, which is of no use for anything but usage."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{USAGE_READER}/token"
    spec = {"audiences": [USAGE_READER], "expirationSeconds": _TOKEN_SECONDS}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    status, answer = await reader.send("POST", path, body=body)
    if status == HTTPStatus.NOT_FOUND:
        raise CommandError(
            f"ServiceAccount/{USAGE_READER} is not in namespace {namespace}: set TESSERA_NAMESPACE "
            "to the gateway's namespace, and install the chart with gateway.enabled"
        )
    if status != HTTPStatus.CREATED:
        raise CommandError(
            f"no token of ServiceAccount/{USAGE_READER} in namespace {namespace}: API server "
            f"returned {status}: {answer.get('message', '')}"
        )
    token: str = answer["status"]["token"]
    return token


async def _read(
    arguments: SimpleNamespace, namespace: str, url: str, query: Mapping[str, str]
) -> Mapping[str, Any]:
    async with open_reader(arguments) as reader:
        return await read_usage(reader, namespace, url, query)
