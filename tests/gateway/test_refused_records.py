"""Refused requests have a record too, of what is known of them, and no tokens."""

import pytest

from tessera.domain.gateway.access import AccessReason
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import Phase
from tessera.gateway.usage_outbox import UsageOutbox
from tests.gateway.harness import CHAT, TENANT, a_directory, a_gateway, a_model
from tests.gateway.store.builders import a_record


@pytest.mark.parametrize(
    ("body", "path", "headers", "expected"),
    [
        (CHAT, "/v1/chat/completions", {"authorization": "Bearer x"}, (401, "")),
        (CHAT, "/v1/unknown", {}, (404, "")),
        (CHAT | {"model": "gpt-9"}, "/v1/chat/completions", {}, (404, TENANT)),
        (b"{", "/v1/chat/completions", {}, (400, TENANT)),
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
    assert record.reason in {*RequestReason, *AccessReason}
    assert record.request_id == answer.headers["x-request-id"]
    assert (record.input_tokens, record.output_tokens, record.estimated) == (0, 0, False)


async def test_what_cannot_be_recorded_is_not_granted() -> None:
    outbox = UsageOutbox(lambda _: None)
    while outbox.has_room:
        outbox.add(a_record())
    async with a_gateway(a_directory(a_model())) as gateway:
        gateway.app.can_record = lambda: outbox.has_room
        answer = await gateway.post(CHAT)

    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert gateway.records[0].reason == RequestReason.USAGE_NOT_RECORDED
