"""Versions that gates ask by names of their own: charged to their tenant, and hidden."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.charge.price_book import PriceListBook
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


async def ask(gateway: RunningGateway, name: str, variant: str = "") -> Any:
    headers = {"authorization": f"Bearer {KEY}", "x-tessera-variant": variant}
    return await gateway.post({**CHAT, "model": name, "max_tokens": 20}, **headers)


@pytest.mark.parametrize("version", ["stable", "candidate"])
async def test_each_version_is_asked_by_its_name_and_charged_as_an_evaluation(version: str) -> None:
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
        "team-a/chat",
        f"chat@{version}",
    )
    assert (record.charge_nanos, record.tenant, record.user) == (CHARGE, TENANT, USER)
    assert [scope for scope, _, _ in record.charges] == ["team-a/charge-month"]


async def test_a_tenant_without_a_price_pays_nothing_for_what_is_counted_as_an_evaluation() -> None:
    async with ScriptedEngine(answering) as engine:
        offered = a_directory(*versions("127.0.0.1:9", engine.address))
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            assert (await ask(gateway, "chat@candidate")).status == 200
            record = await gateway.record()
    assert (record.service_class, record.currency, record.charge_nanos) == (
        "Evaluation",
        None,
        None,
    )
    assert (record.input_tokens, record.output_tokens) == (7, 3)


async def test_a_limit_of_charges_refuses_an_evaluation_that_has_no_price() -> None:
    # 403 says whom to ask for which entry, and the Job ends with it.
    priced = directory("127.0.0.1:9", "127.0.0.1:9", ENOUGH)
    offered = replace(priced, prices=PriceListBook())
    async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
        answer = await ask(gateway, "chat@candidate")
        assert (answer.status, answer.error["code"]) == (403, "price_missing")


@pytest.mark.parametrize(("variant", "index"), [("a100-fp8", 0), ("a100-int4", 1)])
async def test_a_gate_asks_the_replicas_of_a_variant_alone(variant: str, index: int) -> None:
    async with ScriptedEngine(answering) as first, ScriptedEngine(answering) as second:
        replicas = (
            replace(a_replica(first.address), variant="a100-fp8"),
            replace(a_replica(second.address, "chat-2"), variant="a100-int4"),
        )
        offered = a_directory(a_model(*replicas, names=("llama",)), **paying())
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            for _ in range(3):
                assert (await ask(gateway, "chat@stable", variant)).status == 200
        assert [len(each.calls) for each in (first, second)] == [3 * (index == n) for n in (0, 1)]


async def test_users_choose_no_variant() -> None:
    async with ScriptedEngine(answering) as engine:
        offered = directory(engine.address, None)
        async with a_gateway(offered) as gateway:
            assert (await ask(gateway, "llama", "a100-none")).status == 200


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
@pytest.mark.parametrize("account", [None, "ci", "tessera-gate"])
async def test_nobody_else_sees_that_a_version_exists(name: str, account: str | None) -> None:
    # Also the ServiceAccount of gates, by a token for another audience.
    user = f"system:serviceaccount:{TENANT}:{account}"
    sender: dict[str, Any] = {}
    if account is not None:
        sender = {"identifier": SenderOfGates(Identity(tenant=TENANT, user=user))}
    seen = []
    for changed in ("127.0.0.1:9", None):
        offered = directory("127.0.0.1:9", changed)
        async with a_gateway(offered, **sender) as gateway:
            answer = await ask(gateway, name)
            headers = {"authorization": f"Bearer {KEY}"}
            for path in ("/v1/models", f"/v1/models/{name}"):
                async with gateway.client.get(gateway.url + path, headers=headers) as response:
                    seen.append((path, response.status, await response.text()))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert [each["id"] for each in json.loads(seen[-2][2])["data"]] == ["llama"]
        seen.append(("", answer.status, answer.error["message"]))
    assert seen[:3] == seen[3:]
    assert [status for _, status, _ in seen[:3]] == [200, 404, 404]


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
