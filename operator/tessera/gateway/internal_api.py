"""The port of a gateway pod for the platform: metrics, usage, and requests that run."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError

from tessera.adapters.review_turns import ReviewsBusyError, ReviewTurns
from tessera.domain.explain.request import RequestExplanations, join_explanations
from tessera.domain.gateway.requests import RunningRequest
from tessera.domain.gateway.usage_record import CHARGE_COLUMNS, USAGE_COLUMNS, RecordDimension
from tessera.domain.names import CHARGE_CORRECTOR, USAGE_READER
from tessera.domain.usage.report import UsageQuery, UsageReport, UsageRow
from tessera.domain.usage.statement import (
    HOUR_SECONDS,
    ChargeCorrection,
    ChargeQuery,
    ChargeRow,
    month_of,
    retained_since,
)
from tessera.gateway.fleet.other_gateways import OtherGateways
from tessera.gateway.identify.reviewed_users import REVIEW_SECONDS, reviewed_user
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.metrics import GatewayMetrics, ServiceRequests
from tessera.ports import ClusterError

# Sums over months take seconds and one connection of the store.
_MAX_QUERIES = 2
# Reviews of tokens at a time, of which an address has one, those of an address that wait, and how
# long they wait at most.
REVIEW_PLACES, MAX_WAITING_READERS = 4, 4
MAX_LISTED = 500
MAX_CORRECTION_BYTES = 4096
# Readers of metrics that ask more often get the page of a moment ago.
PAGE_SECONDS = 0.5
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)


class KnownRequests(Protocol):
    """Requests that run, and those that ended last."""

    def running(self, limit: int) -> tuple[Sequence[RunningRequest], int]:
        """Return the oldest requests that run, at most so many, and how many do."""
        ...

    def explain(self, request_id: str) -> RequestExplanations:
        """Return where the last requests with this id went, and why."""
        ...


class InternalApi:
    """`/metrics` for everybody who reaches the port; the others for holders of a reader's token."""

    def __init__(  # noqa: PLR0913 - what it answers from
        self,
        metrics: GatewayMetrics,
        store: GatewayStore,
        review: Callable[[str], Awaitable[str | None]],
        namespace: str,
        load: Callable[[], Mapping[str, ServiceRequests]],
        requests: KnownRequests,
        *,
        others: OtherGateways,
    ) -> None:
        """Take `review`, which returns whose token for USAGE_READER it is, or raises ClusterError.

        The reader is the ServiceAccount of that name in the gateway's namespace, and who corrects
        charges is CHARGE_CORRECTOR. `load` returns how many requests each service has; `others`
        know of requests that came to them.
        """
        self._metrics, self._store, self._review, self._load = metrics, store, review, load
        self._known, self._others = requests, others
        self._account = f"system:serviceaccount:{namespace}:"
        self._queries = asyncio.Semaphore(_MAX_QUERIES)
        self._rendering, self._page, self._rendered_at = asyncio.Lock(), b"", float("-inf")
        self._turns = ReviewTurns(REVIEW_PLACES, MAX_WAITING_READERS, most_at_once=1)

    def application(self) -> web.Application:
        """Return the application to serve."""
        logging.getLogger("aiohttp.server").addFilter(_is_no_unread_head)
        app = web.Application(client_max_size=MAX_CORRECTION_BYTES)
        app.router.add_get("/metrics", self._metrics_page)
        app.router.add_get("/usage", partial(self._answer, self._usage))
        app.router.add_get("/charges", partial(self._answer, self._charges))
        app.router.add_post("/charges/corrections", self._correct)
        app.router.add_get("/requests", partial(self._answer, self._requests))
        app.router.add_get("/explanations", partial(self._answer, self._explanations))
        return app

    async def _metrics_page(self, _: web.Request) -> web.Response:
        async with self._rendering:
            if time.monotonic() - self._rendered_at >= PAGE_SECONDS:
                self._metrics.set_load(self._load())
                # Streams go on meanwhile.
                self._page = await asyncio.to_thread(self._metrics.page)
                self._rendered_at = time.monotonic()
        return web.Response(body=self._page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _answer(
        self,
        read: Callable[[web.Request], Awaitable[Any]],
        request: web.Request,
        account: str = USAGE_READER,
    ) -> web.Response:
        try:
            await self._authorize(request, account)
            if self._queries.locked():
                raise _refusal(web.HTTPTooManyRequests, "other queries run: try again later")
            async with self._queries:
                body = await read(request)
        except web.HTTPError as error:
            self._metrics.readers_refused.labels(error.status).inc()
            raise
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _usage(self, request: web.Request) -> dict[str, Any]:
        query = _query(request.query)
        try:
            return _fields(query, await self._store.usage(query))
        except StoreError as error:
            raise _refusal(web.HTTPServiceUnavailable, str(error)) from error

    async def _charges(self, request: web.Request) -> dict[str, Any]:
        query = _charge_query(request.query)
        try:
            report = await self._store.charges(query)
        except StoreError as error:
            raise _refusal(web.HTTPServiceUnavailable, str(error)) from error
        for name, moment in (("since", query.since), ("until", query.until)):
            if 0 < moment < report.closed_until and month_of(moment) != moment:
                raise _refusal(
                    web.HTTPBadRequest,
                    f"query: {name} {_moment(moment * 10**9)} is within a closed month, whose "
                    "hours are added up; give the first of a month of UTC",
                )
        retained = retained_since(time.time())
        if not report.rows and 0 < query.until <= retained:
            message = f"query: sums of charges before {_moment(retained * 10**9)} are deleted"
            raise _refusal(web.HTTPBadRequest, message)
        answer = {
            "rows": _named(query.by, report.rows),
            "truncated": report.is_truncated,
            "closedUntil": _moment(report.closed_until * 10**9) if report.closed_until else None,
        }
        if RecordDimension.TARGET in query.by:
            answer["lastTargets"] = self._metrics.requests.routes.last.names()
        return answer

    async def _correct(self, request: web.Request) -> web.Response:
        return await self._answer(self._correction, request, CHARGE_CORRECTOR)

    async def _correction(self, request: web.Request) -> dict[str, Any]:
        try:
            correction = ChargeCorrection.model_validate_json(await request.read())
            return {"isNew": await self._store.correct(correction, time.time_ns())}
        except ValidationError as error:
            first = error.errors()[0]
            fault = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise _refusal(web.HTTPBadRequest, f"correction: {fault}") from error
        except LookupError as error:
            raise _refusal(
                web.HTTPNotFound,
                f"no record {error.args[0]} with a charge: its tenant had so many requests that "
                "they were added up, or it is older than gateway.database.retentionDays",
            ) from error
        except StoreError as error:
            raise _refusal(web.HTTPServiceUnavailable, str(error)) from error

    async def _requests(self, _: web.Request) -> dict[str, Any]:
        requests, total = self._known.running(MAX_LISTED)
        return {"requests": [each.model_dump(by_alias=True) for each in requests], "total": total}

    async def _explanations(self, request: web.Request) -> dict[str, Any]:
        request_id = request.query.get("request", "")
        known = self._known.explain(request_id)
        if request.query.get("pods") != "own":
            others = await self._others.explain(request_id, request.headers["Authorization"])
            answers = (known, *(answer for answer in others.values() if answer is not None))
            silent = [name for name, answer in others.items() if answer is None]
            known = join_explanations(answers, silent)
        # Gateways of the version before know no routes.
        return known.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    async def _authorize(self, request: web.Request, account: str) -> None:
        try:
            fields = request.headers.getall("Authorization", ())
            user = await reviewed_user(fields, request.remote or "", self._review, self._turns)
        except ValueError as error:
            raise _refusal(web.HTTPUnauthorized, str(error)) from error
        except ReviewsBusyError as error:
            busy = "other tokens of this address are reviewed: try again later"
            raise _refusal(web.HTTPTooManyRequests, busy) from error
        except (ClusterError, TimeoutError) as error:
            problem = str(error) or f"no review within {REVIEW_SECONDS:g} s"
            raise _refusal(web.HTTPServiceUnavailable, problem) from error
        if user is None:
            raise _refusal(web.HTTPUnauthorized, f"no token for {USAGE_READER}")
        if user != f"{self._account}{account}":
            raise _refusal(web.HTTPForbidden, f"{user} is not {self._account}{account}")


def _is_no_unread_head(record: logging.LogRecord) -> bool:
    """Return whether a record is of anything but a head that cannot be read: its sender got 400."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _refusal(error: type[web.HTTPError], message: str) -> web.HTTPError:
    """Return what the client hears."""
    text = msgspec.json.encode({"error": message}).decode()
    return error(text=text, content_type="application/json")


def _query(parameters: Mapping[str, str]) -> UsageQuery:
    try:
        by = _dimensions(parameters["by"], USAGE_COLUMNS)
        return UsageQuery(
            by=by,
            since_ns=_nanoseconds(parameters["since"]),
            until_ns=_nanoseconds(parameters["until"]),
            tenant=parameters.get("tenant"),
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise _refusal(
            web.HTTPBadRequest,
            f"query: {error}; by is a list of {', '.join(USAGE_COLUMNS)}, since and until are "
            "moments such as 2026-11-01T00:00:00Z",
        ) from error


def _charge_query(parameters: Mapping[str, str]) -> ChargeQuery:
    try:
        by = _dimensions(parameters["by"], CHARGE_COLUMNS)
        return ChargeQuery(
            by=by,
            since=_whole_hour(parameters["since"]),
            until=_whole_hour(parameters["until"]),
            tenant=parameters.get("tenant"),
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise _refusal(
            web.HTTPBadRequest,
            f"query: {error}; by is a list of {', '.join(CHARGE_COLUMNS)}, since and until are "
            "whole hours such as 2026-11-01T00:00:00Z",
        ) from error


def _dimensions(text: str, columns: Mapping[RecordDimension, str]) -> tuple[RecordDimension, ...]:
    """Return those of a list, each once; ValueError for one that a report does not have."""
    names = dict.fromkeys(text.split(","))
    if unknown := [name for name in names if name not in columns]:
        raise ValueError(f"by has {unknown[0]!r}")
    return tuple(map(RecordDimension, names))


def _whole_hour(text: str) -> int:
    seconds, rest = divmod(_nanoseconds(text), 10**9)
    if rest or seconds % HOUR_SECONDS:
        raise ValueError(f"{text} is within an hour of UTC")
    return seconds


def _nanoseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _moment(nanoseconds: int) -> str:
    return (_EPOCH + nanoseconds // 1000 * _MICROSECOND).isoformat()


def _fields(query: UsageQuery, report: UsageReport) -> dict[str, Any]:
    return {
        "rows": _named(query.by, report.rows),
        "truncated": report.is_truncated,
        "oldest": _moment(report.oldest_ns) if report.oldest_ns is not None else None,
    }


def _named(by: Sequence[str], rows: Iterable[UsageRow | ChargeRow]) -> list[dict[str, Any]]:
    return [
        {
            **dict(zip(by, row.group, strict=True)),
            **row.model_dump(by_alias=True, exclude={"group"}),
        }
        for row in rows
    ]
