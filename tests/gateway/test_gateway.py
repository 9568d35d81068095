"""A gateway beside its API, with in-memory parts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import create_autospec

import pytest
from typing_extensions import override

from tessera.api.key_record import KeyRecord
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.build import GatewayObservations
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.limits.account import BorrowRequest, Lease, Portion, PortionRequest
from tessera.domain.limits.scopes import Meter
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.picking.owners import GatewayPeers
from tessera.gateway import gateway as gateway_module
from tessera.gateway.fleet.polling import EnginePoller
from tessera.gateway.fleet.replicas import SentRequest
from tessera.gateway.gateway import Gateway, GatewayParts
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.queue.places import DemandCount, Placed
from tessera.gateway.refusals import RequestError
from tests.builders import a_budget, a_pod, a_service
from tests.domain.limits.accounts import a_limit
from tests.gateway.harness import (
    KeyIdentifier,
    a_chosen_request,
    a_directory,
    a_model,
    a_replica,
    an_api_key,
)
from tests.gateway_builders import grants_for
from world.testing import eventually

CHAT = Ref("team-a", "chat")
LIMIT = a_limit(Meter.REQUESTS, 60)
TEAM = Identity(tenant="team-a")


PEERS = GatewayPeers(count=3, secret=b"secret")


class Surroundings:
    """What a gateway works with, in memory."""

    def __init__(self) -> None:
        self.observed: GatewayObservations | None = None
        self.borrowings: list[tuple[str, BorrowRequest]] = []
        self.lends = asyncio.Event()
        self.lends.set()
        self.running: list[Sequence[UsageRecord]] = []
        self.changed = asyncio.Event()

    def gateway(self, observe: Callable[[], GatewayObservations | None] | None = None) -> Gateway:
        return Gateway(
            GatewayParts(
                name="gw",
                observe=observe or (lambda: self.observed),
                changed=self.changed,
                default_limits=RateLimitsSpec(),
                poller=EnginePoller(self.read_page),
                identifier=KeyIdentifier(),
                borrow=self.borrow,
                meet=self.meet,
                recorder=self,
                engines=EngineSession(1),
            )
        )

    def add(self, record: UsageRecord) -> None:
        raise AssertionError(record)

    def note_begun(self, record: UsageRecord) -> None:
        raise AssertionError(record)

    def check_room(self, tenant: str) -> None:
        raise AssertionError(tenant)

    def note_running(self, records: Sequence[UsageRecord]) -> None:
        self.running.append(records)

    async def read_page(self, address: str) -> bytes | None:
        assert address == "127.10.0.5:8000"
        return b"vllm:num_requests_running 5\nvllm:num_requests_waiting 0\n"

    async def meet(self, gateway: str) -> GatewayPeers:
        assert gateway == "gw"
        return PEERS

    async def borrow(self, gateway: str, request: BorrowRequest) -> Lease:
        self.borrowings.append((gateway, request))
        await self.lends.wait()
        return Lease(
            portions=tuple(
                Portion(key=each.limit.key, amount=each.need, left=1.0) for each in request.portions
            )
        )

    def observe(self, **fields: Any) -> None:
        parts = {"services": (a_service(),), "pods": (a_pod(),), "budgets": (a_budget(),), **fields}
        self.observed = GatewayObservations(**parts)
        self.changed.set()


@asynccontextmanager
async def running(surroundings: Surroundings) -> AsyncIterator[Gateway]:
    gateway = surroundings.gateway()
    task = asyncio.create_task(gateway.run())
    try:
        async with asyncio.timeout(60):
            yield gateway
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def wait_for_directory(gateway: Gateway, *keys: str) -> Directory:
    """Wait for a directory of the gateway with these digests of keys."""

    async def is_published() -> Directory:
        assert gateway.directory is not None
        assert list(gateway.directory.keys) == list(keys)
        return gateway.directory

    return await eventually(is_published)


async def test_requests_are_judged_by_a_directory_once_all_is_known_and_by_the_next() -> None:
    surroundings = Surroundings()
    async with running(surroundings) as gateway:
        surroundings.changed.set()
        await asyncio.sleep(0)
        assert not gateway.admission.senders.are_known
        with pytest.raises(RequestError) as refused:
            await gateway.admission.senders.identify({b"x-api-key": b"known"}, "192.0.2.1")
        assert refused.value.reason is RequestReason.TOKENS_NOT_VERIFIED
        surroundings.observe()
        first = await wait_for_directory(gateway)
        assert [model.service for model in first.models] == [CHAT]
        assert gateway.admission.senders.are_known
        record = KeyRecord.model_validate({"sha256": "ab" * 32})
        keys = TenantKeys(secret=Ref("gw", "s"), tenant="team-a", records={"ci": record})
        surroundings.observe(keys=(keys,))
        second = await wait_for_directory(gateway, "ab" * 32)
        assert second.models == first.models


def decisions(gateway: Gateway) -> list[object]:
    """Return what a gateway would do with requests of each tenant."""
    admission = gateway.admission
    models = [admission.models.visible(Identity(tenant=name)) for name in ("team-a", "team-b")]
    replicas = [
        [(state.replica, state.ready_at is not None) for state in admission.replicas.states(model)]
        for visible in models
        for model in visible.values()
    ]
    return [models, replicas]


@pytest.mark.parametrize("tenant_limits", [RateLimitsSpec(), RateLimitsSpec(max_output_tokens=1)])
async def test_a_gateway_that_follows_edits_decides_as_one_that_begins(
    tenant_limits: RateLimitsSpec,
) -> None:
    chat = a_model(a_replica("127.0.0.1:1"), limits=RateLimitsSpec(max_output_tokens=9))
    other = a_model(service=Ref("team-b", "other"), uid="uid-b", names=("b",), tenant="team-b")
    tenants = {"team-a": TenantLimits(name="team-a", namespaces=(), limits=tenant_limits)}
    shared = replace(chat, tenants=frozenset({"team-b"}), names=("chat", "alias"))
    moved = a_replica("127.0.0.1:2", ready_since=None)
    edits: Sequence[tuple[OfferedModel, ...]] = (
        (chat,),
        (chat, other),
        (shared, other),
        (replace(shared, replicas=(moved, a_replica("127.0.0.1:3", "chat-2"))), other),
        (replace(chat, public=True, limits=RateLimitsSpec()), other),
        (chat, replace(other, public=True)),
        (replace(chat, uid="recreated"),),
        (),
    )
    rights = grants_for(replace(shared, public=True), replace(other, public=True))
    following = Surroundings().gateway()
    for number, models in enumerate(edits):
        directory = Directory(
            models=models, tenants=tenants if number % 2 else {}, name_rights=rights
        )
        beginning = Surroundings().gateway()
        for gateway in (following, beginning):
            gateway.publish(directory)
        assert decisions(following) == decisions(beginning)
        for model in models:
            limits = [await output_limit(gateway, model) for gateway in (following, beginning)]
            assert limits[0] == limits[1]


async def test_limits_of_a_key_hold_as_soon_as_they_change() -> None:
    gateway, chat = Surroundings().gateway(), a_model(a_replica("127.0.0.1:1"))
    for most in (9, 3):
        limits = RateLimitsSpec(max_output_tokens=most)
        gateway.publish(a_directory(chat, keys=(an_api_key(limits=limits),)))
        sender = Identity(tenant="team-a", key="ci", limits=limits)
        assert await output_limit(gateway, chat, sender) == most


async def output_limit(gateway: Gateway, model: OfferedModel, sender: Identity = TEAM) -> object:
    """Return what is left of 10 tokens that a client asks for."""
    shape = RequestShape(model=model.names[0], input_tokens=1, max_output_tokens=10)
    try:
        reservations = gateway.admission.reservations
        reserved = await reservations.reserve(a_chosen_request(sender, model, shape))
    except RequestError as error:
        return error.reason
    reservations.settle(reserved, input_tokens=0, output_tokens=0)
    return reserved.max_output_tokens


def test_the_edits_of_one_tenant_touch_nothing_of_another() -> None:
    gateway = Surroundings().gateway()
    own = a_model(a_replica("127.0.0.1:1"))
    evil = a_model(service=Ref("evil", "chat"), uid="uid-evil", tenant="evil")
    gateway.publish(Directory(models=(own, evil)))
    models, states = gateway.admission.models.visible(TEAM), gateway.admission.replicas.states(own)
    for number in range(3):
        evil = replace(evil, names=(f"name-{number}",))
        gateway.publish(Directory(models=(own, evil)))
        assert gateway.admission.models.visible(TEAM) is models
        assert gateway.admission.replicas.states(own) is states
        assert gateway.admission.models.find(Identity(tenant="evil"), f"name-{number}") is evil


class CountedModels(tuple[OfferedModel, ...]):
    """Models, and how often somebody looked at all of them."""

    looks = 0

    @override
    def __iter__(self) -> Iterator[OfferedModel]:
        self.looks += 1
        return super().__iter__()


def test_an_edit_of_a_public_service_lets_no_tenant_look_at_all_models() -> None:
    gateway, tenants = Surroundings().gateway(), [f"team-{number}" for number in range(20)]
    own = [
        a_model(service=Ref(tenant, "chat"), uid=tenant, tenant=tenant, names=("chat",))
        for tenant in tenants
    ]
    evil = a_model(service=Ref("evil", "x"), public=True, uid="evil", tenant="evil")
    rights = grants_for(replace(evil, names=("chat", *(f"name-{edit}" for edit in range(3)))))
    for edit in range(3):
        evil = replace(evil, names=("chat", f"name-{edit}"))
        models = CountedModels((evil, *own))
        gateway.publish(Directory(models=models, name_rights=rights))
        before = models.looks
        for tenant, model in zip(tenants, own, strict=True):
            visible = gateway.admission.models.visible(Identity(tenant=tenant))
            assert visible == {"chat": model, f"name-{edit}": evil}
        # To list them once; then an edit builds the names that it means.
        assert models.looks - before == (edit == 0)


async def test_a_gateway_meets_the_others_as_soon_as_it_runs() -> None:
    async def has_met() -> None:
        assert gateway.admission.replicas.peers == PEERS

    async with running(Surroundings()) as gateway:
        await eventually(has_met)


async def test_engines_of_services_with_requests_are_polled() -> None:
    async def is_polled() -> None:
        assert state.engine is not None
        assert state.engine.running == 5
        assert surroundings.running != []

    surroundings = Surroundings()
    async with running(surroundings) as gateway:
        surroundings.observe()
        model, *_ = (await wait_for_directory(gateway)).models
        [state] = gateway.admission.replicas.states(model)
        assert state.engine is None
        gateway.admission.demand[CHAT] = DemandCount(in_flight=1)
        await eventually(is_polled)


async def test_requests_of_one_moment_borrow_together() -> None:
    surroundings = Surroundings()
    async with running(surroundings) as gateway:
        asked = [
            BorrowRequest(portions=(PortionRequest(limit=LIMIT, need=need),)) for need in (1, 2, 3)
        ]
        assert await asyncio.gather(*map(gateway.borrow, asked)) == [True] * 3
    ((name, borrowed),) = surroundings.borrowings
    assert (name, [each.need for each in borrowed.portions]) == ("gw", [1, 2, 3])


async def test_an_answer_that_does_not_come_refuses_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_module, "_BORROW_SECONDS", 0.05)
    surroundings = Surroundings()
    surroundings.lends.clear()
    async with running(surroundings) as gateway:
        assert not await gateway.borrow(BorrowRequest())
        monkeypatch.setattr(gateway_module, "_BORROW_SECONDS", 60)
        surroundings.lends.set()
        assert await gateway.borrow(BorrowRequest())


def without_requests(services: int) -> list[OfferedModel]:
    return [
        a_model(service=Ref("team-a", f"s{number}"), uid=f"uid-{number}", names=(f"s{number}",))
        for number in range(services)
    ]


async def refuse(gateway: Gateway, model: OfferedModel) -> None:
    """Let a request be refused, since its model has no replica."""
    shape = RequestShape(model=model.names[0], input_tokens=1, max_output_tokens=1)
    chosen = a_chosen_request(Identity(tenant="team-a"), model, shape)
    reserved = await gateway.admission.reservations.reserve(chosen)
    with pytest.raises(RequestError, match="has no ready replica"):
        await gateway.admission.places.queue(reserved)


async def test_arrivals_are_reported_once() -> None:
    gateway, (model,) = Surroundings().gateway(), without_requests(1)
    gateway.publish(Directory(models=(model,)))
    gateway.admission.demand[model.service] = DemandCount(in_flight=4)
    for arrived in (3, 2, 0):
        for _ in range(arrived):
            await refuse(gateway, model)
        demand = {model.service: GatewayDemand(arrived=arrived, in_flight=4)}
        assert gateway.take_demand() == demand
    assert gateway.load()["team-a/s0"].in_flight == 4
    del gateway.admission.demand[model.service]
    assert (gateway.take_demand(), gateway.load()) == ({}, {})


async def test_5_000_refused_services_are_reported_once_and_then_forgotten() -> None:
    gateway, models = Surroundings().gateway(), without_requests(5000)
    gateway.publish(Directory(models=tuple(models)))
    for model in models:
        await refuse(gateway, model)
    assert gateway.load() == {}
    assert gateway.take_demand() == {model.service: GatewayDemand(arrived=1) for model in models}
    assert gateway.take_demand() == {}


async def test_a_deleted_service_leaves_no_demand() -> None:
    gateway, models = Surroundings().gateway(), without_requests(2)
    gateway.publish(Directory(models=tuple(models)))
    for model in models:
        gateway.admission.demand[model.service] = DemandCount(in_flight=1)
        await refuse(gateway, model)
    remaining, deleted = models
    recreated = replace(deleted, uid="another")
    gateway.publish(Directory(models=(remaining, recreated)))
    assert gateway.take_demand() == {remaining.service: GatewayDemand(arrived=1, in_flight=1)}


async def test_the_demand_of_a_service_never_falls_below_zero() -> None:
    admission, model = Surroundings().gateway().admission, a_model()
    shape = RequestShape(model="chat", input_tokens=1, max_output_tokens=1)
    reserved = await admission.reservations.reserve(a_chosen_request(TEAM, model, shape))
    demand = admission.demand[model.service] = DemandCount()

    def a_placed_request(work: float, demand: DemandCount) -> Placed:
        work_ns = round(work * 1e9)
        demand.in_flight += 1
        demand.work_ns += work_ns
        at = create_autospec(SentRequest, instance=True)
        return Placed(reserved=reserved, work_ns=work_ns, queue_ns=0, demand=demand, at=at)

    placed = [a_placed_request(work, demand) for work in (0.1, 0.2, 0.3, 0.7)]
    # The last one is of a service of this name that was deleted.
    for each in (*(placed[i] for i in (0, 2, 3, 1)), a_placed_request(0.5, DemandCount())):
        admission.places.leave(each)
        assert demand.in_flight >= 0
        assert demand.work_ns >= 0
    assert (demand.in_flight, demand.work_ns) == (0, 0)
    assert admission.demand == {}
