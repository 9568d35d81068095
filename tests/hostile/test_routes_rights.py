"""Attacks on rights by routes: confused deputies, names, oracles, wakes, and edits in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import OfferedModel
from tests.gateway.harness import (
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_directory,
    a_gateway,
    an_api_key,
)
from tests.gateway.route.test_routes import (
    AUTH,
    LARGE,
    SMALL,
    a_body,
    a_route,
    a_target,
    answers,
    fails,
)

pytestmark = pytest.mark.anyio
OTHERS = {"tenant": "team-b", "service": Ref("team-b", "small")}
BY_ALL = {**OTHERS, "public": True}
FOREIGN = {**SMALL, "service": "team-b/small"}
ASLEEP = {"replicas": (), "may_sleep": True, "is_asleep": True}


@asynccontextmanager
async def engines(*scripts: Script) -> AsyncIterator[Sequence[ScriptedEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ScriptedEngine(script)) for script in scripts]


@asynccontextmanager
async def serving(*models: OfferedModel, **directory: Any) -> AsyncIterator[RunningGateway]:
    async with a_gateway(a_directory(*models, **directory)) as gateway:
        yield gateway


async def test_a_route_that_is_named_as_an_adapter_of_others_gets_the_base_model() -> None:
    """The adapter has no grant for the tenant of the route."""
    async with engines(answers) as (engine,):
        small = a_target("small", engine.address, **BY_ALL)
        # Its grants, as a_directory gives them, have its names alone.
        rights = a_directory(small).name_rights
        secret = a_target("small", engine.address, adapters=("assistant",), **BY_ALL)
        route = a_route({"service": "team-b/small"})
        async with serving(secret, route, name_rights=rights) as gateway:
            answer = await gateway.post(a_body(), **AUTH)

            assert answer.status == 200
            assert engine.calls[0].json["model"] == "small"


async def test_a_public_route_gives_no_right_to_its_targets() -> None:
    async with (
        engines(answers, answers) as (small, large),
        serving(
            a_target("small", small.address, **OTHERS),
            a_target("large", large.address, tenant="team-b", service=Ref("team-b", "large")),
            a_route(SMALL, LARGE, public=True, tenant="team-b", service=Ref("team-b", "assistant")),
        ) as gateway,
    ):
        answer = await gateway.post(a_body(), **AUTH)

        assert (answer.status, answer.error["code"]) == (404, "no_target")
        assert not small.calls
        assert not large.calls


async def test_a_target_of_others_and_one_that_does_not_exist_are_refused_alike() -> None:
    async with (
        engines(answers) as (engine,),
        serving(
            a_target("small", engine.address, **OTHERS),
            a_route({"name": "x", "service": "team-b/small"}),
            a_route(
                {"name": "x", "service": "team-b/absent"},
                names=("assistent",),
                uid="uid-2",
                service=Ref("team-a", "assistent"),
            ),
        ) as gateway,
    ):
        private = await gateway.post(a_body(), **AUTH)
        absent = await gateway.post({**a_body(), "model": "assistent"}, **AUTH)

        assert private.status == absent.status == 404
        messages = [answer.error["message"] for answer in (private, absent)]
        assert messages[0] == messages[1].replace("assistent", "assistant")
        assert not engine.calls


async def test_a_target_for_tenants_with_charges_is_not_for_others() -> None:
    async with engines(answers) as (engine,):
        small = a_target("small", engine.address, require_charge=True, **BY_ALL)
        async with serving(small, a_route({"service": "team-b/small"})) as gateway:
            answer = await gateway.post(a_body(), **AUTH)

            assert answer.status == 404
            assert not engine.calls


async def test_a_key_of_one_target_does_not_reach_another_by_refusing_downgrades() -> None:
    async with engines(fails, answers) as (small, large):
        key = an_api_key(services=frozenset({Ref("team-a", "small")}))
        async with serving(
            a_target("small", small.address),
            a_target("large", large.address),
            a_route(SMALL, LARGE),
            keys=[key],
        ) as gateway:
            strict = await gateway.post(a_body(), **AUTH, **{"x-tessera-allow-downgrade": "false"})
            fallen = await gateway.post(a_body(), **AUTH)

            assert (strict.status, strict.error["code"]) == (404, "no_target")
            assert (fallen.status, fallen.error["code"]) == (502, "no_target")
            assert not large.calls


@pytest.mark.parametrize("name", ["small", "large"])
async def test_a_key_for_names_of_services_does_not_use_a_route(name: str) -> None:
    async with (
        engines(answers) as (engine,),
        serving(
            a_target("small", engine.address),
            a_target("large", engine.address),
            a_route(SMALL, LARGE),
            keys=[an_api_key(models=(name,))],
        ) as gateway,
    ):
        answer = await gateway.post(a_body(), **AUTH)

        assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_routes_take_no_name_of_a_service_and_none_of_another_tenant() -> None:
    async with (
        engines(answers, answers) as (own, other),
        serving(
            a_target("assistant", own.address, uid="uid-own"),
            a_target("small", other.address, **BY_ALL),
            # Of the tenant itself, and of another one that offers it to all.
            a_route({"service": "team-b/small"}),
            a_route(
                {"service": "team-b/small"},
                **{"service": Ref("team-b", "assistant"), "uid": "uid-b"},
                tenant="team-b",
                public=True,
            ),
        ) as gateway,
    ):
        answer = await gateway.post(a_body(), **AUTH)

        assert answer.status == 200
        assert "x-tessera-target" not in answer.headers
        assert not other.calls


ANYBODY, LIMITED, OTHER = "tsk-team-a", "tsk-limited", "tsk-team-b"
NAMES = (
    *("small", "large", "secret", "assistant", "team-a/assistant", "team-b/assistant"),
    "assistant/small",
)
# Who answers a key by a name; all else is 404.
HOLDERS = {
    ANYBODY: {"small": "small", "large": "large", "assistant": "small"},
    LIMITED: {"small": "small", "assistant": "small"},
    OTHER: {"small": "large", "large": "large", "secret": "secret", "assistant": "secret"},
}


@pytest.mark.parametrize("key", HOLDERS)
async def test_a_name_leads_a_key_to_who_holds_it_for_it_or_nowhere(key: str) -> None:
    """Both tenants have a route of one name, and one has a public route named as a service."""
    own = {"tenant": "team-b"}
    keys = [
        an_api_key(),
        an_api_key(LIMITED, name="limited", services=frozenset({Ref("team-a", "small")})),
        an_api_key(OTHER, name="other", tenant="team-b"),
    ]
    async with engines(answers, answers, answers) as scripted:
        by_name = dict(zip(("small", "large", "secret"), scripted, strict=True))
        models = (
            a_target("small", by_name["small"].address),
            a_target(
                "large",
                by_name["large"].address,
                **{**own, "service": Ref("team-b", "large"), "public": True},
            ),
            a_target("secret", by_name["secret"].address, **own, service=Ref("team-b", "secret")),
            a_route({"service": "small"}),
            a_route(
                {"service": "team-b/secret"},
                **{**own, "service": Ref("team-b", "assistant"), "uid": "uid-b"},
            ),
            a_route(
                {"service": "team-b/large"},
                **{**own, "service": Ref("team-b", "small"), "uid": "uid-public"},
                names=("small",),
                public=True,
            ),
        )
        async with serving(*models, keys=keys) as gateway:
            for name in NAMES:
                body = {**a_body(), "model": name}
                answer = await gateway.post(body, authorization=f"Bearer {key}")
                asked = [each for each, engine in by_name.items() if engine.calls]
                holder = HOLDERS[key].get(name)
                expected = (404, []) if holder is None else (200, [holder])
                assert (answer.status, asked) == expected, (name, answer.body)
                for engine in scripted:
                    engine.calls.clear()


@pytest.mark.parametrize("service", ["small@candidate", "a/b/c", "../small", "team-a/", "small "])
def test_no_target_is_a_candidate_or_a_path(service: str) -> None:
    with pytest.raises(ValidationError):
        ModelRouteSpec.model_validate({"targets": [{"service": service}]})


async def test_a_route_is_no_target_of_a_route_or_of_itself() -> None:
    async with (
        engines(answers) as (engine,),
        serving(
            a_target("small", engine.address),
            a_route({"service": "assistant"}, {"service": "second"}),
            a_route(SMALL, LARGE, names=("second",), uid="uid-2", service=Ref("team-a", "second")),
        ) as gateway,
    ):
        answer = await gateway.post(a_body(), **AUTH)

        assert (answer.status, answer.error["code"]) == (404, "no_target")
        assert not engine.calls


async def test_a_route_named_as_a_service_takes_nothing_of_it_when_it_is_deleted() -> None:
    release = asyncio.Event()

    async def holds(call: EngineCall) -> None:
        await release.wait()
        await answers(call)

    async with engines(holds) as (engine,):
        small = a_target("small", engine.address)
        route = a_route({"service": "small"}, service=Ref("team-a", "small"), names=("other",))
        async with serving(small, route) as gateway:
            request = asyncio.create_task(gateway.post({**a_body(), "model": "small"}, **AUTH))
            await gateway.wait_for_in_flight(1)
            gateway.admission.update(a_directory(small))

            assert gateway.admission.demand[Ref("team-a", "small")].in_flight == 1
            release.set()
            assert (await request).status == 200


async def test_a_route_named_as_a_sleeping_service_lets_it_wake_when_it_is_deleted() -> None:
    async with engines(answers) as (engine,):
        small = a_target("small", None, **ASLEEP)
        large, route = a_target("large", engine.address), a_route(SMALL, LARGE)
        second = a_route(LARGE, service=Ref("team-a", "small"), names=("second",), uid="uid-second")
        async with serving(small, large, route, second) as gateway:
            assert (await gateway.post(a_body(), **AUTH)).status == 200
            gateway.admission.update(a_directory(small, large, route))

            assert Ref("team-a", "small") in gateway.admission.places.queued()


async def test_who_may_not_wake_a_service_does_not_by_a_route() -> None:
    async with engines(answers) as (engine,):
        small = a_target("small", None, **ASLEEP, **BY_ALL)
        async with serving(
            small, a_target("large", engine.address), a_route(FOREIGN, LARGE)
        ) as gateway:
            answer = await gateway.post(a_body(), **AUTH)

            assert answer.headers["x-tessera-target"] == "large"
            assert not gateway.woken.is_set()
            assert not gateway.admission.places.queued()


async def test_a_key_that_is_revoked_between_two_targets_asks_no_second_one() -> None:
    models: list[OfferedModel] = []
    running: list[RunningGateway] = []

    async def revokes(call: EngineCall) -> None:
        running[0].admission.update(a_directory(*models, keys=[an_api_key("another")]))
        await fails(call)

    async with engines(revokes, answers) as (small, large):
        models += [
            a_target("small", small.address),
            a_target("large", large.address),
            a_route(SMALL, LARGE),
        ]
        async with serving(*models) as gateway:
            running.append(gateway)
            answer = await gateway.post(a_body(), **AUTH)

            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert not large.calls
            assert [record.requests for record in gateway.records] == [0, 1]


@pytest.mark.parametrize("left", ["route", "large", "none"])
async def test_what_is_deleted_between_two_targets_answers_nothing(left: str) -> None:
    models: dict[str, OfferedModel] = {}
    running: list[RunningGateway] = []

    async def deletes(call: EngineCall) -> None:
        names = {"small", left} if left != "large" else {"large"}
        running[0].admission.update(
            a_directory(*(each for name, each in models.items() if name in names))
        )
        await fails(call)

    async with engines(deletes, answers) as (small, large):
        models |= {
            "small": a_target("small", small.address),
            "large": a_target("large", large.address),
            "route": a_route(SMALL, LARGE),
        }
        async with serving(*models.values()) as gateway:
            running.append(gateway)
            answer = await gateway.post(a_body(), **AUTH)

            assert answer.error["code"] == "no_target"
            assert not large.calls
            assert not gateway.admission.demand
            assert sum(record.requests for record in gateway.records) == 1


async def test_a_target_that_is_recreated_for_another_tenant_meanwhile_is_not_asked() -> None:
    models: list[OfferedModel] = []
    running: list[RunningGateway] = []

    async def recreates(call: EngineCall) -> None:
        models[1] = a_target("large", large.address, tenant="team-b", uid="uid-recreated")
        running[0].admission.update(a_directory(*models))
        await fails(call)

    async with engines(recreates, answers) as (small, large):
        models += [
            a_target("small", small.address),
            a_target("large", large.address),
            a_route(SMALL, LARGE),
        ]
        async with serving(*models) as gateway:
            running.append(gateway)
            answer = await gateway.post(a_body(), **AUTH)

            assert answer.error["code"] == "no_target"
            assert not large.calls
