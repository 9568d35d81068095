"""Usage records in a real SQLite file and a real PostgreSQL server: one suite for both."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.domain.gateway.usage_record import (
    CHARGE_COLUMNS,
    FIELDS,
    HASHED,
    SUMMED_BY,
    USAGE_COLUMNS,
    Phase,
    RecordDimension,
)
from tessera.domain.usage.report import UsageQuery, UsageReport, UsageRow
from tessera.gateway.store.database import Database, StoreError
from tessera.gateway.store.store import ROW_BYTES, FreedRows, GatewayStore
from tessera.gateway.store.writer import MAX_SPOOLED
from tests.gateway.store.builders import SECOND, START_NS, a_record
from tests.gateway.store.postgresql import PostgresqlServer
from tests.properties import examples

EVERYTHING = UsageQuery(by=(), since_ns=0, until_ns=2**63 - 1)


async def usage(store: GatewayStore, *by: RecordDimension, **changes: Any) -> UsageReport:
    return await store.usage(replace(EVERYTHING, by=by, **changes))


async def total(store: GatewayStore, **changes: Any) -> UsageRow:
    (row,) = (await usage(store, **changes)).rows
    return row


async def test_sums_are_grouped_and_the_largest_come_first(store: GatewayStore) -> None:
    await store.record(
        [
            a_record(tenant="team-a", model="llama", input_tokens=10, output_tokens=1),
            a_record(tenant="team-b", model="llama", key=None, input_tokens=500),
            a_record(tenant="team-a", model="qwen", input_tokens=20, replica="chat-1"),
        ]
    )

    tenants = await usage(store, RecordDimension.TENANT)
    keys_and_models = await usage(store, RecordDimension.KEY, RecordDimension.MODEL)
    replicas = await usage(store, RecordDimension.REPLICA)

    assert [(row.group, row.requests, row.input_tokens) for row in tenants.rows] == [
        (("team-b",), 1, 500),
        (("team-a",), 2, 30),
    ]
    assert [(row.group, row.input_tokens) for row in replicas.rows] == [
        (("chat-0",), 510),
        (("chat-1",), 20),
    ]
    assert [row.group for row in keys_and_models.rows] == [
        (None, "llama"),
        ("laptop", "qwen"),
        ("laptop", "llama"),
    ]


async def test_variants_prices_and_streams_are_told_apart(store: GatewayStore) -> None:
    await store.record(
        [
            a_record(stream=True, variant="slice", price_version="a100@1"),
            a_record(stream=False, variant="whole", price_version=None),
        ]
    )
    by = RecordDimension.VARIANT, RecordDimension.PRICE_VERSION, RecordDimension.STREAM
    groups = {row.group for row in (await usage(store, *by)).rows}
    assert groups == {("slice", "a100@1", "true"), ("whole", None, "false")}


def test_what_tells_sums_apart_can_be_read_in_a_report() -> None:
    readable = {*USAGE_COLUMNS.values(), *CHARGE_COLUMNS.values()}
    # A report counts estimated requests, and has a row for each currency.
    assert {*SUMMED_BY} <= readable | {"estimated", "currency", "cost_currency"}


def test_each_field_of_a_record_that_reports_tell_apart_has_one_name() -> None:
    names = [each.dimension.by for each in FIELDS if each.dimension is not None]
    assert sorted(filter(None, [*names, RecordDimension.FLAG])) == sorted(RecordDimension)
    hashed = [each.dimension.hashed for each in FIELDS if each.dimension is not None]
    assert sorted(each for each in hashed if each is not None) == [*range(len(HASHED))]


async def test_a_row_counts_how_requests_ended(store: GatewayStore) -> None:
    await store.record([a_record(phase=phase) for phase in Phase])
    await store.record([a_record(estimated=True)])

    assert await total(store) == UsageRow(
        group=(),
        requests=5,
        failed=1,
        aborted=1,
        estimated=1,
        input_tokens=500,
        cached_tokens=200,
        output_tokens=100,
        reasoning_tokens=25,
    )


async def test_a_sum_counts_all_its_requests_and_tokens(store: GatewayStore) -> None:
    await store.record(
        [
            a_record(requests=5000, output_tokens=3 * 10**12),
            a_record(requests=30, phase=Phase.ABORTED, estimated=True),
            a_record(requests=7, phase=Phase.FAILED),
            a_record(),
        ]
    )

    row = await total(store)

    assert (row.requests, row.aborted, row.failed, row.estimated) == (5038, 30, 7, 30)
    assert row.output_tokens == 3 * 10**12 + 60


async def test_a_record_that_is_stored_again_counts_once(store: GatewayStore) -> None:
    records = [a_record(), a_record()]

    await store.record(records)
    await store.record([records[0], replace(records[1], output_tokens=10**6), records[1]])

    assert (await total(store)).requests == 2
    assert (await total(store)).output_tokens == 40


async def test_a_client_that_repeats_its_request_id_is_counted_each_time(
    store: GatewayStore,
) -> None:
    await store.record([a_record(request_id="mine"), a_record(request_id="mine")])

    assert (await total(store)).requests == 2


async def test_only_the_interval_and_the_tenant_of_the_query_count(store: GatewayStore) -> None:
    await store.record(
        [
            a_record(started_at_ns=START_NS - 1),
            a_record(started_at_ns=START_NS),
            a_record(started_at_ns=START_NS, tenant="team-b"),
            a_record(started_at_ns=START_NS + SECOND),
        ]
    )

    interval = {"since_ns": START_NS, "until_ns": START_NS + SECOND}
    assert (await total(store, **interval)).requests == 2
    assert (await total(store, **interval, tenant="team-a")).requests == 1
    assert (await usage(store, since_ns=0, until_ns=1)).rows == ()


async def test_a_report_says_when_it_leaves_groups_out(store: GatewayStore) -> None:
    await store.record([a_record(user=f"user-{number}") for number in range(3)])

    three = await usage(store, RecordDimension.USER, limit=3)
    two = await usage(store, RecordDimension.USER, limit=2)

    assert (len(three.rows), three.is_truncated) == (3, False)
    assert (len(two.rows), two.is_truncated) == (2, True)


async def test_old_records_are_deleted_a_chunk_at_a_time_the_oldest_first(
    store: GatewayStore,
) -> None:
    await store.record([a_record(started_at_ns=START_NS + age * SECOND) for age in range(5)])

    assert await store.prune(START_NS + 4 * SECOND, limit=3) == 3
    assert (await total(store, until_ns=START_NS + 3 * SECOND + 1)).requests == 1
    assert await store.prune(START_NS + 4 * SECOND, limit=3) == 1
    assert await store.prune(START_NS + 4 * SECOND, limit=3) == 0
    assert (await total(store)).requests == 1


async def test_a_tenant_makes_room_by_sums_of_its_oldest_records(store: GatewayStore) -> None:
    day = 86_400 * SECOND
    start = START_NS // day * day
    await store.record(
        [
            *(a_record(started_at_ns=start + n, model="llama") for n in range(5)),
            *(a_record(started_at_ns=start + day + n, model="qwen") for n in range(5)),
            a_record(tenant="team-b", started_at_ns=start),
        ]
    )
    before = await usage(store, RecordDimension.TENANT, RecordDimension.MODEL)

    assert await store.make_room("team-a", limit=7) == FreedRows(5)

    # Each has a sum of charges for each hour and model beside them.
    assert await store.rows_by_tenant() == {"team-a": 5 + 2, "team-b": 1 + 1}
    assert await usage(store, RecordDimension.TENANT, RecordDimension.MODEL) == before
    assert (await total(store, until_ns=start + day, tenant="team-a")).requests == 5
    # The sums are the oldest rows, and stay as long as others can be added up.
    assert await store.make_room("team-a", limit=7) == FreedRows(2)
    assert await usage(store, RecordDimension.TENANT, RecordDimension.MODEL) == before
    assert await store.make_room("team-a", limit=2) == FreedRows(2, are_lost=True)
    assert (await total(store, tenant="team-a")).requests == 3
    assert await store.make_room("team-c") == FreedRows(0, are_lost=True)


async def test_calls_that_did_not_answer_count_tokens_and_no_request(store: GatewayStore) -> None:
    assistant = {"model_route": "team-a/assistant", "model": "assistant"}
    call = {"requests": 0, "phase": Phase.FAILED, "reason": "EngineFailed", **assistant}
    await store.record(
        [
            a_record(**call, target="small", input_tokens=7),
            a_record(**assistant, target="large", input_tokens=500),
            a_record(),
        ]
    )
    by = RecordDimension.ROUTE, RecordDimension.TARGET
    before = await usage(store, *by)

    assert [(row.group, row.requests, row.failed, row.input_tokens) for row in before.rows] == [
        (("team-a/assistant", "large"), 1, 0, 500),
        (("", ""), 1, 0, 100),
        (("team-a/assistant", "small"), 0, 0, 7),
    ]
    assert (await total(store)).requests == 2
    assert (await usage(store, until_ns=1)).rows == ()

    # They make room as others do, until they are sums.
    await store.record([a_record(**call, target="small", input_tokens=1) for _ in range(9)])
    assert await store.make_room("team-a") == FreedRows(9)
    assert await store.make_room("team-a") == FreedRows(3, are_lost=True)


async def test_gateways_that_make_room_at_the_same_time_count_nothing_twice(
    store_url: str,
) -> None:
    stores = [await GatewayStore.open(store_url) for _ in range(3)]
    await stores[0].record([a_record(started_at_ns=START_NS + n) for n in range(900)])

    freed = await asyncio.gather(*(store.make_room("team-a", 300) for store in stores))

    assert all(not each.are_lost for each in freed)
    assert (await total(stores[0])).requests == 900
    assert await stores[0].count() == 900 - sum(each.rows for each in freed) < 900
    for store in stores:
        await store.close()


async def test_writers_at_the_same_time_lose_nothing(store_url: str) -> None:
    stores = [await GatewayStore.open(store_url) for _ in range(3)]
    common = [a_record() for _ in range(20)]

    async def write(store: GatewayStore) -> None:
        for _ in range(5):
            await store.record([*common, *(a_record() for _ in range(20))])

    await asyncio.gather(*map(write, stores))

    assert (await total(stores[0])).requests == 20 + 3 * 5 * 20
    for store in stores:
        await store.close()


texts = st.text(st.characters(exclude_categories=()), max_size=600)
integers = st.integers(-(2**80), 2**80)


@given(text=texts, integer=integers)
@settings(
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
async def test_no_text_of_a_client_and_no_number_of_an_engine_is_refused(
    store: GatewayStore, text: str, integer: int
) -> None:
    record = a_record(
        **dict.fromkeys(("request_id", "model", "user", "tags", "reason"), text),
        **dict.fromkeys(("status", "input_tokens", "output_tokens", "ttft_ns"), integer),
    )
    await store.record([record])

    assert (await total(store)).output_tokens >= 0


async def test_a_row_of_the_longest_texts_fits_its_bytes(tmp_path: Path) -> None:
    # What clients choose, and names of objects and accounts.
    lengths = {"request_id": 128, "tags": 256, "model": 128, "user": 150, "service": 127}
    lengths |= dict.fromkeys(("key", "team", "tenant", "variant", "replica", "owner"), 63)
    lengths |= {"record_id": 32, "price_version": 80, "price_list": 80}
    lengths |= {"model_route": 127, "target": 63}
    charges = tuple((f"team-a/each-key-{n}/Key/nightly", 1_795_000_000, 10**9) for n in range(4))
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    for batch in range(8):
        texts = [
            {
                name: f"{batch * 500 + n:032x}"[:length].ljust(length, "x")
                for name, length in lengths.items()
            }
            for n in range(500)
        ]
        await store.keep([a_record(**each, charges=charges) for each in texts])
    await store.close()

    assert 1000 < (tmp_path / "store.db").stat().st_size / 4000 < ROW_BYTES
    assert MAX_SPOOLED * ROW_BYTES < 2**30, "the chart's volume of the spool"


async def test_the_store_says_when_it_cannot_be_reached_and_hides_the_password() -> None:
    with pytest.raises(StoreError) as caught:
        await GatewayStore.open("postgresql://gateway:s3cret@127.0.0.1:1/usage")

    assert "postgresql://gateway:***@127.0.0.1:1/usage" in str(caught.value)
    assert "Connect call failed" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "mysql://host/usage", "sqlite://", "postgresql", "\0", "postgresql://host:port/usage"],
)
def test_a_url_of_something_else_is_refused_in_one_sentence(url: str) -> None:
    with pytest.raises(StoreError, match="store URL: "):
        Database(url)


async def test_a_wrong_password_is_a_store_error(postgresql: PostgresqlServer) -> None:
    with pytest.raises(StoreError, match="password authentication failed"):
        await GatewayStore.open(postgresql.url("postgres").replace(postgresql.password, "wrong"))


async def test_the_url_has_the_options_of_libpq(postgresql: PostgresqlServer) -> None:
    url = await postgresql.create_database()
    for option in ("sslmode=disable", "application_name=gateway"):
        store = await GatewayStore.open(f"{url}?{option}")
        await store.close()
    for option, problem in (("sslmode=verify-full", "SSL|certificate"), ("colour=1", "colour")):
        with pytest.raises(StoreError, match=problem):
            await GatewayStore.open(f"{url}?{option}")


def test_a_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing is no folder"):
        Database(f"sqlite:///{tmp_path}/missing/store.db")
