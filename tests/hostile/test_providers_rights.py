"""Attacks on rights at providers: confused deputies, residency, names, keys, what leaves."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.model_provider import ModelProviderSpec
from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, TenantLimits
from tessera.domain.observed.providers import ProviderSecret
from tessera.gateway.usage.logs import access_line
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.harness import an_api_key
from tests.gateway.outside.asking import asking
from tests.gateway.outside.routing import MODEL, OUTSIDE, OWN, Routed, a_body, routed
from tests.gateway_builders import grants_for
from world.provider import KEY, Provider, ProviderCall, Script, answer, refuse

FIRST = {**OWN, "when": {"maxCharacters": 5}}
NEW = "sk-new-0123456789"
SPEC: Mapping[str, Any] = {
    "baseUrl": "https://api.example.com/v1",
    "protocols": ["OpenAIChat"],
    "secret": {"name": "acme"},
    "tenants": ["team-a"],
    "models": [
        {
            "name": "big-1",
            "maxContextTokens": 8192,
            "maxOutputTokens": 100,
            "cost": {"input": "1", "output": "1"},
        }
    ],
}

Change = Callable[[Directory], Directory]


def directory_of(world: Routed) -> Directory:
    return world.gateway.admission.senders.directory


def of_others(world: Routed) -> None:
    """Make the route one of another tenant that it offers to all, with its own target."""
    directory = directory_of(world)
    own, route = directory.models
    spec = ModelRouteSpec.model_validate(
        {"targets": [OUTSIDE, {"name": "own", "service": "team-a/chat"}]}
    )
    shared = replace(
        route, service=Ref("team-b", "assistant"), tenant="team-b", public=True, route=spec
    )
    models, rights = (own, shared), grants_for(own, shared)
    world.gateway.admission.update(replace(directory, models=models, name_rights=rights))


async def test_a_route_of_others_gives_no_right_to_their_provider(tmp_path: Path) -> None:
    async with routed(tmp_path, weights={"team-b": 1.0}) as world:
        of_others(world)
        got = await world.gateway.post(a_body())
        assert not world.provider.calls
    assert got.headers["x-tessera-target"] == "own"


async def test_the_residency_of_who_asks_holds_for_routes_of_others(tmp_path: Path) -> None:
    async with routed(tmp_path, region="eu", weights={"team-a": 1.0, "team-b": 1.0}) as world:
        of_others(world)
        tenants = dict(directory_of(world).tenants)
        assert (await world.gateway.post(a_body())).headers["x-tessera-target"] == "outside"
        tenants["team-a"] = replace(tenants["team-a"], residency=frozenset({"us"}))
        world.gateway.admission.update(replace(directory_of(world), tenants=tenants))
        got = await world.gateway.post(a_body())
        assert len(world.provider.calls) == 1
    assert got.headers["x-tessera-target"] == "own"


async def fails(call: Any) -> None:
    await call.whole({"error": {"message": "no"}}, 500)


@pytest.mark.parametrize(
    ("targets", "spec", "headers"),
    [
        ((OWN, OUTSIDE), {}, {}),
        ((FIRST, OUTSIDE), {}, {}),
        ((OUTSIDE,), {}, {}),
        ((FIRST, OUTSIDE), {}, {"x-tessera-allow-downgrade": "false"}),
        (({**OWN, "weight": 1}, {**OUTSIDE, "weight": 99}), {"select": "Weights"}, {}),
        ((OWN, OUTSIDE), {"fallback": ["ServerError", "Overloaded", "Timeout"]}, {}),
    ],
)
async def test_no_fallback_weight_or_last_target_takes_a_request_abroad(
    tmp_path: Path,
    targets: tuple[Mapping[str, Any], ...],
    spec: Mapping[str, Any],
    headers: dict[str, str],
) -> None:
    home = {"residency": frozenset({"InCluster"})}
    async with routed(tmp_path, *targets, own=fails, spec=spec, region="eu", tenant=home) as world:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
            body = a_body(input="Hi") if path == "/v1/responses" else a_body(max_tokens=5)
            got = await world.gateway.post(body, path, **headers)
            assert got.status >= 400
        assert not world.provider.connections


@pytest.mark.parametrize("targets", [(OUTSIDE,), (OWN, OUTSIDE), (OUTSIDE, OWN)])
async def test_nothing_leaves_by_a_path_that_providers_do_not_serve(
    tmp_path: Path, targets: tuple[Mapping[str, Any], ...]
) -> None:
    async with routed(tmp_path, *targets) as world:
        for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/completions"):
            await world.gateway.post(a_body(prompt="Hi"), path)
        assert not world.provider.connections


async def test_no_name_but_that_of_a_route_leads_outside(tmp_path: Path) -> None:
    names = (
        *("acme/big-1", "ACME/Big-1", "acme", "big-1", "ModelProvider/acme", "acme/../big-1"),
        *("team-a/assistant/outside", "outside", "assistant/outside", "acme/big-1\r\nX: y", ".."),
    )
    async with routed(tmp_path) as world:
        for name in names:
            got = await world.gateway.post({**a_body(), "model": name})
            assert got.status in (400, 404)
        assert not world.provider.connections


@pytest.mark.parametrize(
    "key",
    [
        {"services": frozenset({Ref("ModelProvider", "acme")})},
        {"services": frozenset({Ref("team-a", "chat"), Ref("team-a", "assistant")})},
        {"models": ("acme/big-1",)},
        {"models": ("big-1", "chat")},
    ],
)
async def test_a_key_for_services_or_other_names_asks_no_provider(
    tmp_path: Path, key: dict[str, Any]
) -> None:
    async with routed(tmp_path, keys=(an_api_key(**key),)) as world:
        for model in ("assistant", "acme/big-1"):
            await world.gateway.post({**a_body(), "model": model})
        assert not world.provider.connections


async def test_a_provider_of_others_and_none_at_all_are_refused_alike(tmp_path: Path) -> None:
    absent = {"name": "outside", "provider": {"name": "absent", "model": MODEL}}
    other = {"name": "outside", "provider": {"name": "acme", "model": "another"}}
    said = set()
    for number, target in enumerate((OUTSIDE, absent, other)):
        async with routed(tmp_path / str(number), target, weights={"team-b": 1.0}) as world:
            got = await world.gateway.post(a_body())
            said.add((got.status, got.body.replace(got.headers["x-request-id"].encode(), b"")))
    assert len(said) == 1


def meanwhile(world: Routed, change: Change) -> Script:
    """Refuse a request that may be sent again, and change the directory before that."""

    async def script(call: ProviderCall) -> None:
        world.gateway.admission.update(change(directory_of(world)))
        await refuse(429)(call)

    return script


async def test_what_a_tenant_may_no_longer_do_is_not_repeated(tmp_path: Path) -> None:
    """The pause before a second try is long enough to take rights away."""
    changes: dict[str, Change] = {
        "key": lambda each: replace(each, keys={}),
        "tenant": lambda each: replace(each, outside=_without_tenants(each)),
        "region": lambda each: replace(each, tenants=_at_home(each)),
    }
    for name, change in changes.items():
        async with routed(tmp_path / name) as world:
            world.provider.script = meanwhile(world, change)
            await world.gateway.post(a_body())
            assert len(world.provider.calls) == 1, name


def _without_tenants(directory: Directory) -> Mapping[tuple[str, str], Any]:
    return {
        name: replace(
            model,
            outside=replace(model.outside, provider=replace(model.outside.provider, weights={})),
        )
        for name, model in directory.outside.items()
        if model.outside is not None
    }


def _at_home(directory: Directory) -> Mapping[str, TenantLimits]:
    return {
        name: replace(tenant, residency=frozenset({"InCluster"}))
        for name, tenant in directory.tenants.items()
    }


async def test_a_new_key_is_not_sent_to_where_the_provider_was(tmp_path: Path) -> None:
    """Its URL and its Secret change together, while a request waits for its second try."""
    async with (
        routed(tmp_path / "old") as world,
        Provider(tmp_path / "new", key=NEW) as moved,
    ):

        def moves(directory: Directory) -> Directory:
            (model,) = directory.outside.values()
            assert model.outside is not None
            spec = model.outside.provider.spec.model_copy(update={"base_url": moved.base_url})
            provider = replace(model.outside.provider, spec=spec)
            model = replace(model, outside=replace(model.outside, provider=provider))
            world.asked.keys.update([ProviderSecret(name="acme", keys={"key": NEW})])
            return replace(directory, outside={("acme", MODEL): model})

        world.provider.script = meanwhile(world, moves)
        got = await world.gateway.post(a_body())
        sent = [call.headers["authorization"] for call in world.provider.calls]
    assert sent == [f"Bearer {KEY}"]
    assert got.headers["x-tessera-target"] == "own"


async def test_nothing_of_a_client_but_its_conversation_leaves(tmp_path: Path) -> None:
    headers = {
        "x-tessera-tags": "cost-center=leak-center",
        "x-request-id": "leak-request",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "tracestate": "leak=1",
        "baggage": "leak=1",
        "cookie": "leak=1",
        "x-forwarded-for": "203.0.113.9",
        "x-session-id": "leak-session",
        "user-agent": "leak-agent",
        "openai-organization": "leak-org",
        "anthropic-beta": "leak-beta",
        "x-api-key": "leak-key",
    }
    fields: dict[str, Any] = {
        "user": "leak-user",
        "metadata": {"leak": "x"},
        "cache_salt": "leak-salt",
        "priority": 3,
        "prompt_cache_key": "leak-cache",
        "safety_identifier": "leak-safety",
        "store": True,
        "service_tier": "priority",
        "request_id": "leak-id",
    }
    async with routed(tmp_path) as world:
        got = await world.gateway.post(a_body(**fields), **headers)
        (call,) = world.provider.calls
    assert got.headers["x-tessera-target"] == "outside"
    assert {*call.headers} == {
        *("host", "authorization", "content-type", "accept", "accept-encoding", "user-agent"),
        "content-length",
    }
    assert {*call.body} == {"model", "messages", "max_tokens"}
    text = json.dumps(call.body) + str(call.headers)
    for word in ("leak", "203.0.113.9", "team-a", "127.0.0.1", "assistant"):
        assert word not in text.replace("localhost", "")


async def test_the_key_stands_in_nothing_that_anybody_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    scripts = (refuse(401, KEY, KEY), refuse(400, KEY, KEY), refuse(500, KEY, KEY), answer())
    async with routed(tmp_path) as world:
        said = []
        for script in scripts:
            world.provider.script = script
            for stream in (False, True):
                got = await world.gateway.post(a_body(stream=stream))
                said += [got.body.decode(), str(got.headers)]
                said.append(repr(world.gateway.app.explain(got.headers["x-request-id"])))
            said.append(GatewayMetrics(world.asked.client).page().decode())
            world.asked.client.retain(())
        for record in world.gateway.records:
            said += [repr(record), access_line(record).decode()]
        said += [repr(directory_of(world)), repr(world.gateway.app.running(10)), caplog.text]
    for text in said:
        assert KEY not in text


async def test_a_key_that_no_header_can_have_is_not_sent_and_not_said(tmp_path: Path) -> None:
    async with routed(tmp_path) as world:
        for key in ("sk\r\nx: y", "sk\n", "sk\x00", "", " ", "\u043a\u043b", "sk\u0085x"):
            world.asked.keys.update([ProviderSecret(name="acme", keys={"key": key})])
            world.asked.client.retain(())
            async with asyncio.timeout(10):
                got = await world.gateway.post(a_body())
            assert got.headers["x-tessera-target"] == "own"
        assert all("x" not in call.headers for call in world.provider.calls)


_LOOPBACK = (
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1"),
    *("017700000001", "0x7f.1", "127.0.0.1.", "0.0.0.0", "0", "localhost", "LOCALHOST"),
)


@pytest.mark.parametrize("host", _LOOPBACK)
async def test_no_spelling_of_an_address_leads_into_the_machine(tmp_path: Path, host: str) -> None:
    connected = list[str]()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(host)
        writer.close()

    async with await asyncio.start_server(note, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"https://{host}:{port}/v1"
        async with asking(tmp_path, allowed_ranges=(), base_url=url) as asked:
            assert (await asked.error()).reason == "ProviderUnreachable"
    assert not connected


@pytest.mark.parametrize(
    "url",
    [
        *("http://api.example.com/v1", "https://user:pass@a.example/v1", "ftp://a.example/v1"),
        *("https://api.example.com/v1?x=y", "https://api.example.com/v1#x", "https:///v1"),
        *("https://a.example\r\nx: y/v1", "https://[::1]/v1", "https://[::ffff:10.0.0.1]/v1"),
        *("https://a.example/v1/%2e%2e", "https://a.example\\@b.example/v1", "https://a /v1"),
        *("unix:///var/run/docker.sock", "https://a.example:443:80/v1", "https://a_b\n/v1"),
        *("https://\u0430.example/v1", "https://.example/v1", "//a.example/v1", "https://a/v1/"),
    ],
)
def test_no_url_has_more_than_a_host_a_port_and_a_plain_path(url: str) -> None:
    with pytest.raises(ValidationError):
        ModelProviderSpec.model_validate({**SPEC, "baseUrl": url})


@pytest.mark.parametrize(
    "url",
    [
        *("socks5://a.example", "http://user:pass@a.example", "http://a.example/path", "unix:///x"),
        *("http://a.example?x", "http://[::1]:80", "http://a.example\r\nx: y", "a.example:80"),
    ],
)
def test_no_proxy_has_more_than_a_host_and_a_port(url: str) -> None:
    with pytest.raises(ValidationError):
        ModelProviderSpec.model_validate({**SPEC, "proxyUrl": url})


@pytest.mark.parametrize(
    "name",
    ["../v1", "/big", "big\r\nx: y", "big 1", "", "a" * 97, "big%2f", "\u0431ig", "-big", "a\n"],
)
def test_no_model_has_a_name_that_is_more_than_a_name(name: str) -> None:
    models = [{**SPEC["models"][0], "name": name}]
    with pytest.raises(ValidationError):
        ModelProviderSpec.model_validate({**SPEC, "models": models})
    with pytest.raises(ValidationError):
        ModelRouteSpec.model_validate(
            {"targets": [{"name": "x", "provider": {"name": "acme", "model": name}}]}
        )
