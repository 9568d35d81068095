"""Attacks on neighbors at a provider: ejections, places, connections, memory and time."""

import asyncio
from pathlib import Path

import pytest

from tessera.api.model_provider import ModelProviderSpec
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Identity
from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits
from tessera.domain.limits.scopes import applicable_limits
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.routes.shares import Shares
from tessera.gateway.outside.client import OutsideClient, OutsideError
from tests.builders import NOW, a_budget, a_provider_spec
from tests.domain.limits.accounts import Accounts
from tests.gateway.harness import MODEL
from tests.gateway.outside.asking import Asking, asking
from tests.gateway.outside.routing import a_body, routed
from tests.gateway_builders import a_request
from world.provider import ProviderCall, Script, answer, filtered, refuse, say_nothing
from world.testing import eventually

SHORT = {"connect": "5s", "firstByte": "100ms", "gap": "100ms"}
OTHER = "team-b"
BOTH = {"team-a": 1.0, OTHER: 1.0}


async def is_answered(asked: Asking, tenant: str) -> bool:
    """Return whether a tenant gets an answer now."""
    asked.provider.script = answer()
    try:
        await asked.whole(tenant=tenant)
    except OutsideError:
        return False
    return True


async def hangs_up(call: ProviderCall) -> None:
    call.cut()


@pytest.mark.parametrize(
    "script",
    [
        refuse(429),
        refuse(403),
        refuse(500),
        hangs_up,
        say_nothing,
    ],
)
async def test_requests_of_one_tenant_eject_a_provider_for_no_other(
    tmp_path: Path, script: Script
) -> None:
    """One that takes too long or is forbidden fails whenever it is sent."""
    async with asking(tmp_path, timeouts=SHORT, weights=BOTH) as asked:
        asked.provider.script = script
        for _ in range(3):
            await asked.error()
        assert not await is_answered(asked, "team-a")
        assert await is_answered(asked, OTHER)


async def test_a_provider_that_fails_for_two_tenants_is_ejected_for_the_third(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path, weights={**BOTH, "team-c": 1.0}) as asked:
        asked.provider.script = refuse(429, retry_after="30")
        for tenant in BOTH:
            with pytest.raises(OutsideError):
                await asked.whole(tenant=tenant)
        assert not await is_answered(asked, "team-c")


@pytest.mark.parametrize(
    "script",
    [
        refuse(400),
        refuse(404),
        refuse(413),
        refuse(422),
        refuse(429, "Request too large for your limit of tokens", retry_after="60"),
        filtered,
    ],
)
async def test_refused_requests_eject_a_provider_not_even_for_their_sender(
    tmp_path: Path, script: Script
) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = script
        for _ in range(10):
            await asked.error()
        assert await is_answered(asked, "team-a")


async def test_who_leaves_again_and_again_ejects_nothing_and_holds_no_place(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path, max_concurrent_requests=2, weights=BOTH) as asked:
        asked.provider.script = say_nothing
        for number in range(1, 6):
            task = asyncio.create_task(asked.whole())
            await asked.provider.has_calls(number)
            task.cancel()
            await asyncio.wait((task,))
        assert asked.client.states["acme"].shares.taken == 0
        assert await is_answered(asked, OTHER)


async def test_a_flood_of_one_tenant_leaves_others_their_share(tmp_path: Path) -> None:
    async with asking(tmp_path, max_concurrent_requests=4, weights=BOTH) as asked:
        asked.provider.script = say_nothing
        flood = [asyncio.create_task(asked.whole()) for _ in range(4)]
        await asked.provider.has_calls(4)
        assert not await is_answered(asked, OTHER)
        flood[0].cancel()
        await asyncio.wait(flood[:1])
        # Who floods is at once again, and before the other.
        with pytest.raises(OutsideError):
            await asked.whole()
        assert await is_answered(asked, OTHER)
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)


@pytest.mark.parametrize(
    "limits",
    [{"requests": {"perMinute": 60}}, {"totalTokens": {"perMinute": 600}}],
    ids=["requests", "tokens"],
)
def test_a_flood_of_one_tenant_leaves_others_their_share_of_the_rate_limits(
    limits: dict[str, dict[str, int]],
) -> None:
    fields = a_provider_spec(tenants=["team-a", OTHER], rateLimits=limits)
    spec = ModelProviderSpec.model_validate(fields)
    provider = ObservedProvider(ref=Ref("", "acme"), uid="u", created=NOW, generation=1, spec=spec)
    observed = GatewayObservations(providers=(provider,), budgets=(a_budget(), a_budget(OTHER)))
    known = build_directory(observed, RateLimitsSpec())
    model = known.outside["acme", "Big"]
    flood, other = (
        applicable_limits(known, Identity(tenant=tenant), model) for tenant in ("team-a", OTHER)
    )
    accounts, gateway, request = Accounts(), GatewayLimits(), a_request(8, 2)
    answered = [
        isinstance(accounts.take(gateway, flood, request, 0.0), Admitted) for _ in range(62)
    ]
    assert answered.count(True) == 60, "a tenant alone has all of it"
    refusal = accounts.refuse(gateway, other, request, 0.0)
    for tick in range(1, 101):
        accounts.refuse(gateway, flood, request, tick / 100)
    assert refusal.retry_after_seconds == pytest.approx(1.0)
    for second in range(1, 6):
        accounts.admit(gateway, other, request, float(second))
        accounts.refuse(gateway, flood, request, float(second))


def test_many_names_of_one_sender_take_no_more_than_their_weights() -> None:
    shares, weights = Shares(), {"team-a": 1.0, OTHER: 9.0}
    for _ in range(10):
        assert shares.take("team-a", 10, weights, 0.0)
    assert not shares.take(OTHER, 10, weights, 1.0)
    taken = 0
    for _ in range(9):
        shares.give_back("team-a")
        assert not shares.take("team-a", 10, weights, 2.0)
        taken += shares.take(OTHER, 10, weights, 2.0)
    assert taken == 9


async def test_a_provider_that_hangs_slows_neither_services_nor_other_routes(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path, max_concurrent_requests=20) as world:
        world.provider.script = say_nothing
        stuck = [asyncio.create_task(world.gateway.post(a_body())) for _ in range(20)]
        async with asyncio.timeout(5):
            await world.provider.has_calls(20)
            served = await world.gateway.post({**a_body(), "model": MODEL})
            # No place is left: the next target answers at once.
            routed_on = await world.gateway.post(a_body())
        assert (served.status, routed_on.headers["x-tessera-target"]) == (200, "own")
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)

        async def is_free() -> None:
            assert world.asked.client.states["acme"].shares.taken == 0
            assert world.gateway.held_bytes == 0

        await eventually(is_free)


async def test_a_drip_of_bytes_ends_with_the_time_of_the_whole_answer(tmp_path: Path) -> None:
    async def drips(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream" if call.streams else "application/json")
        while not call.closed.is_set():
            await call.chunk(b": x\n\n" if call.streams else b" ")
            await asyncio.sleep(0.02)

    times = {"connect": "5s", "firstByte": "1s", "gap": "1s", "total": "1s"}
    async with routed(tmp_path, timeouts=times) as world:
        world.provider.script = drips
        async with asyncio.timeout(10):
            got = await asyncio.gather(
                world.gateway.post(a_body()), world.gateway.post(a_body(stream=True))
            )
            records = await world.records(4)
    assert {each.headers.get("x-tessera-target") for each in got[:1]} == {"own"}
    assert [each.reason for each in records].count("ProviderTimeout") == 2


async def test_a_provider_that_fails_is_tried_three_times_and_then_left_alone(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path) as world:
        world.provider.script = refuse(500)
        for _ in range(8):
            assert (await world.gateway.post(a_body())).headers["x-tessera-target"] == "own"
        assert len(world.provider.calls) == 3


async def test_a_client_forgets_providers_that_are_gone_and_gives_their_places_back(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = say_nothing
        task = asyncio.create_task(asked.whole())
        await asked.provider.has_calls(1)
        client: OutsideClient = asked.client
        client.retain(())
        assert await is_answered(asked, OTHER)
        task.cancel()
        await asyncio.wait((task,))
        assert client.states["acme"].shares.taken == 0
