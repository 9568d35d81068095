"""`tessera explain request`: where one request went, and why."""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace

from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.gateway_port import read_gateway
from tessera.cli.numbers import format_seconds
from tessera.cli.output import Output
from tessera.cli.text import cell, format_time, indent_lines, table
from tessera.domain.explain.request import (
    AttemptExplanation,
    ComparedReplica,
    JoinedExplanations,
    RequestExplanation,
)
from tessera.domain.gateway.usage_record import Phase

_HEADERS = ("REPLICA", "CACHED TOKENS", "CACHED", "TTFT-PREDICTED", "SCORE", "")
# An attempt shows so many, the chosen one and the next best first; JSON has all.
_MAX_REPLICAS = 16


def run(arguments: SimpleNamespace) -> Output:
    """Print what the gateways know of the requests with an id; CommandError if they know none."""
    answer = read_gateway(arguments, "/explanations", {"request": arguments.request_id})
    return report(arguments.request_id, JoinedExplanations(**answer), arguments.output)


def report(request_id: str, explanations: JoinedExplanations, output_format: str) -> Output:
    """Return the requests as text or JSON; CommandError where there is none."""
    if not explanations.requests:
        raise CommandError(_unknown(request_id, explanations))
    body = partial(explanations.model_dump, mode="json", by_alias=True)
    return Output.of(output_format, _report_lines(explanations), body)


def _report_lines(explanations: JoinedExplanations) -> Iterator[str]:
    for name in explanations.silent_gateways:
        yield f"Note: gateway pod {name} gave no answer"
    for number, request in enumerate(explanations.requests):
        yield from (*([""] if number else []), *_lines(request))


def _unknown(request_id: str, explanations: JoinedExplanations) -> str:
    others = "They keep none now"
    if explanations.kept_since is not None:
        others = (
            f"They keep {counted(explanations.kept_requests, 'request')} that ended, the first of "
            f"{format_time(explanations.kept_since)} UTC"
        )
    silent = ", ".join(explanations.silent_gateways)
    unasked = f" Without an answer: {silent}." if silent else ""
    return (
        f"no gateway pod sent request {request_id} to an engine, or keeps it still.{unasked} "
        f"{others}: ask `tessera top requests` for what still runs, and for what is older or was "
        "refused the access log (requestId) or spans (tessera.request_id)"
    )


def _lines(request: RequestExplanation) -> Iterator[str]:
    yield f"{request.request_id} at {format_time(request.started_at)} UTC"
    key = f", key {request.key}" if request.key else ""
    at = f"provider {request.provider}" if request.provider else f"service {request.service}"
    yield f"  tenant {request.tenant}{key}, model {request.model}, {at}, {request.path}"
    if request.model_route:
        skipped = ", ".join(request.skipped_targets.split(",")).replace("=", ": ")
        yield (
            f"  route {request.model_route}, target {request.target}: {request.target_reason}"
            f"{f' ({skipped})' if skipped else ''}"
        )
    for number, attempt in enumerate(request.attempts, 1):
        again = f" {number} of {len(request.attempts)}" if len(request.attempts) > 1 else ""
        yield from ["", f"SENT{again}: {attempt.reason}", f"  {attempt.message}"]
        if attempt.failure:
            yield f"  It gave no answer: {attempt.failure}."
        yield from indent_lines(_replica_lines(attempt), "    ")
    # A request that completed has the reason of its choice there.
    reason = "" if request.phase is Phase.COMPLETED else f", {request.reason}"
    yield from ["", f"ENDED: {request.phase}{reason}"]
    yield from indent_lines(table((), _ending(request)), "    ")


def _replica_lines(attempt: AttemptExplanation) -> Iterator[str]:
    rows = [_cells(attempt, replica) for replica in attempt.replicas[:_MAX_REPLICAS]]
    yield from table(_HEADERS, rows)
    if rest := len(attempt.replicas) - len(rows):
        yield f"and {counted(rest, 'other')}: see -o json"


def _cells(attempt: AttemptExplanation, replica: ComparedReplica) -> list[str]:
    ttft = replica.predicted_ttft_seconds
    return [
        replica.replica,
        cell(replica.cached_tokens),
        cell(replica.cached_share, "{:.0%}"),
        "-" if ttft is None else format_seconds(ttft),
        cell(replica.score, "{:.3g}"),
        "chosen" if replica.replica == attempt.replica else replica.excluded or "",
    ]


def _ending(request: RequestExplanation) -> Sequence[tuple[str, str]]:
    ttft = request.ttft_seconds
    by_whom = "counted by the gateway" if request.estimated else "as the engine reported"
    return [
        ("status", str(request.status)),
        ("in the queue", format_seconds(request.queue_seconds)),
        ("first token", "none" if ttft is None else f"after {format_seconds(ttft)}"),
        ("end", f"after {format_seconds(request.total_seconds)}"),
        ("input tokens", f"{request.input_tokens}, {by_whom}"),
        (
            "cached of them",
            f"{request.cached_tokens}, predicted {request.predicted_cached_tokens}",
        ),
        ("computed again", f"{request.uncached_prefix_tokens}, which a replica had"),
        ("output tokens", str(request.output_tokens)),
    ]
