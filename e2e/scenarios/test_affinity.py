"""Conversations of many tenants stay where their prompts are cached, while replicas come and go."""

import asyncio
import itertools
import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any

import httpx
import pytest

from demo.conversations import (
    CachedShares,
    Conversation,
    ConversationClients,
    ConversationTenant,
    ConversationTurn,
    cached_shares,
    random_conversations,
    random_text,
    replicas_by_conversation,
)
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, answered, create_key
from scenarios.lifecycle import list_replicas
from scenarios.streams import kubectl_scale, wait_for_replicas
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.names import PORT
from tessera.resources.api_resources import PODS
from tests.cases import full
from world import World
from world.testing import container_status, eventually, is_ready

_TENANTS, _REPLICAS, _CLIENTS = 8, 4, 16
_ANSWER_TOKENS = 30
_LEAST_OF_BEST, _MOST_WITHOUT = 0.9, 0.8
# Conversations are under way when a change begins.
_BEFORE_SECONDS = 3
_PROBES = 40
# Parts of prompt tokens: the gateway predicts whole blocks of 1 KiB of text.
_MOST_UNPREDICTED, _MOST_OVERPREDICTED = 0.12, 0.02


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


async def serve(gateway: Gateway, **spec: Any) -> None:
    """Apply a service that every tenant may use; its engines part their prompts by salts."""
    own = gateway.namespace
    grants = [{"names": ["chat"], "public": True}]
    budget = TENANT_BUDGETS.path(None, own.name)
    await own.cluster.api.patch(budget, {"spec": {"publishing": grants}})
    await gateway.namespace.apply_service(access={"public": True}, **spec)


@pytest.fixture
async def tenants(gateway: Gateway) -> AsyncIterator[list[ConversationTenant]]:
    """Serve a model on four replicas to tenants, each with a system prompt of its own."""
    await serve(gateway, replicas=_REPLICAS)
    own, rng = gateway.namespace, random.Random(1)  # noqa: S311 - not a secret
    keys = {own.name: gateway.key}
    async with AsyncExitStack() as stack:
        for number in range(1, _TENANTS):
            guest = ScenarioNamespace(own.cluster, f"{own.name}-guest-{number}")
            await stack.enter_async_context(a_budget(guest, "100"))
            keys[guest.name] = await create_key(guest, "first")
        await wait_for_replicas(own, _REPLICAS)
        for key in keys.values():
            await answered(replace(gateway, key=key))
        yield [
            ConversationTenant(name=name, key=key, system_prompt=random_text(rng, 600))
            for name, key in keys.items()
        ]


async def counted_by_engines(gateway: Gateway) -> float:
    """Return the prompt tokens that all engines say they found in their caches."""
    pods = await gateway.namespace.list_objects(PODS)
    total = 0.0
    async with httpx.AsyncClient(timeout=60) as http:
        for pod in pods:
            page = (await http.get(f"http://{pod['status']['podIP']}:{PORT}/metrics")).text
            match = re.search(r"^vllm:prefix_cache_hits_total\S* (\S+)", page, re.M)
            assert match is not None
            total += float(match[1])
    return total


async def counted_by_gateway(gateway: Gateway) -> Counter[str]:
    """Return the tokens of all tenants that the gateway recorded, by their kind."""
    async with httpx.AsyncClient(timeout=60) as http:
        page = (await http.get(f"http://{gateway.pod_address}:8080/metrics")).text
    counts = Counter[str]()
    service = f"{gateway.namespace.name}/chat"
    for kind, tokens in re.findall(
        rf'^tessera_gateway_tokens_total{{kind="(\w+)",service="{service}",.*}} (\S+)', page, re.M
    ):
        counts[kind] += round(float(tokens))
    return counts


def failures(turns: Iterable[ConversationTurn]) -> list[str]:
    return [turn.failure for turn in turns if turn.failure]


def say_shares(gateway: Gateway, name: str, turns: Sequence[ConversationTurn]) -> CachedShares:
    """Say what was cached of the prompts of some turns; return it."""
    shares = cached_shares(turns)
    replicas = replicas_by_conversation(turns)
    stayed = sum(len(names) == 1 for names in replicas)
    ttfts = [turn.ttft for turn in turns if turn.ttft is not None]
    ttft = f", median TTFT {1000 * statistics.median(ttfts):.0f} ms" if ttfts else ""
    gateway.namespace.cluster.say(
        f"{name}: {shares.turns} turns, cached {shares.cached:.3f} of best {shares.best:.3f} "
        f"({shares.of_best:.3f}), {stayed} of {len(replicas)} conversations at one replica{ttft}"
    )
    return shares


def assert_predicted(gateway: Gateway, recorded: Counter[str]) -> None:
    """Check that the gateway promised about what engines reported."""
    missing = (recorded["cached"] - recorded["predicted_cached"]) / recorded["input"]
    gateway.namespace.cluster.say(f"reported less predicted share: {missing:.3f}")
    assert -_MOST_OVERPREDICTED <= missing <= _MOST_UNPREDICTED


@pytest.mark.parametrize(("count", "turns"), [(24, (2, 4)), *full((200, (3, 7)))])
async def test_conversations_find_nearly_all_that_engines_could_have_of_them(
    gateway: Gateway, tenants: list[ConversationTenant], count: int, turns: tuple[int, int]
) -> None:
    by_engines, by_gateway = await counted_by_engines(gateway), await counted_by_gateway(gateway)
    load = ConversationClients(base=gateway.base, answer_tokens=_ANSWER_TOKENS)
    await load.hold(islice(random_conversations(tenants, turns, seed=1), count), _CLIENTS)
    shares = say_shares(gateway, f"{count} conversations", load.turns)
    assert failures(load.turns) == []
    assert shares.of_best >= _LEAST_OF_BEST
    cached_tokens = sum(turn.cached_tokens for turn in load.turns)

    async def cached_tokens_are_counted() -> Counter[str]:
        assert await counted_by_engines(gateway) - by_engines == cached_tokens
        recorded = await counted_by_gateway(gateway) - by_gateway
        assert recorded["cached"] == cached_tokens
        return recorded

    assert_predicted(gateway, await eventually(cached_tokens_are_counted))


@pytest.mark.full
async def test_a_gateway_that_sees_nothing_in_common_finds_much_less(
    gateway: Gateway, tenants: list[ConversationTenant]
) -> None:
    """Streams, and answers as a whole: of these, a gateway does not see when they begin."""
    for streams in (True, False):
        shares = {}
        for alike in (False, True):
            load = ConversationClients(
                base=gateway.base, answer_tokens=_ANSWER_TOKENS, streams=streams, alike=alike
            )
            seed = 2 * streams + alike
            conversations = random_conversations(tenants, (3, 7), seed)
            await load.hold(islice(conversations, 100), _CLIENTS)
            shares[alike] = say_shares(gateway, f"{streams=} {alike=}", load.turns)
            assert failures(load.turns) == []
        assert shares[True].of_best >= _LEAST_OF_BEST
        assert shares[False].of_best < _MOST_WITHOUT


async def kill_engine(namespace: ScenarioNamespace) -> None:
    """Kill the engine of a replica, and wait until all replicas are ready again."""

    async def ready_engines() -> list[tuple[str, int]]:
        """Return the pods of the ready replicas, with how often each restarted."""
        return [
            (pod["metadata"]["name"], container_status(pod, "engine")["restartCount"])
            for pod in await list_replicas(namespace)
            if is_ready(pod)
        ]

    async def is_restarted() -> None:
        engines = await ready_engines()
        assert victim not in engines
        assert len(engines) == _REPLICAS

    victim, *_ = await ready_engines()
    namespace.cluster.world.kill(namespace.name, victim[0], "engine")
    await eventually(is_restarted)
    await wait_for_replicas(namespace, _REPLICAS)


@pytest.mark.full
async def test_the_record_follows_replicas_that_end_come_and_change(
    gateway: Gateway, tenants: list[ConversationTenant]
) -> None:
    """Streams of an engine that ends go on at another one."""
    namespace = gateway.namespace
    load = ConversationClients(base=gateway.base, answer_tokens=_ANSWER_TOKENS)
    seeds = itertools.count()

    def conversations() -> Iterator[Conversation]:
        return random_conversations(tenants, (3, 6), next(seeds))

    async def play(name: str, change: Awaitable[object]) -> None:
        """Hold conversations during a change, and others after it."""
        changed = asyncio.Event()
        before = len(load.turns), await counted_by_gateway(gateway)
        async with asyncio.TaskGroup() as tasks:
            holding = takewhile(lambda _: not changed.is_set(), conversations())
            tasks.create_task(load.hold(holding, _CLIENTS))
            await asyncio.sleep(_BEFORE_SECONDS)
            await change
            changed.set()
        during = load.turns[before[0] :]
        say_shares(gateway, f"while {name}", during)
        after = len(load.turns), await counted_by_gateway(gateway)
        assert failures(during) == []
        # Its prompts that engines lost are promised no more.
        assert_predicted(gateway, after[1] - before[1])
        await load.hold(islice(conversations(), 80), _CLIENTS)
        turns = load.turns[after[0] :]
        shares = say_shares(gateway, f"after {name}", turns)
        assert failures(turns) == []
        assert shares.of_best >= _LEAST_OF_BEST
        assert_predicted(gateway, await counted_by_gateway(gateway) - after[1])
        ready = {pod["metadata"]["name"] for pod in await list_replicas(namespace)}
        assert {turn.replica for turn in turns} == ready

    async def scale() -> None:
        await kubectl_scale(namespace.cluster, namespace.ref("chat"), _REPLICAS + 1)
        await wait_for_replicas(namespace, _REPLICAS + 1)

    async def roll() -> None:
        old = {pod["metadata"]["uid"] for pod in await list_replicas(namespace)}
        await serve(gateway, replicas=_REPLICAS + 1, engine={"extraArgs": ["--max-logprobs=5"]})

        async def old_are_gone() -> None:
            pods = await namespace.list_objects(PODS)
            assert old & {pod["metadata"]["uid"] for pod in pods} == set()

        await eventually(old_are_gone)
        await wait_for_replicas(namespace, _REPLICAS + 1)

    await play("a replica is killed", kill_engine(namespace))
    await play("a replica is added", scale())
    await play("all replicas are replaced", roll())


@pytest.mark.full
async def test_a_tenant_cannot_tell_by_time_what_another_one_has_sent(
    gateway: Gateway, tenants: list[ConversationTenant]
) -> None:
    owner, prober = tenants[:2]
    load = ConversationClients(base=gateway.base, answer_tokens=2)
    rng = random.Random(3)  # noqa: S311 - not a secret
    ttfts = defaultdict[str, list[float]](list)

    async def send(tenant: ConversationTenant, text: str) -> ConversationTurn:
        tenant = replace(tenant, system_prompt=text)
        await load.hold([Conversation(number=0, tenant=tenant, questions=["Go on."])], 1)
        return load.turns[-1]

    for _ in range(_PROBES):
        sent, fresh = random_text(rng, 1500), random_text(rng, 1500)
        await send(owner, sent)
        probes = [("fresh", prober, fresh), ("of another", prober, sent), ("own", owner, sent)]
        for kind, tenant, text in rng.sample(probes, len(probes)):
            turn = await send(tenant, text)
            assert (turn.cached_tokens > 0) is (kind == "own")
            assert turn.ttft is not None
            ttfts[kind].append(turn.ttft)
    medians = {kind: statistics.median(seconds) for kind, seconds in ttfts.items()}
    gateway.namespace.cluster.say(
        "median TTFT of prompts: "
        + ", ".join(f"{kind} {1000 * seconds:.1f} ms" for kind, seconds in medians.items())
    )
    assert failures(load.turns) == []
    # What a cache is worth is far more than the noise of this machine.
    gain = medians["fresh"] - medians["own"]
    assert gain > medians["fresh"] / 3
    assert abs(medians["of another"] - medians["fresh"]) < gain / 4
