"""Refused requests have a record too, of what is known of them, and no tokens."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.refusals import RequestError
from tessera.gateway.requests.admission import Admission
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import MAX_UNWRITTEN_BYTES, Recording
from tessera.gateway.usage.summing import MAX_TENANT_ROWS, MAX_TENANT_SUMS
from tests.gateway.harness import (
    CHAT,
    TENANT,
    LocalAccounts,
    a_directory,
    a_gateway,
    a_model,
    an_api_key,
    no_tokens,
)
from tests.gateway.store.builders import a_record


@pytest.mark.parametrize(
    ("body", "path", "headers", "expected"),
    [
        (CHAT, "/v1/chat/completions", {"authorization": "Bearer x"}, (401, "")),
        (CHAT, "/v1/unknown", {}, (404, "")),
        (CHAT | {"model": "gpt-9"}, "/v1/chat/completions", {}, (404, TENANT)),
        (b"{", "/v1/chat/completions", {}, (400, TENANT)),
        (
            {"model": "chat", "prompt": "hi", "prompt_embeds": [{}], "stream": True},
            "/v1/completions",
            {},
            (400, TENANT),
        ),
    ],
)
async def test_a_refused_request_is_recorded_with_its_sender_where_that_is_known(
    body: object, path: str, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    async with a_gateway(a_directory(a_model())) as gateway:
        answer = await gateway.post(body, path, **headers)
        record = await gateway.record()

    assert answer.status == record.status
    assert (record.status, record.tenant) == expected
    assert record.phase is Phase.REFUSED
    assert record.reason in set(RequestReason)
    assert record.request_id == answer.headers["x-request-id"]
    assert (record.input_tokens, record.output_tokens, record.estimated) == (0, 0, False)


@pytest.mark.parametrize("expires", [None, datetime(2020, 1, 1, tzinfo=UTC)])
async def test_a_key_that_is_no_longer_valid_is_named(expires: datetime | None) -> None:
    key = an_api_key(name="nightly", team="search", expires=expires)
    directory = a_directory(a_model(), keys=(key,))
    identifier = Authenticator(no_tokens)
    async with a_gateway(directory, identifier=identifier) as gateway:
        if expires is None:
            gateway.admission.update(Directory(models=(a_model(),)))
        answer = await gateway.post(CHAT)
        record = await gateway.record()

    assert answer.status == 401
    reason = RequestReason.INVALID_KEY if expires is None else RequestReason.EXPIRED_KEY
    assert (record.reason, record.tenant, record.team, record.key) == (
        reason,
        TENANT,
        "search",
        "nightly",
    )
    assert b"nightly" not in answer.body


async def test_the_last_revoked_keys_are_remembered_and_a_restored_one_is_valid() -> None:
    keys = {key.digest: key for key in (an_api_key(f"tsk-{n}", name=f"k{n}") for n in range(3))}
    admission = Admission(Authenticator(no_tokens), LocalAccounts().borrow, lambda: None)
    headers = {b"x-api-key": b"tsk-1"}
    admission.update(Directory(keys=keys))
    admission.update(Directory())
    with pytest.raises(RequestError) as refusal:
        await admission.senders.identify(headers, "10.0.0.1")
    assert refusal.value.sender == Identity(tenant=TENANT, key="k1")
    admission.update(Directory(keys=keys))
    assert (await admission.senders.identify(headers, "10.0.0.1")).key == "k1"


async def test_what_cannot_be_recorded_is_not_granted(tmp_path: Path) -> None:
    recording = await Recording.open(None, tmp_path, GatewayMetrics(), retention=timedelta(days=1))
    # Of one tenant they would become sums.
    for number in range(3 * MAX_UNWRITTEN_BYTES // 1000):
        recording.add(a_record(tenant=f"team-{number % 15}"))
    async with a_gateway(a_directory(a_model())) as gateway:
        gateway.app.check_room = recording.check_room
        answer = await gateway.post(CHAT)
    await recording.close()
    recording.check_room(TENANT)

    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    (record,) = gateway.records
    assert (record.reason, record.tenant) == (RequestReason.USAGE_NOT_RECORDED, TENANT)


async def test_who_has_many_records_that_wait_waits_before_others(tmp_path: Path) -> None:
    recording = await Recording.open(None, tmp_path, GatewayMetrics(), retention=timedelta(days=1))
    for number in range(MAX_UNWRITTEN_BYTES // 1000):
        recording.add(a_record(tenant=f"flood-{number % 10}"))
    recording.check_room(TENANT)
    with pytest.raises(RequestError) as refusal:
        recording.check_room("flood-0")
    assert refusal.value.reason is RequestReason.USAGE_NOT_RECORDED
    await recording.close()
    recording.check_room("flood-0")


async def test_nobody_is_refused_for_many_keys_while_the_store_takes_records(
    tmp_path: Path,
) -> None:
    recording = await Recording.open(None, tmp_path, GatewayMetrics(), retention=timedelta(days=1))
    requests = MAX_TENANT_ROWS + 5 * MAX_TENANT_SUMS
    for number in range(requests):
        recording.check_room(TENANT)
        recording.add(a_record(tenant=TENANT, key=f"key-{number}"))
        if number % 100 == 0:
            recording.store_sums()
            await recording.writer.flush()
    await recording.close()

    restarted = await Recording.open(None, tmp_path, GatewayMetrics(), retention=timedelta(days=1))
    assert await restarted.store.count() == requests
    await restarted.close()


async def test_sums_of_many_keys_wait_for_a_slow_store_within_their_bytes(tmp_path: Path) -> None:
    recording = await Recording.open(None, tmp_path, GatewayMetrics(), retention=timedelta(days=1))
    for number in range(MAX_TENANT_ROWS):
        recording.add(a_record(tenant=TENANT, key=f"key-{number}"))
    await recording.writer.flush()
    requests = MAX_TENANT_ROWS
    with suppress(RequestError):
        while requests < 100_000:
            recording.check_room(TENANT)
            recording.add(a_record(tenant=TENANT, key=f"key-{requests}"))
            requests += 1
    with pytest.raises(RequestError) as refusal:
        recording.check_room(TENANT)
    recording.check_room("team-b")
    # Requests that ran then are recorded.
    for number in range(100):
        recording.add(a_record(tenant=TENANT, key=f"late-{number}"))
    await recording.close()
    recording.check_room(TENANT)

    assert refusal.value.reason is RequestReason.USAGE_NOT_RECORDED
    sums = requests - MAX_TENANT_ROWS
    assert MAX_UNWRITTEN_BYTES / 2000 <= sums <= MAX_UNWRITTEN_BYTES / 1000 + MAX_TENANT_SUMS + 1
    restarted = await Recording.open(None, tmp_path, GatewayMetrics(), retention=timedelta(days=1))
    assert await restarted.store.count() == requests + 100
    await restarted.close()
