"""The list of models: made once for many who ask, counted as any request, and held until read."""

import json
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestShape
from tessera.gateway.bodies.memory import Memory
from tessera.gateway.requests.admission import Admission
from tessera.gateway.resolve.models import MAX_LISTING_BYTES, MAX_LISTINGS
from tests.gateway.harness import (
    KEY,
    TENANT,
    KeyIdentifier,
    LocalAccounts,
    RunningGateway,
    a_chosen_request,
    a_directory,
    a_gateway,
    a_model,
    an_api_key,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
TEAM = Identity(tenant=TENANT)
OTHER_KEY = "tsk-team-b"
TWO_A_DAY = RateLimitsSpec(requests=PeriodLimits(per_day=2))


def models_of(tenant: str, count: int, length: int = 8) -> Sequence[OfferedModel]:
    return [
        a_model(
            service=Ref(tenant, f"chat-{number}"),
            uid=f"{tenant}-{number}",
            names=(f"{tenant}-{number:0{length}}",),
            tenant=tenant,
        )
        for number in range(count)
    ]


def an_admission(*models: OfferedModel) -> Admission:
    admission = Admission(KeyIdentifier(), LocalAccounts().borrow, lambda: None)
    admission.update(Directory(models=models))
    return admission


def names(listing: bytes) -> list[str]:
    return [model["id"] for model in json.loads(listing)["data"]]


def test_a_list_is_made_once_for_all_who_may_use_the_same_models() -> None:
    own, foreign = models_of(TENANT, 2), models_of("team-b", 1)
    admission = an_admission(*own, *foreign)
    listing = admission.models.listing(TEAM)
    assert admission.models.listing(Identity(tenant=TENANT, key="other")) is listing
    # An edit of others makes none again.
    admission.update(Directory(models=(*own, replace(foreign[0], names=("new",)))))
    assert admission.models.listing(TEAM) is listing
    admission.update(Directory(models=(own[0], *foreign)))
    assert names(admission.models.listing(TEAM)) == [own[0].names[0]]


def test_each_scope_of_a_key_has_a_list_of_its_own() -> None:
    first, second = models_of(TENANT, 2)
    admission = an_admission(first, second)
    by_name = Identity(tenant=TENANT, models=first.names)
    by_service = Identity(tenant=TENANT, services=frozenset({second.service}))
    for _ in range(2):
        assert names(admission.models.listing(by_name)) == [*first.names]
        assert names(admission.models.listing(by_service)) == [*second.names]
        assert len(names(admission.models.listing(TEAM))) == 2
        assert names(admission.models.listing(Identity(tenant="team-b"))) == []


@pytest.mark.parametrize("length", [8, 2048])
def test_the_lists_of_a_tenant_have_a_bound_and_displace_none_of_others(length: int) -> None:
    own, foreign = models_of(TENANT, 200, length), models_of("team-b", 1)
    admission = an_admission(*own, *foreign)
    other = admission.models.listing(Identity(tenant="team-b"))
    every = list[bytes]()
    for number in range(2 * MAX_LISTINGS):
        # Each may use all but one.
        scope = frozenset(model.service for model in own[number + 1 :])
        every.append(admission.models.listing(Identity(tenant=TENANT, services=scope)))
    listings = admission.models.listings_of(TENANT)
    assert 1 < len(listings) <= MAX_LISTINGS
    assert listings == every[-len(listings) :]
    assert sum(map(len, listings)) <= MAX_LISTING_BYTES
    assert admission.models.listing(Identity(tenant="team-b")) is other


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/chat", "/v1/models/unknown"])
async def test_they_count_as_requests_of_their_key(method: str, path: str) -> None:
    keys = (an_api_key(limits=TWO_A_DAY), an_api_key(OTHER_KEY, name="other"))
    status = 404 if path.endswith("unknown") else 200
    async with a_gateway(a_directory(a_model(), keys=keys)) as gateway:
        for expected in (status, status, 429):
            async with gateway.client.request(method, gateway.url + path) as response:
                body, headers = await response.read(), response.headers
                assert response.status == expected
        other = {"authorization": f"Bearer {OTHER_KEY}"}
        async with gateway.client.request(method, gateway.url + path, headers=other) as response:
            assert response.status == status
        (refused,) = (each for each in gateway.records if each.status == 429)
    assert int(headers["retry-after"]) > 0
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert (refused.tenant, refused.reason) == (TENANT, RequestReason.TOO_MANY_REQUESTS)
    if method == "GET":
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"


async def test_limits_of_tokens_and_of_requests_that_run_do_not_hide_the_list() -> None:
    rates = {"output_tokens": PeriodLimits(per_day=1), "total_tokens": PeriodLimits(per_day=9)}
    limits = RateLimitsSpec(concurrent_requests=1, max_context_tokens=16, **rates)
    async with a_gateway(a_directory(a_model(), keys=(an_api_key(limits=limits),))) as gateway:
        shape = RequestShape(model="chat", input_tokens=8, max_output_tokens=1)
        sender = Identity(tenant=TENANT, key="ci", limits=limits)
        running = a_chosen_request(sender, a_model(), shape)
        await gateway.admission.reservations.reserve(running)
        async with gateway.client.get(f"{gateway.url}/v1/models") as response:
            assert response.status == 200


def a_silent_client(gateway: RunningGateway, key: str) -> socket.socket:
    """Return a connection of a client that asks for the list, and does not read it."""
    client = socket.create_connection(("127.0.0.1", gateway.port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    client.sendall(head.encode())
    return client


async def test_a_list_that_a_client_does_not_read_is_held_within_the_memory_of_its_tenant() -> None:
    memory = Memory(64 * 2**20)
    own = models_of(TENANT, 4000, 2048)
    keys = (an_api_key(), an_api_key(OTHER_KEY, name="other", tenant="team-b"))
    directory = a_directory(*own, *models_of("team-b", 1), keys=keys)
    async with a_gateway(directory, memory=memory) as gateway:
        size = len(gateway.admission.models.listing(TEAM))
        most = memory.tenant_limit // size
        clients = [a_silent_client(gateway, KEY) for _ in range(most)]
        await gateway.wait_for_held_bytes(most * size, most * size)
        clients += [a_silent_client(gateway, KEY) for _ in range(3)]

        async def are_answered() -> None:
            assert len(gateway.server.server_state.connections) == most

        await eventually(are_answered)
        assert most * size >= gateway.held_bytes
        other: Any = {"authorization": f"Bearer {OTHER_KEY}"}
        async with gateway.client.get(f"{gateway.url}/v1/models", headers=other) as response:
            assert len((await response.json())["data"]) == 1
        for client in clients:
            client.close()
        await gateway.wait_for_held_bytes(0, 0)
