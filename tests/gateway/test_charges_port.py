"""Statements and corrections on the port of a gateway for the platform."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from tessera.gateway.internal_api import MAX_CORRECTION_BYTES, InternalApi
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.cli.test_usage import NAMESPACE, NO_OTHERS
from tests.gateway.store.builders import START_NS, a_record

USERS = {
    name: f"system:serviceaccount:{NAMESPACE}:tessera-{name}"
    for name in ("usage-reader", "charge-corrector")
}
DAY = {"since": "2026-11-18T00:00:00Z", "until": "2026-11-19T02:00:00+02:00"}


@dataclass
class Port:
    url: str
    store: GatewayStore
    session: aiohttp.ClientSession

    async def get(self, user: str = "usage-reader", **query: str) -> tuple[int, Any]:
        return await self._send("GET", "charges", user, params=query)

    async def correct(self, body: Any, user: str = "charge-corrector") -> tuple[int, Any]:
        form = {"data": body} if isinstance(body, bytes) else {"json": body}
        return await self._send("POST", "charges/corrections", user, **form)

    async def _send(self, method: str, path: str, user: str, **options: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {user}"}
        url = f"{self.url}{path}"
        async with self.session.request(method, url, headers=headers, **options) as answer:
            return answer.status, await answer.json(
                content_type=None
            ) if answer.status != 413 else {"error": await answer.text()}


async def review(token: str) -> str | None:
    return USERS.get(token)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    unused: Any = None
    api = InternalApi(GatewayMetrics(), store, review, NAMESPACE, dict, unused, others=NO_OTHERS)
    async with TestServer(api.application()) as server, aiohttp.ClientSession() as session:
        yield Port(str(server.make_url("/")), store, session)
    await store.close()


def a_charged(nanos: int, **fields: Any) -> Any:
    priced = {"currency": "USD", "price_list": "standard@1", "started_at_ns": START_NS}
    return a_record(charge_nanos=nanos, **priced | fields)


async def test_a_statement_has_what_each_was_charged(port: Port) -> None:
    await port.store.record([a_charged(5), a_charged(7), a_charged(100, tenant="team-b")])

    status, body = await port.get(by="tenant,priceList", **DAY)
    _, of_one = await port.get(by="key", tenant="team-b", **DAY)

    assert status == 200
    assert body["rows"][1] == {
        "tenant": "team-a",
        "priceList": "standard@1",
        "currency": "USD",
        "requests": 2,
        "inputTokens": 200,
        "cachedTokens": 80,
        "outputTokens": 40,
        "reasoningTokens": 10,
        "chargeNanos": 12,
        "costNanos": 0,
    }
    assert (body["truncated"], body["closedUntil"]) == (False, None)
    assert [row["chargeNanos"] for row in of_one["rows"]] == [100]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"by": "tenant"}, "since"),
        ({"by": "replica", **DAY}, "replica"),
        ({"by": "tenant", **DAY, "since": "2026-11-18T00:30:00Z"}, "within an hour"),
        ({"by": "tenant", **DAY, "since": "2026-11-18T00:00:00"}, "time zone"),
        ({"by": "tenant", **DAY, "until": "1e99"}, "whole hours"),
    ],
)
async def test_a_query_that_cannot_be_answered_says_why(
    port: Port, query: dict[str, str], message: str
) -> None:
    status, body = await port.get(**query)

    assert status == 400
    assert message in body["error"]


async def test_a_closed_month_is_read_whole(port: Port) -> None:
    await port.store.record([a_charged(5, started_at_ns=0)])
    assert await port.store.close_month()

    status, body = await port.get(
        by="tenant", since="1970-01-02T00:00:00Z", until="1970-02-01T00:00:00Z"
    )
    month = {"since": "1970-01-01T00:00:00Z", "until": "1970-02-01T00:00:00Z"}
    _, whole = await port.get(by="tenant", **month)

    assert status == 400
    assert "give the first of a month" in body["error"]
    assert [row["chargeNanos"] for row in whole["rows"]] == [5]
    assert whole["closedUntil"].endswith("-01T00:00:00+00:00")


async def test_only_the_corrector_corrects_and_each_correction_counts_once(port: Port) -> None:
    record = a_charged(500)
    await port.store.record([record])
    body = {"id": record.record_id, "amountNanos": -200, "reason": "wrong price"}

    assert (await port.get("charge-corrector", by="tenant", **DAY))[0] == 403
    assert (await port.correct(body, "usage-reader"))[0] == 403
    assert (await port.correct(body, "somebody"))[0] == 401
    assert await port.correct(body) == (200, {"isNew": True})
    assert await port.correct(body) == (200, {"isNew": False})

    query = {"by": "flag", "since": DAY["since"], "until": "2100-01-01T00:00:00Z"}
    _, statement = await port.get(**query)
    assert {row["flag"]: row["chargeNanos"] for row in statement["rows"]} == {
        None: 500,
        "Correction": -200,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": "nothing"}, 404),
        ({"amountNanos": 2**60}, 400),
        ({"amountNanos": 1.5}, 400),
        ({"reason": ""}, 400),
        ({"other": 1}, 400),
        ({"reason": "x" * 300}, 400),
        (b"{" + b" " * MAX_CORRECTION_BYTES, 413),
        (b"{", 400),
    ],
)
async def test_a_correction_that_cannot_be_made_says_why(
    port: Port, changes: Any, expected: int
) -> None:
    valid = {"id": "a-1", "amountNanos": 5, "reason": "because"}
    status, answer = await port.correct(changes if isinstance(changes, bytes) else valid | changes)

    assert status == expected
    assert answer["error"]


async def test_months_whose_sums_are_deleted_are_refused(port: Port) -> None:
    month = {"since": "2020-01-01T00:00:00Z", "until": "2020-02-01T00:00:00Z"}
    status, body = await port.get(by="key", **month)

    assert status == 400
    assert re.fullmatch(
        r"query: sums of charges before \d{4}-\d\d-01T00:00:00\+00:00 are deleted", body["error"]
    )
    assert (await port.get(by="key", **{**month, "until": "2040-02-01T00:00:00Z"}))[0] == 200
