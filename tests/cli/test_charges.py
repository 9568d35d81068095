"""`tessera cost` with charges, and `tessera charges correct`, against the port of a gateway."""

import asyncio
import csv
import io
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.cli.charges.command import parse_correction
from tessera.cli.cluster import Reader
from tessera.cli.cost.charges import (
    ChargeTable,
    charge_query,
    charges_output,
    margins,
    read_charges,
    route_savings,
)
from tessera.cli.cost.command import parse_grouping
from tessera.cli.cost.report import output, rows
from tessera.cli.errors import CommandError
from tessera.cli.gateway_port import get, post
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.money import NANO
from tessera.domain.usage.statement import ChargeCorrection
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.resources.manifest import wire_format
from tests.cli.test_cost import AMOUNTS, a_report
from tests.cli.test_usage import NAMESPACE, NO_OTHERS
from tests.gateway.harness import a_directory, a_model
from tests.gateway.store.builders import a_record

OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)
AT_NS = int((OCTOBER + timedelta(days=9)).timestamp()) * 10**9
ACCOUNTS = ("tessera-usage-reader", "tessera-charge-corrector")


@dataclass
class AccountApi:
    """An API server that makes tokens of both accounts."""

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        del method, query, body, content_type
        return 201, {"status": {"token": path.split("/")[-2]}}


@dataclass
class Port:
    url: str
    store: GatewayStore

    async def charges(self, *by: str, **fields: Any) -> ChargeTable:
        def read(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
            return asyncio.run(get(Reader(AccountApi()), NAMESPACE, f"{self.url}{path}", query))

        month: dict[str, Any] = {"begin": OCTOBER, "end": NOVEMBER, "is_month": True} | fields
        return await asyncio.to_thread(read_charges, read, by, **month)

    async def correct(self, correction: ChargeCorrection) -> bool:
        url = f"{self.url}/charges/corrections"
        body = wire_format(correction)
        answer = await post(Reader(AccountApi()), NAMESPACE, url, body, ACCOUNTS[1])
        is_new: bool = answer["isNew"]
        return is_new


async def review(token: str) -> str | None:
    return f"system:serviceaccount:{NAMESPACE}:{token}" if token in ACCOUNTS else None


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    """Serve some requests of October: acme's own, and those of others to its service."""
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    chat = {"service": "team-a/chat", "owner": "acme", "currency": "USD", "started_at_ns": AT_NS}
    await store.record(
        [
            a_record(**chat, tenant="acme", charge_nanos=1 * NANO, tags="case=1"),
            a_record(**chat, tenant="other", charge_nanos=3 * NANO + 1, key="ci"),
            a_record(**{**chat, "currency": None}, tenant="other", charge_nanos=None),
        ]
    )
    unused: Any = None
    spec = ModelRouteSpec.model_validate({"targets": [{"service": "small"}, {"service": "large"}]})
    route = replace(a_model(), service=Ref("team-a", "assistant"), route=spec)
    metrics = GatewayMetrics()
    metrics.requests.routes.last.directory = lambda: a_directory(route)
    api = InternalApi(metrics, store, review, NAMESPACE, dict, unused, others=NO_OTHERS)
    async with TestServer(api.application()) as server:
        yield Port(str(server.make_url("")).rstrip("/"), store)
    await store.close()


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


async def test_a_closed_month_reads_the_same_again(port: Port) -> None:
    before = await port.charges("tenant", "key")
    assert before.digest is None
    text = charges_output(before, "table").text
    assert "The month closes at 2026-11-02 00:00:00 UTC: until then its rows may change." in text
    assert await port.store.close_month()
    first = await port.charges("tenant", "key")
    # What comes late is a row of the open month.
    late = a_record(charge_nanos=NANO, currency="USD", started_at_ns=AT_NS)
    await port.store.record([late])
    second = await port.charges("tenant", "key")
    rows = read_csv(charges_output(first, "csv").text)
    assert read_csv(charges_output(second, "csv").text) == rows
    assert [(row["tenant"], row["key"], row["charge"], row["currency"]) for row in rows] == [
        ("other", "ci", "3.000000001", "USD"),
        ("acme", "laptop", "1.000000000", "USD"),
        ("other", "laptop", "", ""),
    ]
    assert {row["digest"] for row in rows} == {first.digest}
    assert first.digest is not None
    assert f"SHA-256 of its rows: {first.digest}." in charges_output(first, "table").text
    changed = replace(first, rows=[{**first.rows[0], "chargeNanos": 0}, *first.rows[1:]])
    assert changed.digest != first.digest
    assert replace(first, rows=first.rows[::-1]).digest == first.digest
    # A part of the rows has none.
    assert replace(first, is_truncated=True).digest is None


async def test_a_month_without_providers_has_the_digest_that_it_had_before(port: Port) -> None:
    assert await port.store.close_month()
    by_owner, former = (
        await port.charges(*(charge_query("tenant") or ())),
        await port.charges("owner"),
    )
    assert former.digest == by_owner.digest is not None
    assert {*former.rows[0]} == {
        *("owner", "currency", "requests", "inputTokens", "cachedTokens", "outputTokens"),
        *("reasoningTokens", "chargeNanos"),
    }


async def test_charges_alone_say_so_and_what_had_no_price(port: Port) -> None:
    text = charges_output(await port.charges("tenant", "tag"), "table").text
    assert text.splitlines()[0].split() == [
        *("TENANT", "TAG", "REQUESTS", "INPUT", "TOKENS", "CACHED", "TOKENS", "OUTPUT", "TOKENS"),
        *("REASONING", "TOKENS", "CHARGE", "CURRENCY"),
    ]
    assert "no price" in text
    assert "1 request had no price and cost nothing." in text
    assert "Charges alone: nodes are shared by services and know no tenant and no tag" in text


async def test_targets_have_their_share_of_each_group_and_what_their_route_saved(
    port: Port,
) -> None:
    priced = {"currency": "USD", "started_at_ns": AT_NS, "model_route": "team-a/assistant"}
    small = {**priced, "target": "small", "charge_nanos": NANO // 100}
    large = {**priced, "target": "large", "charge_nanos": NANO}
    await port.store.record(
        [
            *(a_record(**small, tenant="acme") for _ in range(3)),
            *(a_record(**large, tenant="acme"), a_record(**large, tenant="other")),
            # What a target that failed used is paid, and its request is that of another target.
            a_record(**small, tenant="other", requests=0),
        ]
    )
    charges = await port.charges(*parse_grouping("tenant,target")[1])
    rows = {
        (row["tenant"], row["target"]): (row["requests"], row["share"], row["perMillionTokens"])
        for row in read_csv(charges_output(charges, "csv").text)
        if row["route"] == "team-a/assistant"
    }
    assert rows == {
        ("acme", "small"): ("3", "0.750000", "83.3333"),
        ("acme", "large"): ("1", "0.250000", "8333.3333"),
        ("other", "large"): ("1", "1.000000", "8333.3333"),
        ("other", "small"): ("0", "0.000000", "83.3333"),
    }
    # Six calls of 120 tokens each at the price of two of them.
    body = json.loads(charges_output(charges, "json").text)
    assert body["savings"] == [
        {
            **{"route": "team-a/assistant", "currency": "USD", "charge": "2.040000000"},
            **{"lastTarget": "large", "saved": "0.660000"},
        }
    ]
    text = charges_output(charges, "table").text
    cut = replace(charges, is_truncated=True)
    assert json.loads(charges_output(cut, "json").text)["savings"] == []
    assert {row["share"] for row in read_csv(charges_output(cut, "csv").text)} == {""}
    assert "Route team-a/assistant was charged 2.0400 USD: 66.0% less than all its tokens" in text
    other = next(line for line in text.splitlines() if line.startswith("acme    -"))
    assert other.split()[-4:] == ["-", "8333.3333", "1.0000", "USD"]


async def test_without_its_last_target_what_a_route_saved_is_not_known(port: Port) -> None:
    fields = {"currency": "USD", "started_at_ns": AT_NS, "charge_nanos": NANO, "target": "small"}
    routes = ("team-a/assistant", "team-a/deleted")
    await port.store.record([a_record(**fields, model_route=route) for route in routes])
    charges = await port.charges("route", "target")
    assert [each.saved for each in route_savings(charges)] == [None, None]
    text = charges_output(charges, "table").text
    assert "is not known, since its last target large was charged nothing." in text
    assert "is not known, since it does not exist any more." in text
    assert json.loads(charges_output(charges, "json").text)["savings"][0]["saved"] is None


async def test_cost_and_charge_stand_beside_each_other_and_are_never_added(port: Port) -> None:
    by_tenant = await port.charges(*(charge_query("tenant") or ()))
    paid = await port.charges("tenant")
    costs = [("acme", "USD", 3 * NANO), ("acme", "EUR", 7 * NANO), ("other", "USD", NANO)]
    rows = {(row.name, row.currency): row for row in margins(costs, by_tenant, paid)}
    acme = rows["acme", "USD"]
    # Its service earned what acme's own requests were charged as well.
    assert (acme.cost, acme.charge, acme.margin, acme.paid) == (
        *(3 * NANO, 4 * NANO + 1),
        *(NANO + 1, NANO),
    )
    # Currencies are never mixed, and what is not known is not 0.
    euro, other = rows["acme", "EUR"], rows["other", "USD"]
    assert (euro.charge, euro.margin) == (None, None)
    assert (other.charge, other.margin, other.paid) == (None, None, 3 * NANO + 1)


async def test_the_report_has_charges_in_each_form(port: Port) -> None:
    charges = await port.charges(*(charge_query("tenant,service") or ()))
    report = replace(a_report("tenant,service", amounts=AMOUNTS), charges=charges)
    text = output(report, "table").text
    [_, line] = [line for line in text.splitlines() if "team-a/chat" in line and "USD" in line]
    assert line.split() == ["acme", "team-a/chat", "3.0000", "4.0000", "1.0000", "USD"]
    assert "Charges from 2026-10-01 00:00:00 to 2026-11-01 00:00:00 UTC." in text

    body = json.loads(output(report, "json").text)
    [row] = [row for row in body["charges"]["rows"] if row["margin"] is not None]
    assert (row["name"], row["cost"], row["charge"], row["margin"]) == (
        *("acme team-a/chat", "3.000000000", "4.000000001", "1.000000001"),
    )
    lines = read_csv(output(report, "csv").text)
    [line_of_chat] = [each for each in lines if each["charge"]]
    assert line_of_chat["total"] == "3.000000000"
    assert line_of_chat["margin"] == "1.000000001"
    assert line_of_chat["chargedFrom"] == OCTOBER.isoformat()


async def test_without_a_month_whole_hours_around_the_time_are_asked_for(port: Port) -> None:
    begin, end = OCTOBER + timedelta(minutes=30), OCTOBER + timedelta(hours=5, seconds=1)
    charges = await port.charges("tenant", begin=begin, end=end, is_month=False)
    assert (charges.since, charges.until) == (OCTOBER, OCTOBER + timedelta(hours=6))
    assert charges.rows == []
    assert charges.digest is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("service", ("service", ())),
        ("service,tenant", ("tenant,service", ())),
        ("pool", ("pool", ())),
        ("tenant,key", ("", ("tenant", "key"))),
        ("tag,tag", ("", ("tag",))),
        ("team,target", ("", ("team", "route", "target"))),
    ],
)
def test_the_fields_decide_whether_cost_or_charges_alone_are_shown(
    text: str, expected: tuple[str, tuple[str, ...]]
) -> None:
    assert parse_grouping(text) == expected


@pytest.mark.parametrize("text", ["", "prompt", "pool,key", "key,"])
def test_fields_without_charges_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match=f"--by {text}: there are no charges by "):
        parse_grouping(text)


async def test_a_correction_counts_once_and_says_so(port: Port) -> None:
    record = a_record(charge_nanos=NANO, currency="USD", started_at_ns=AT_NS)
    await port.store.record([record])
    correction = parse_correction(record.record_id, "-0.25", "wrong price")
    assert correction.amount_nanos == -NANO // 4
    assert [await port.correct(correction) for _ in range(2)] == [True, False]
    with pytest.raises(CommandError, match="404: no record nothing with a charge"):
        await port.correct(parse_correction("nothing", "1", "x"))


@pytest.mark.parametrize(
    ("record", "amount", "reason", "message"),
    [
        ("id", "much", "x", "--amount much: give an amount"),
        ("id", "0", "x", "--amount 0: give an amount"),
        ("id", "NaN", "x", "--amount NaN: give an amount"),
        ("id", "1e400", "x", "--amount: "),
        ("id", "0.0000000001", "x", "at most 9 digits"),
        ("id", "1", "", "--reason: "),
        ("", "1", "x", "give the recordId"),
    ],
)
def test_a_correction_without_an_amount_or_a_reason_is_refused(
    record: str, amount: str, reason: str, message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        parse_correction(record, amount, reason)


async def test_what_providers_bill_stands_beside_the_charge(port: Port) -> None:
    call = {"started_at_ns": AT_NS, "provider": "acme/big", "service": "", "currency": "USD"}
    await port.store.record(
        [
            a_record(**call, charge_nanos=5, cost_nanos=2, cost_currency="USD", tenant="acme"),
            a_record(**call, charge_nanos=5, cost_nanos=9, cost_currency="EUR", tenant="acme"),
        ]
    )
    rows = {
        (row["provider"], row["currency"]): (row["charge"], row["providerCost"], row["margin"])
        for row in read_csv(charges_output(await port.charges("provider"), "csv").text)
    }
    assert rows == {
        ("acme/big", "USD"): ("0.000000010", "0.000000002", "0.000000008"),
        ("acme/big", "EUR"): ("0.000000000", "0.000000009", "-0.000000009"),
        ("", "USD"): ("4.000000001", "", ""),
        ("", ""): ("", "", ""),
    }
    by_tenant = charges_output(await port.charges("tenant"), "table").text.splitlines()
    assert "CHARGE  PROVIDER COST  CURRENCY" in by_tenant[0]
    assert by_tenant[2].split()[-3:] == ["1.0000", "0.0000", "USD"]

    charges = await port.charges(*(charge_query("tenant") or ()))
    report = replace(a_report("tenant"), charges=charges, paid=await port.charges("tenant"))
    lines = {(row["tenant"], row["currency"]): row for row in read_csv(output(report, "csv").text)}
    provider, acme = lines["(provider acme/big)", "USD"], lines["acme", "USD"]
    assert (provider["total"], provider["charge"]) == ("0.000000002", "0.000000010")
    assert (acme["total"], acme["providerCost"]) == ("3.000000000", "0.000000002")
    assert lines["(provider acme/big)", "EUR"]["total"] == "0.000000009"


@pytest.mark.parametrize("group_by", ["service", "tenant", "tenant,service"])
async def test_nodes_and_providers_agree_with_the_total_to_one_nano_unit(
    port: Port, group_by: str
) -> None:
    numbers = random.Random(68)  # noqa: S311 - no secret

    def a_random_call() -> UsageRecord:
        charged = numbers.choice([None, "USD", "EUR"])
        return a_record(
            tenant=numbers.choice(["acme", "other"]),
            started_at_ns=AT_NS + numbers.randrange(20 * 86_400) * 10**9,
            provider=numbers.choice(["acme/big", "other/small", ""]),
            tags=numbers.choice(["", "case=1"]),
            currency=charged,
            charge_nanos=None if charged is None else numbers.randrange(2**40),
            cost_nanos=numbers.choice([0, 1, numbers.randrange(2**53)]),
            cost_currency=numbers.choice(["USD", "EUR", "JPY"]),
        )

    calls = [a_random_call() for _ in range(300)]
    calls = [replace(call, cost_nanos=call.cost_nanos * bool(call.provider)) for call in calls]
    expected = Counter[str]()
    for (_, line), nanos in AMOUNTS.items():
        expected[line.currency] += nanos
    for call in calls:
        expected[call.cost_currency or ""] += call.cost_nanos
    await port.store.record(calls)

    for is_closed in (False, True):
        charges = await port.charges(*(charge_query(group_by) or ()))
        report = replace(a_report(group_by, amounts=AMOUNTS), charges=charges)
        cost_rows, totals = rows(report)
        assert {row.currency: row.total for row in totals} == expected
        for row in cost_rows:
            expected[row.currency] -= row.total
        assert set(expected.values()) == {0}
        expected.update({row.currency: row.total for row in totals})
        in_csv = read_csv(output(report, "csv").text)
        assert sum(Decimal(line["total"] or 0) for line in in_csv) * NANO == expected.total()
        assert await port.store.close_month() is not is_closed
