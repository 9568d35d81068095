"""What comes of requests to a provider, whatever it answers."""

import asyncio
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from tessera.adapters.clock import CLOCK
from tessera.api.model_provider import ProviderKey
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.observed.providers import ProviderSecret
from tessera.gateway.outside.client import CANCELLED, OutsideClient, OutsideError
from tessera.gateway.refusals import RequestError
from tests.gateway.outside.asking import CHAT, MESSAGES, TENANT, a_provider, asking, provider_keys
from world.provider import (
    KEY,
    Provider,
    ProviderCall,
    Script,
    answer,
    filtered,
    flood,
    hang_up,
    redirect,
    refuse,
    say_nothing,
    send_page,
    stall,
)

STREAM = json.dumps({"model": "m", "stream": True}).encode()
SHORT = {"connect": "100ms", "firstByte": "100ms", "gap": "100ms"}
BODY = b'{"model": "m"}'
SECRET = "sk-leaked"  # noqa: S105 - no password


async def test_a_request_carries_the_key_and_nothing_else_of_the_gateway(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        body = json.loads(await asked.whole(body=b'{"model": "m", "messages": []}'))
        (call,) = asked.provider.calls
    assert body["choices"][0]["finish_reason"] == "stop"
    assert call.path == CHAT
    assert call.body == {"model": "m", "messages": []}
    assert call.headers == {
        "host": f"localhost:{asked.provider.port}",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": "30",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "tessera",
    }


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
async def test_the_key_stands_in_the_header_of_the_provider(tmp_path: Path, header: str) -> None:
    async with asking(tmp_path, key_header=header) as asked:
        await asked.whole(MESSAGES)
        (call,) = asked.provider.calls
    assert call.headers[header] == KEY
    assert "authorization" not in call.headers
    assert call.headers["anthropic-version"] == "2023-06-01"


async def test_a_changed_key_is_used_at_once(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        await asked.whole()
        asked.provider.key = "sk-new"
        assert (await asked.error()).reason == "ProviderKeyRefused"
        asked.keys.update([ProviderSecret(name="acme", keys={"key": "sk-new"})])
        await asked.whole()


async def test_connections_are_used_again(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        for _ in range(3):
            await asked.whole()
        assert (len(asked.provider.calls), asked.provider.connections) == (3, 1)


async def test_a_stream_is_read_as_it_comes(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def in_two_parts(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream; charset=utf-8")
        await call.chunk(b"data: 1\n\n")
        await released.wait()
        await call.chunk(b"data: 2\n\n")
        await call.end()

    async with asking(tmp_path) as asked:
        asked.provider.script = in_two_parts
        parts = []
        async with asked.client.ask(asked.offered, CHAT, STREAM, tenant=TENANT) as answered:
            assert answered.is_stream
            async for part in answered.parts():
                parts.append(part)
                released.set()
    assert parts == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_a_large_request_arrives_whole(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        text = "x" * 3_000_000
        await asked.whole(body=json.dumps({"model": "m", "input": text}).encode())
        assert asked.provider.calls[0].body["input"] == text


@pytest.mark.parametrize(
    ("script", "reason", "status", "message"),
    [
        (refuse(400, SECRET), "ProviderRefused", 400, "refused the request: status 400."),
        (
            refuse(404, SECRET, SECRET),
            "ProviderModelNotFound",
            502,
            "the model for the key of the installation: status 404.",
        ),
        (refuse(401, SECRET), "ProviderKeyRefused", 502, "key of the installation: status 401."),
        (refuse(403, SECRET), "ProviderRefused", 400, "refused the request: status 403."),
        (refuse(500, SECRET), "ProviderFailed", 502, "failed: status 500."),
        (refuse(101, SECRET), "ProviderFailed", 502, "failed: status 101."),
        (redirect, "ProviderFailed", 502, "failed: status 307."),
        (send_page, "ProviderFailed", 502, "neither JSON nor a stream of events."),
        (hang_up, "ProviderFailed", 502, "failed: it closed the connection."),
        (filtered, "ContentFiltered", 400, "refused the request."),
        (flood, "ProviderFailed", 502, "more than 33554432 bytes"),
    ],
)
async def test_a_failure_is_said_in_words_of_the_gateway(
    tmp_path: Path, script: Script, reason: str, status: int, message: str
) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = script
        error = await asked.error()
    assert (error.reason, error.status) == (reason, status)
    assert message in error.message
    assert SECRET.encode() not in error.body()
    assert error.was_sent


@pytest.mark.parametrize(
    "answered",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: application/json\r\n"
        b"content-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
async def test_what_is_no_plain_http_is_a_failure(tmp_path: Path, answered: bytes) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = lambda call: call.send(answered)
        error = await asked.error()
    assert error.reason == "ProviderFailed"


async def test_cookies_of_a_provider_do_not_go_from_one_request_to_the_next(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = lambda call: call.whole({}, set_cookie="tenant=a; Path=/")
        await asked.whole()
        await asked.whole()
        assert "cookie" not in asked.provider.calls[1].headers


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (say_nothing, "took too long: its answer did not begin."),
        (stall, "took too long: nothing for 0.1 s."),
    ],
)
async def test_a_provider_that_says_nothing_more_is_given_up(
    tmp_path: Path, script: Script, message: str
) -> None:
    async with asking(tmp_path, timeouts=SHORT) as asked:
        asked.provider.script = script
        error = await asked.error(STREAM)
        assert (error.reason, error.status) == ("ProviderTimeout", 504)
        assert message in error.message
        assert (error.was_sent, error.may_repeat) == (True, False)
        await asyncio.wait_for(asked.provider.calls[0].closed.wait(), 5)


async def test_the_first_byte_of_a_body_may_take_as_long_as_that_of_the_head(
    tmp_path: Path,
) -> None:
    async def slowly(call: ProviderCall) -> None:
        await call.head(200)
        await asyncio.sleep(0.2)
        await call.chunk(b"{}")
        await call.end()

    async with asking(tmp_path, timeouts=SHORT | {"firstByte": "5s"}) as asked:
        asked.provider.script = slowly
        assert await asked.whole() == b"{}"


async def test_the_whole_answer_has_a_time_too(tmp_path: Path) -> None:
    async def drip(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream")
        while not call.closed.is_set():
            await call.chunk(b": \n\n")
            await asyncio.sleep(0.02)

    async with asking(tmp_path) as asked:
        # The connection costs no time then.
        await asked.whole()
        asked.provider.script = drip
        spec = asked.offered.spec
        times = spec.timeouts.model_copy(update={"total": timedelta(seconds=0.3)})
        spec = spec.model_copy(update={"timeouts": times})
        offered = replace(asked.offered, spec=spec)
        with pytest.raises(OutsideError, match="its answer had no end") as raised:
            async with asked.client.ask(offered, CHAT, STREAM, tenant=TENANT) as answered:
                await answered.whole()
    assert raised.value.reason == "ProviderTimeout"


async def test_a_stream_that_breaks_off_is_a_failure(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = answer(cut_after=3)
        error = await asked.error(STREAM)
    assert (error.reason, error.was_sent, error.may_repeat) == ("ProviderFailed", True, False)
    assert "it broke off its answer" in error.message


async def test_a_request_that_is_given_up_ends_at_the_provider(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = stall
        task = asyncio.create_task(asked.whole(body=STREAM))
        await asked.provider.has_calls(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(asked.provider.calls[0].closed.wait(), 5)
        state = asked.client.states["acme"]
        assert state.ended == {CANCELLED: 1}
        assert state.shares.taken == 0


async def test_an_answer_that_is_left_ends_at_the_provider(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = flood
        async with asked.client.ask(asked.offered, CHAT, STREAM, tenant=TENANT):
            pass
        await asyncio.wait_for(asked.provider.calls[0].closed.wait(), 5)


@pytest.mark.parametrize(
    ("script", "may_repeat", "seconds"),
    [
        (refuse(429), True, None),
        (refuse(429, retry_after="2"), True, 2),
        (refuse(429, retry_after="3"), False, 3),
        (refuse(429, retry_after="86400"), False, 60),
        (refuse(429, retry_after="nan"), True, None),
        (refuse(429, retry_after="-1"), True, None),
        (refuse(429, retry_after="1e300"), True, None),
        (refuse(503), True, None),
        (refuse(503, retry_after="30"), False, 30),
        (refuse(529), True, None),
        (refuse(429, code="insufficient_quota"), False, None),
        (refuse(500), False, None),
        (refuse(400), False, None),
        (hang_up, False, None),
    ],
)
async def test_a_provider_that_did_no_work_may_be_asked_once_more(
    tmp_path: Path, script: Script, may_repeat: bool, seconds: float | None
) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = script
        error = await asked.error()
    assert (error.may_repeat, error.retry_after_seconds) == (may_repeat, seconds)


async def test_a_provider_that_failed_three_times_is_left_alone(tmp_path: Path) -> None:
    now = [0.0]
    async with asking(tmp_path, clock=replace(CLOCK, monotonic=lambda: now[0])) as asked:
        asked.provider.scripts.extend([refuse(500)] * 3)
        for _ in range(3):
            assert (await asked.error()).reason == "ProviderFailed"
        error = await asked.error()
        assert (error.reason, error.was_sent) == ("ProviderBusy", False)
        assert (error.retry_after_seconds, asked.client.ejected_seconds("acme")) == (1, 1)
        assert len(asked.provider.calls) == 3
        now[0] = 1.0
        await asked.whole()
        assert asked.client.ejected_seconds("acme") == 0
        state = asked.client.states["acme"]
        assert state.ended == {"ProviderFailed": 3, "ProviderBusy": 1, "": 1}


async def test_a_provider_that_asks_for_a_pause_gets_it(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = refuse(429, retry_after="30")
        assert (await asked.error()).retry_after_seconds == 30
        assert 29 < asked.client.ejected_seconds("acme") <= 30


async def test_a_key_that_is_refused_concerns_all_tenants(tmp_path: Path) -> None:
    now = [0.0]
    async with asking(tmp_path, clock=replace(CLOCK, monotonic=lambda: now[0])) as asked:
        asked.provider.scripts.extend([refuse(401)] * 3)
        for tenant in ("team-a", "team-b", "team-c"):
            with pytest.raises(OutsideError):
                await asked.whole(tenant=tenant)
        assert asked.client.ejected_seconds("acme", "team-d") == 1
        now[0] = 1.0
        await asked.whole(tenant="team-d")
        assert asked.client.ejected_seconds("acme") == 0


@pytest.mark.parametrize("script", [refuse(403), lambda call: call.whole(b"<html>", 403)])
async def test_a_tenant_that_is_forbidden_all_ejects_a_provider_for_itself_alone(
    tmp_path: Path, script: Script
) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.scripts.extend([script] * 3)
        for _ in range(3):
            assert (await asked.error()).reason == "ProviderRefused"
        assert (await asked.error()).reason == "ProviderBusy"
        await asked.whole(tenant="team-b")


async def test_a_model_that_is_not_permitted_ejects_a_provider_for_its_tenant_alone(
    tmp_path: Path,
) -> None:
    error = {"type": "permission_error", "message": "This key may not use the model."}
    async with asking(tmp_path) as asked:
        asked.provider.scripts.extend([lambda call: call.whole({"error": error}, 403)] * 3)
        for _ in range(3):
            assert (await asked.error()).reason == "ProviderKeyRefused"
        assert (await asked.error()).reason == "ProviderBusy"
        await asked.whole(tenant="team-b")


async def test_requests_that_cost_more_than_the_credit_eject_no_provider(tmp_path: Path) -> None:
    message = "This request requires more credits, or fewer max_tokens. You requested up to 9"
    async with asking(tmp_path) as asked:
        asked.provider.script = refuse(402, message)
        for _ in range(5):
            assert (await asked.error()).reason == "ProviderRefused"


async def test_a_trial_that_is_given_up_lets_the_next_tenant_try(tmp_path: Path) -> None:
    now = [0.0]
    async with asking(tmp_path, clock=replace(CLOCK, monotonic=lambda: now[0])) as asked:
        asked.provider.scripts.extend([refuse(401)] * 3 + [stall])
        for _ in range(3):
            await asked.error()
        now[0] = 1.0
        task = asyncio.create_task(asked.whole(body=STREAM))
        await asked.provider.has_calls(4)
        assert asked.client.ejected_seconds("acme", "team-b") == 1
        task.cancel()
        await asyncio.wait((task,))
        await asked.whole(tenant="team-b")


async def test_refusals_of_a_request_show_that_the_key_is_taken(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.scripts.extend([refuse(401), refuse(401), refuse(400), refuse(401)])
        for _ in range(4):
            await asked.error()
        assert asked.client.ejected_seconds("acme") == 0


async def test_requests_that_are_refused_eject_no_provider(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.provider.script = refuse(400)
        for _ in range(5):
            assert (await asked.error()).reason == "ProviderRefused"


async def test_a_lie_that_its_reader_sees_counts_as_a_failure(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        for _ in range(3):
            with pytest.raises(RequestError):
                async with asked.client.ask(asked.offered, CHAT, BODY, tenant=TENANT):
                    raise RequestError(RequestReason.INVALID_RESPONSE, "acme", "it lies")
        assert asked.client.ejected_seconds("acme") > 0


async def test_the_places_of_a_provider_are_shared_by_all_gateways(tmp_path: Path) -> None:
    async with asking(tmp_path, max_concurrent_requests=5) as asked:
        asked.client.gateways = 2
        asked.provider.script = say_nothing
        tasks = [asyncio.create_task(asked.whole()) for _ in range(2)]
        await asked.provider.has_calls(2)
        error = await asked.error()
        assert (error.reason, error.retry_seconds, error.was_sent) == ("ProviderBusy", 1, False)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        asked.provider.script = answer()
        await asked.whole()


async def test_a_provider_without_a_key_is_not_asked(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.keys.update([])
        error = await asked.error()
        assert (error.reason, error.was_sent) == ("ProviderKeyRefused", False)
        assert asked.provider.connections == 0


async def test_the_key_stands_in_no_error_no_log_and_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with asking(tmp_path, timeouts=SHORT) as asked:
        said = [repr(asked.client), repr(asked.keys), repr(asked.offered)]
        scripts = (refuse(500, KEY, KEY), refuse(400, KEY, KEY), hang_up, say_nothing, redirect)
        for script in scripts:
            asked.provider.script = script
            asked.client.retain(())
            error = await asked.error()
            said += [error.message, repr(error), repr(error.args), error.body().decode()]
            said += traceback.format_exception(error)
        asked.provider.key = None
        asked.client.retain(())
        said += traceback.format_exception(await asked.error())
    for text in (*said, caplog.text):
        assert KEY not in text


# Where it connects to.


async def test_an_address_that_is_not_allowed_gets_no_connection(tmp_path: Path) -> None:
    async with asking(tmp_path, allowed_ranges=(ip_network("10.0.0.0/8"),)) as asked:
        for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
            asked.client.retain(())
            offered = a_provider(f"https://{host}:{asked.provider.port}/v1")
            with pytest.raises(OutsideError) as raised:
                async with asked.client.ask(offered, CHAT, BODY, tenant=TENANT):
                    pass
            assert raised.value.reason == "ProviderUnreachable"
            assert "is not public" in raised.value.message
            assert not raised.value.was_sent
        assert asked.provider.connections == 0


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "a..b", "no.such.invalid"])
async def test_a_host_that_is_no_plain_name_is_not_reached(host: str) -> None:
    client = OutsideClient(provider_keys(), (), CLOCK, ssl.create_default_context())
    try:
        with pytest.raises(OutsideError) as raised:
            async with client.ask(a_provider(f"https://{host}/v1"), CHAT, BODY, tenant=TENANT):
                pass
    finally:
        await client.close()
    assert raised.value.reason == "ProviderUnreachable"


async def test_a_port_at_which_nothing_listens_may_be_asked_once_more(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked:
        asked.fields["base_url"] = "https://127.0.0.1:1/v1"
        error = await asked.error()
    assert (error.reason, error.may_repeat) == ("ProviderUnreachable", True)
    assert not error.was_sent
    assert "127.0.0.1" not in error.message


async def test_a_certificate_of_an_unknown_authority_is_not_accepted(tmp_path: Path) -> None:
    async with asking(tmp_path) as asked, Provider(tmp_path / "others") as other:
        asked.fields["base_url"] = other.base_url
        error = await asked.error()
        assert error.reason == "ProviderUnreachable"
        assert "its certificate is not accepted: " in error.message
        assert not error.was_sent
        assert other.calls == []


async def test_the_authorities_beside_a_key_are_trusted_in_place_of_others(tmp_path: Path) -> None:
    others = Provider(tmp_path / "others").authority.read_text()
    async with asking(tmp_path) as asked:
        own = asked.provider.authority.read_text()
        await asked.whole()
        asked.fields["secret"] = ProviderKey(name="acme", ca_key="ca.crt")
        for certificates in ({"ca.crt": "-----BEGIN no end"}, {"other": own}):
            asked.keys.update([trusting(certificates)])
            error = await asked.error()
            assert error.reason == "ProviderUnreachable"
            assert "no PEM certificates that can be read" in error.message
            assert not error.was_sent
        asked.keys.update([trusting({"ca.crt": own})])
        await asked.whole()
        # Another Secret changes nothing of it: its connection is used again.
        asked.keys.update([trusting({"ca.crt": own}), ProviderSecret(name="z", keys={})])
        await asked.whole()
        # The first connection trusted what the gateway trusts.
        assert (len(asked.provider.calls), asked.provider.connections) == (3, 2)
        asked.keys.update([trusting({"ca.crt": others})])
        assert "its certificate is not accepted: " in (await asked.error()).message


def trusting(authorities: dict[str, str]) -> ProviderSecret:
    return ProviderSecret(name="acme", keys={"key": KEY}, authorities=authorities)


async def test_a_connection_that_takes_too_long_sent_nothing(tmp_path: Path) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # It never answers the handshake.
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, asking(tmp_path, timeouts=SHORT) as asked:
        asked.fields["base_url"] = f"https://localhost:{port}/v1"
        error = await asked.error()
    assert (error.reason, error.may_repeat) == ("ProviderUnreachable", False)
    assert not error.was_sent
    assert "no connection in time" in error.message


@asynccontextmanager
async def a_proxy(status: int = 200) -> AsyncIterator[tuple[str, list[str]]]:
    """Run a proxy; give its URL, and the heads of the requests that it got."""
    heads = list[str]()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
        writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {status} X\r\n\r\n".encode())
        if status == 200:
            port = int(heads[-1].split()[1].rpartition(":")[2])
            answers, requests = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pass_on(reader, requests), pass_on(answers, writer))
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def test_a_proxy_gets_no_key_and_its_address_is_judged(tmp_path: Path) -> None:
    async with a_proxy() as (url, heads), asking(tmp_path, proxy_url=url) as asked:
        await asked.whole()
        assert asked.provider.calls[0].headers["authorization"] == f"Bearer {KEY}"
    (head,) = heads
    assert head.startswith(f"CONNECT localhost:{asked.provider.port} ")
    assert KEY not in head
    async with (
        a_proxy() as (url, heads),
        asking(tmp_path / "other", proxy_url=url, allowed_ranges=()) as asked,
    ):
        assert "is not public" in (await asked.error()).message
    assert heads == []


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[::ffff:a9fe:a9fe]", "2852039166", "0xa9fea9fe", "169.254.43518"]
)
async def test_a_proxy_is_asked_for_no_address_that_is_refused(tmp_path: Path, host: str) -> None:
    async with (
        a_proxy() as (url, heads),
        asking(tmp_path, proxy_url=url, base_url=f"https://{host}/v1") as asked,
    ):
        error = await asked.error()
    assert error.reason is RequestReason.PROVIDER_UNREACHABLE
    assert "its address is not public" in error.message
    assert not heads


async def test_a_proxy_that_refuses_is_named(tmp_path: Path) -> None:
    async with a_proxy(407) as (url, _), asking(tmp_path, proxy_url=url) as asked:
        error = await asked.error()
    assert (error.reason, error.was_sent) == ("ProviderUnreachable", False)
    assert "its proxy answered with status 407" in error.message


async def test_proxies_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with asking(tmp_path) as asked:
        await asked.whole()
