"""Versions that gates ask by names of their own: charged to their tenant, and hidden."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel
from tessera.gateway.queue.places import DemandCount
from tests.gateway.charging import INPUT, OUTPUT, paying
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    TENANT,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.test_gateway import Surroundings

pytestmark = pytest.mark.anyio
SERVICE = Ref(TENANT, "chat")
USER = f"system:serviceaccount:{TENANT}:tessera-gate"
GATE = Identity(tenant=TENANT, user=USER, evaluates=TENANT)
CHARGE = 7 * INPUT + 3 * OUTPUT
ENOUGH = 10**12


@dataclass
class SenderOfGates:
    """Everybody has this identity."""

    identity: Identity = GATE

    async def identify(
        self, headers: Mapping[bytes, bytes], directory: Directory, address: str
    ) -> Identity:
        del headers, directory, address
        return self.identity


async def answering(call: EngineCall) -> None:
    await call.whole(COMPLETION)


def versions(stable: str, changed: str | None) -> list[OfferedModel]:
    names: dict[str, Any] = {"names": ("llama",), "max_model_len": 4096}
    models = [a_model(a_replica(stable), **names)]
    if changed is not None:
        tried = {"service": SERVICE.candidate, "uid": "uid-chat/candidate", **names}
        models.append(a_model(a_replica(changed, "chat-2"), **tried))
    return models


def directory(stable: str, changed: str | None, *limits: int) -> Directory:
    return a_directory(*versions(stable, changed), **paying(*limits))


async def ask(gateway: RunningGateway, name: str) -> Any:
    return await gateway.post({**CHAT, "model": name, "max_tokens": 20})


@pytest.mark.parametrize(
    ("version", "service"), [("stable", "team-a/chat"), ("candidate", "team-a/candidate/chat")]
)
async def test_each_version_is_asked_by_its_name_and_charged_as_an_evaluation(
    version: str, service: str
) -> None:
    async with ScriptedEngine(answering) as stable, ScriptedEngine(answering) as changed:
        offered = directory(stable.address, changed.address, ENOUGH)
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            answer = await ask(gateway, f"chat@{version}")
            record = await gateway.record()
        calls = {"stable": stable.calls, "candidate": changed.calls}
    assert answer.status == 200
    assert {name: len(each) for name, each in calls.items()} == {
        name: int(name == version) for name in calls
    }
    [call] = calls[version]
    body = json.loads(call.body)
    # The engine knows its own name alone, and users of the stable version go first.
    assert (body["model"], body["priority"]) == ("llama", 1)
    assert (record.service_class, record.service, record.model) == (
        "Evaluation",
        service,
        f"chat@{version}",
    )
    assert (record.charge_nanos, record.tenant, record.user) == (CHARGE, TENANT, USER)
    assert [scope for scope, _, _ in record.charges] == ["team-a/charge-month"]


async def test_an_evaluation_ends_where_the_money_of_its_tenant_does() -> None:
    async with ScriptedEngine(answering) as engine:
        offered = directory("127.0.0.1:9", engine.address, 1)
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            assert (await ask(gateway, "chat@candidate")).status == 429
        assert not engine.calls


@pytest.mark.parametrize("name", ["chat@candidate", "chat@stable"])
async def test_a_version_that_is_away_is_no_unknown_model(name: str) -> None:
    # A Job would take 404 for an answer of the version.
    async with a_gateway(a_directory(**paying()), identifier=SenderOfGates()) as gateway:
        assert (await ask(gateway, name)).status == 503


@pytest.mark.parametrize("name", ["llama", "other", "chat@", "@candidate.", "chat@candidate/"])
async def test_a_gate_asks_for_nothing_else(name: str) -> None:
    offered = directory("127.0.0.1:9", "127.0.0.1:9")
    async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
        assert (await ask(gateway, name)).status == 404


@pytest.mark.parametrize("name", ["chat@candidate", "chat@stable", "candidate/chat"])
async def test_nobody_else_asks_a_version(name: str) -> None:
    async with a_gateway(directory("127.0.0.1:9", "127.0.0.1:9")) as gateway:
        assert (await ask(gateway, name)).status == 404
        headers = {"authorization": f"Bearer {KEY}"}
        async with gateway.client.get(f"{gateway.url}/v1/models", headers=headers) as response:
            assert [each["id"] for each in (await response.json())["data"]] == ["llama"]


async def test_a_gate_of_another_namespace_asks_none() -> None:
    other = Identity(tenant=TENANT, evaluates="team-a-test")
    offered = directory("127.0.0.1:9", "127.0.0.1:9")
    async with a_gateway(offered, identifier=SenderOfGates(other)) as gateway:
        assert (await ask(gateway, "chat@candidate")).status == 503


async def test_users_are_never_sent_to_a_changed_version() -> None:
    async with ScriptedEngine(answering) as stable, ScriptedEngine(answering) as changed:
        async with a_gateway(directory(stable.address, changed.address)) as gateway:
            for _ in range(4):
                assert (await ask(gateway, "llama")).status == 200
        assert (len(stable.calls), len(changed.calls)) == (4, 0)


async def test_nothing_is_scaled_for_what_gates_ask_of_a_changed_version() -> None:
    gateway = Surroundings().gateway()
    stable, changed = versions("127.0.0.1:9", "127.0.0.1:9")
    gateway.publish(Directory(models=(stable, changed)))
    for model in (stable, changed):
        gateway.admission.demand[model.service] = DemandCount(in_flight=1)
    assert set(gateway.take_demand()) == {SERVICE}
