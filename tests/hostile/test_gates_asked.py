"""Who asks versions under gates through gateways, what of them shows, and what refuses them."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import jwt
import pytest
from aiohttp import web

from tessera.adapters.oidc_tokens import OidcTokens, claims_audience
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.batch_runner.errors import BatchError
from tessera.batch_runner.gate import asking
from tessera.batch_runner.gate.asking import AskOptions, PromptAsker, QuestionKey
from tessera.domain.charge.scopes import MemberKind
from tessera.domain.gateway.directory import Directory, Identity, TenantLimits, model_changes
from tessera.domain.gateway.oidc import OidcIssuer
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.charges import charge_scopes
from tessera.gateway.fleet.polling import EnginePoller
from tessera.gateway.identify.token_reviews import TokenReviews
from tessera.gateway.identify.token_verifier import TokenVerifier
from tessera.gateway.queue.places import DemandCount
from tests.batch_runner.gate.scripted_engine import serve_engine
from tests.batch_runner.gate.test_job import HI
from tests.gateway.charging import a_charge_limit, paying
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    TENANT,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from tests.gateway.identify.test_token_verifier import ADDRESS, DIRECTORY, ISSUER, ApiServer
from tests.gateway.resolve.test_evaluations import (
    ENOUGH,
    GATE,
    SERVICE,
    USER,
    SenderOfGates,
    ask,
    directory,
    versions,
)
from tests.gateway.test_gateway import Surroundings
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio
VERSIONS = ("chat@candidate", "chat@stable")


async def answering(call: EngineCall) -> None:
    await call.whole(COMPLETION)


def count(is_met: bool, *said: object) -> None:
    """Count a scene, and fail where the attack met its end."""
    SCORE.add(int(is_met))
    assert not is_met, said


@pytest.mark.parametrize("name", VERSIONS)
@pytest.mark.parametrize("key", [USER, "tessera-gate", "Evaluation"])
async def test_a_key_that_is_named_as_the_account_of_gates_asks_no_version(
    name: str, key: str
) -> None:
    async with ScriptedEngine(answering) as stable, ScriptedEngine(answering) as changed:
        models = versions(stable.address, changed.address)
        offered = a_directory(*models, keys=(an_api_key(name=key, team=key),), **paying(ENOUGH))
        async with a_gateway(offered) as gateway:
            answer = await ask(gateway, name)
        count(bool(stable.calls or changed.calls) or answer.status != 404, answer.status)


@pytest.mark.parametrize("name", VERSIONS)
async def test_a_tenant_that_may_use_a_model_asks_none_of_its_versions(name: str) -> None:
    other = Identity(tenant="team-b", user="system:serviceaccount:team-b:tessera-gate")
    async with ScriptedEngine(answering) as stable, ScriptedEngine(answering) as changed:
        models = [
            replace(each, public=True, tenants=frozenset({"team-b"}))
            for each in versions(stable.address, changed.address)
        ]
        for evaluates in (None, "team-b"):
            sender = SenderOfGates(replace(other, evaluates=evaluates))
            async with a_gateway(a_directory(*models), identifier=sender) as gateway:
                answer = await ask(gateway, name)
            count(bool(stable.calls or changed.calls) or answer.status == 200, answer.status)


async def test_an_alias_that_is_named_as_a_version_draws_no_gate_to_itself() -> None:
    async with ScriptedEngine(answering) as changed, ScriptedEngine(answering) as trap:
        models = versions("127.0.0.1:9", changed.address)
        hostile = a_model(
            a_replica(trap.address, "trap-1"),
            service=Ref(TENANT, "trap"),
            uid="uid-trap",
            names=("trap", "chat@candidate", "candidate/chat"),
        )
        for each in (0, 2):
            offered = a_directory(*models[:each], hostile, *models[each:], **paying())
            async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
                assert (await ask(gateway, "chat@candidate")).status == 200
        count(bool(trap.calls) or len(changed.calls) != 2, trap.calls)


async def test_the_token_of_a_gate_lists_no_model() -> None:
    offered = directory("127.0.0.1:9", "127.0.0.1:9")
    async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
        headers = {"authorization": f"Bearer {KEY}"}
        async with gateway.client.get(f"{gateway.url}/v1/models", headers=headers) as response:
            body = await response.json()
    count(bool(body["data"]), body)


async def test_no_report_of_a_gateway_names_a_version_that_is_tried() -> None:
    gateway = Surroundings().gateway()
    stable, changed = versions("127.0.0.1:9", "127.0.0.1:9")
    gateway.publish(Directory(models=(stable, changed)))
    for model in (stable, changed):
        gateway.admission.demand[model.service] = DemandCount(in_flight=1)
    names = {*map(str, gateway.take_demand()), *gateway.load()}
    count(any("candidate" in name for name in names), names)


async def test_a_replica_that_was_tried_is_polled_once_users_have_it() -> None:
    asked = list[str]()

    async def read(address: str) -> bytes | None:
        asked.append(address)
        return b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"

    poller = EnginePoller(read, lambda: 100.0)
    stable, changed = versions("10.0.0.1:8000", "10.0.0.2:8000")
    promoted = replace(stable, replicas=changed.replicas)
    poller.update(model_changes((), (stable, changed)))
    poller.update(model_changes((stable, changed), (promoted,)))
    poller.saw_traffic([SERVICE])
    poller.poll()
    for _ in range(3):
        await asyncio.sleep(0)
    count(asked != ["10.0.0.2:8000"], asked)


@pytest.mark.parametrize("index", [0, 1])
def test_each_version_is_charged_once_to_each_limit_of_its_service(index: int) -> None:
    of_service = a_charge_limit(
        ENOUGH, name="chat-month", kind=MemberKind.SERVICE, member=str(SERVICE)
    )
    each = a_charge_limit(ENOUGH, name="each-month", kind=MemberKind.SERVICE)
    offered = a_directory(**paying(ENOUGH, of_service, each))
    model = versions("127.0.0.1:9", "127.0.0.1:9")[index]
    keys = [scope.key for scope in charge_scopes(offered, GATE, model, VERSIONS[index])]
    wanted = ["charge-month", "chat-month", f"each-month/{MemberKind.SERVICE}/{SERVICE}"]
    count(keys != [f"{TENANT}/{name}" for name in wanted], keys)


async def test_an_evaluation_that_is_refused_or_broken_is_charged_to_nobody() -> None:
    async def breaks(call: EngineCall) -> None:
        await call.whole(b'{"error": "no"}', status=500)

    async with ScriptedEngine(breaks) as engine:
        offered = directory("127.0.0.1:9", engine.address, ENOUGH)
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            answer = await ask(gateway, "chat@candidate")
            record = await gateway.record()
    count(bool(record.charge_nanos) or answer.status < 500, record)


async def test_the_token_of_a_gate_has_the_limits_of_its_tenant() -> None:
    tenants = {
        TENANT: TenantLimits(
            name=TENANT,
            namespaces=(TENANT,),
            limits=RateLimitsSpec(requests=PeriodLimits(per_day=2)),
        )
    }
    async with ScriptedEngine(answering) as engine:
        models = versions(engine.address, engine.address)
        offered = a_directory(*models, tenants=tenants)
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            statuses = [(await ask(gateway, VERSIONS[number % 2])).status for number in range(4)]
        count(len(engine.calls) != 2 or statuses != [200, 200, 429, 429], statuses)


FORGED_USERS = (
    "system:serviceaccount:team-a:tessera-gate\n",
    "system:serviceaccount:team-a:x:tessera-gate",
    "system:serviceaccount:team-a:tessera-gate:x",
    "system:serviceaccount::tessera-gate",
    "x system:serviceaccount:team-a:tessera-gate",
    "system:serviceaccount:team-a:tessera-gate2",
    "tessera-gate",
)


def a_token(**claims: Any) -> str:
    return jwt.encode({"iss": ISSUER, "aud": "tessera-gate", **claims}, "x" * 32, algorithm="HS256")


@pytest.mark.parametrize("user", FORGED_USERS)
async def test_no_name_that_resembles_the_account_of_gates_is_taken_for_it(user: str) -> None:
    gates = ApiServer(user)
    verifier = TokenVerifier(None, {}, TokenReviews(gates.review, gates.token))
    verdict = await verifier.verify(a_token(sub="x"), DIRECTORY, ADDRESS)
    count(isinstance(verdict, Identity), verdict)


async def test_a_token_of_another_issuer_for_the_audience_of_gates_is_none() -> None:
    server, gates = ApiServer("system:serviceaccount:team-a:ci"), ApiServer(None)
    issuer = OidcIssuer(issuer="https://evil.example", audience="tessera-gate", tenant_claim="t")
    verifier = TokenVerifier(
        TokenReviews(server.review, server.token),
        {issuer.issuer: OidcTokens(issuer)},
        TokenReviews(gates.review, gates.token),
    )
    for audience in ("tessera-gate", ["tessera", "tessera-gate"]):
        token = a_token(iss=issuer.issuer, sub=USER, aud=audience, t="team-a")
        verdict = await verifier.verify(token, DIRECTORY, ADDRESS)
        count(verdict is not RequestReason.INVALID_TOKEN, verdict)


AUDIENCES: tuple[object, ...] = (
    7,
    {},
    {"tessera-gate": 1},
    [["tessera-gate"]],
    [None],
    "tessera-gate2",
    [{}],
)


@pytest.mark.parametrize("audience", AUDIENCES)
def test_an_audience_of_any_shape_ends_in_a_verdict(audience: object) -> None:
    payload = json.dumps({"iss": ISSUER, "aud": audience}).encode()
    token = jwt.api_jws.encode(payload, "x" * 32, algorithm="HS256")
    count(claims_audience(token, "tessera-gate"), audience)


PAUSES = (
    (429, "31536000"),
    (503, "31536000"),
    (429, "99999999999999"),
    (429, "-1"),
    (429, "Fri, 31 Dec 2099 23:59:59 GMT"),
    (503, "0"),
    (429, "1e9"),
    (503, "\u0665"),
    (401, "1"),
)


@pytest.mark.parametrize(("status", "pause"), PAUSES)
async def test_no_answer_of_a_server_lets_a_job_wait_without_end(
    monkeypatch: pytest.MonkeyPatch, status: int, pause: str
) -> None:
    monkeypatch.setattr(asking, "_WAIT_SECONDS", 0.01)
    headers = {"Retry-After": pause} if pause.isascii() else {}
    async with serve_engine(lambda _: web.Response(status=status, headers=headers)) as engine:
        options = AskOptions(url=engine.url, model="chat@candidate", away_seconds=0.2)
        async with PromptAsker(options) as asker:
            with pytest.raises(BatchError):
                async with asyncio.timeout(5):
                    await asker.ask(HI, QuestionKey("line-1", 0, 0))
    SCORE.add(0)


async def test_a_tenant_of_two_namespaces_has_its_gates_ask_in_their_own_alone() -> None:
    tenants = {TENANT: TenantLimits(name=TENANT, namespaces=(TENANT, "team-a-test"))}
    async with ScriptedEngine(answering) as engine:
        models = versions(engine.address, engine.address)
        identity = replace(GATE, evaluates="team-a-test")
        async with a_gateway(
            a_directory(*models, tenants=tenants), identifier=SenderOfGates(identity)
        ) as gateway:
            answers = [
                (await ask(gateway, name)).status
                for name in (*VERSIONS, "team-a/chat@candidate", "../team-a/chat@stable", "llama")
            ]
        count(bool(engine.calls) or 200 in answers, answers)


async def test_a_variant_that_no_replica_has_lets_users_wait_for_nothing() -> None:
    async with ScriptedEngine(answering) as engine:
        offered = directory(engine.address, None)
        async with a_gateway(offered, identifier=SenderOfGates()) as gateway:
            gates = [
                asyncio.ensure_future(ask(gateway, "chat@stable", "no-such")) for _ in range(40)
            ]
            await asyncio.sleep(0.1)
            gateway_answer = await asyncio.wait_for(
                gateway.post({**CHAT, "model": "nothing"}, authorization=f"Bearer {KEY}"), 5
            )
            for each in gates:
                each.cancel()
            await asyncio.gather(*gates, return_exceptions=True)
        count(bool(engine.calls) or gateway_answer.status != 404, len(engine.calls))
