"""Where requests went and why, as `tessera explain request` shows it."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer, unused_port

from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError
from tessera.cli.explain.request import report
from tessera.cli.gateway_port import get
from tessera.domain.explain.request import (
    JoinedExplanations,
    RequestExplanation,
    RequestExplanations,
)
from tessera.domain.gateway.directory import model_changes
from tessera.domain.gateway.prefixes import PromptBlocks
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.pick import Exclusion, PickReason
from tessera.gateway.fleet.other_gateways import OtherGateways
from tessera.gateway.fleet.replicas import Replicas, SentRequest
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.settle.recent import MAX_EXPLAINED, RecentRequests
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.ports import ClusterError
from tests.cli.test_usage import NAMESPACE, NO_OTHERS, TokenApi, review
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.store.builders import a_record
from tests.gateway_builders import a_request

PAGE = Path(__file__).parents[2] / "docs" / "tasks" / "explain.md"
STEP = StepTime(weights=0.01, token=1e-4, kv_token=1e-8)
SYSTEM = "The answers of this assistant are short and polite. " * 120
BODY = {**CHAT, "messages": [{"role": "system", "content": SYSTEM}]}


def an_answer(prompt_tokens: int, cached_tokens: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    return {**COMPLETION, "usage": usage}


@asynccontextmanager
async def serving(*engines: ScriptedEngine, **changes: Any) -> AsyncIterator[RunningGateway]:
    async with AsyncExitStack() as stack:
        replicas = []
        for number, engine in enumerate(engines):
            await stack.enter_async_context(engine)
            name = f"chat-{number}"
            replicas.append(a_replica(engine.address, name, step_time=STEP, **changes))
        yield await stack.enter_async_context(a_gateway(a_directory(a_model(*replicas))))


def only(explanations: RequestExplanations) -> RequestExplanation:
    (request,) = explanations.requests
    return request


async def test_a_request_is_explained_by_what_each_replica_had_of_it() -> None:
    cached = iter((0, 1500))

    async def script(call: EngineCall) -> None:
        await call.whole(an_answer(2000, next(cached)))

    async with serving(ScriptedEngine(script), ScriptedEngine(script)) as gateway:
        for name in ("first", "second"):
            assert (await gateway.post(BODY, **{"x-request-id": name})).status == 200
        first, second = only(gateway.app.explain("first")), only(gateway.app.explain("second"))
        unknown = gateway.app.explain("third")
    chosen = first.attempts[0].replica
    assert first.attempts[0].reason is PickReason.LEAST_PREDICTED_TTFT
    (attempt,) = second.attempts
    best, other = attempt.replicas
    assert (attempt.replica, attempt.reason) == (chosen, PickReason.CACHED_PREFIX)
    assert (best.replica, other.cached_tokens) == (chosen, 0)
    assert best.cached_share is not None
    assert best.cached_share > 0.9
    assert best.predicted_ttft_seconds is not None
    assert other.predicted_ttft_seconds is not None
    assert best.predicted_ttft_seconds < other.predicted_ttft_seconds / 2
    assert (second.phase, second.status, second.cached_tokens) == (Phase.COMPLETED, 200, 1500)
    # The engine had evicted a part of what it was believed to have.
    assert 300 < second.uncached_prefix_tokens <= 500
    assert (unknown.requests, unknown.kept_requests) == ((), 2)


async def test_replicas_that_were_tried_or_had_no_room_say_so() -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def script(call: EngineCall) -> None:
        if call.headers["x-request-id"] == "long":
            arrived.set()
            await release.wait()
        if call.headers["x-request-id"] == "broken" and not broken:
            broken.append(call)
            call.cut()
            return
        await call.whole(COMPLETION)

    broken = list[EngineCall]()
    engines = [ScriptedEngine(script) for _ in range(3)]
    async with serving(*engines, max_num_seqs=1) as gateway:
        long = [
            asyncio.create_task(gateway.post(CHAT, **{"x-request-id": "long"})) for _ in range(2)
        ]
        await arrived.wait()
        assert (await gateway.post(CHAT, **{"x-request-id": "broken"})).status == 200
        release.set()
        await asyncio.gather(*long)
        request = only(gateway.app.explain("broken"))
        twice = gateway.app.explain("long").requests
    failed, answered = request.attempts
    assert failed.failure == RequestReason.STREAM_BROKEN
    assert (answered.failure, request.reason) == (None, answered.reason)
    excluded = {each.replica: each.excluded for each in answered.replicas}
    assert excluded[failed.replica] is Exclusion.TRIED
    assert excluded[answered.replica] is None
    # Clients may repeat an id: the newest comes first.
    assert [each.started_at for each in twice] == sorted(
        (each.started_at for each in twice), reverse=True
    )
    assert len(twice) == 2


class Fleet:
    """A service whose replicas get requests that end at once."""

    def __init__(self, replicas: int) -> None:
        names = [f"chat-{number}" for number in range(replicas)]
        self._model = a_model(*(a_replica("127.0.0.1:1", name, step_time=STEP) for name in names))
        self._replicas = Replicas()
        changes = model_changes((), (self._model,))
        self._replicas.update(changes, 100.0, datetime(2026, 11, 22, tzinfo=UTC))

    def send(self, attempts: int = 1) -> list[SentRequest]:
        """Send a request to so many replicas, of which the last one answers."""
        prompt = PromptBlocks(
            owner="team-a", hashes=range(900, 904), tokens_per_block=256.0, prompt_tokens=1200
        )
        shape = replace(a_request(1200), prompt=prompt)
        sent = list[SentRequest]()
        for _ in range(attempts):
            states = self._replicas.untried(
                self._model, shape, [each.choice.replica.uid for each in sent]
            )
            request = self._replicas.send(self._model, shape, 100.0, states)
            assert request is not None
            sent.append(request)
        for failed in sent[:-1]:
            failed.failure = RequestReason.ENGINE_UNREACHABLE
            failed.end()
        sent[-1].answered(20, None)
        sent[-1].end()
        return sent


def full_record(number: int, tenant: str = "team-a") -> UsageRecord:
    """Return a record whose texts are as long as a client can make them."""
    return a_record(
        record_id=f"{number:040}",
        request_id=f"{number:0128}",
        tenant=tenant,
        tags=f"{number:0256}",
        trace_parent=f"{number:055}",
        client_address=f"{number:039}",
        started_at_ns=10**18 + number,
    )


@pytest.mark.parametrize(("replicas", "most_attempts"), [(1, 1), (4, 3), (64, 3)])
def test_what_is_kept_has_a_bound_in_bytes_and_one_tenant_does_not_displace_others(
    replicas: int, most_attempts: int
) -> None:
    most = 300_000
    recent = RecentRequests(most)
    fleet = Fleet(replicas)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    recent.add(full_record(0, "team-b"), fleet.send())
    for number in range(300):
        attempts = fleet.send(1 + number % most_attempts)
        recent.add(full_record(number), attempts)
        del attempts
        assert recent.size <= most
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.9 * most < recent.size
    assert recent.explain(f"{0:0128}").requests[0].tenant == "team-b"
    assert not recent.explain(f"{1:0128}").requests
    assert recent.explain(f"{299:0128}").requests
    assert after - before <= recent.size, after - before


def test_requests_of_others_with_its_id_do_not_hide_a_request() -> None:
    recent, fleet = RecentRequests(), Fleet(replicas=1)
    for number, tenant in enumerate(("team-a", *("team-b",) * 9)):
        record = a_record(request_id="same", tenant=tenant, started_at_ns=10**18 + number)
        recent.add(record, fleet.send())
    explained = recent.explain("same").requests
    assert [each.tenant for each in explained] == ["team-b"] * 5 + ["team-a"]


def test_of_very_many_tenants_with_one_id_the_newest_request_of_each_comes_first() -> None:
    recent, fleet = RecentRequests(), Fleet(replicas=1)
    for number in range(3 * MAX_EXPLAINED):
        tenant = f"team-{number % MAX_EXPLAINED}"
        record = a_record(request_id="same", tenant=tenant, started_at_ns=10**18 + number)
        recent.add(record, fleet.send())
    explained = recent.explain("same").requests
    assert len({each.tenant for each in explained}) == len(explained) == MAX_EXPLAINED


async def test_only_a_reader_gets_it_and_the_command_prints_it() -> None:
    recent, fleet = RecentRequests(), Fleet(replicas=3)
    for number in range(7):
        record = a_record(
            request_id=f"request-{number}",
            reason=PickReason.LEAST_PREDICTED_TTFT,
            service="team-a/chat",
            model="chat",
            input_tokens=1188,
            cached_tokens=0,
            uncached_prefix_tokens=1014,
        )
        recent.add(record, fleet.send(2 if number == 3 else 1))

    class Requests:
        def running(self, limit: int) -> Any:
            raise AssertionError(limit)

        def explain(self, request_id: str) -> RequestExplanations:
            return recent.explain(request_id)

    store: Any = None
    api = InternalApi(
        GatewayMetrics(), store, review, NAMESPACE, dict, Requests(), others=NO_OTHERS
    )
    async with TestServer(api.application()) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("/explanations"))
        name = "request-3"
        async with session.get(url, params={"request": name}) as refused:
            assert (refused.status, await refused.json()) == (401, {"error": "no bearer token"})
        answer = await get(Reader(TokenApi()), NAMESPACE, url, {"request": name})
        unknown = await get(Reader(TokenApi()), NAMESPACE, url, {"request": "x"})
    text = report(name, JoinedExplanations(**answer), "text").text
    assert text in PAGE.read_text(encoding="utf-8")
    with pytest.raises(CommandError, match=r"keep 7 requests .*access log"):
        report("x", JoinedExplanations(**unknown), "text")


class Known:
    """Requests that one gateway sent."""

    def __init__(self, *names: str) -> None:
        self._recent, fleet = RecentRequests(), Fleet(replicas=2)
        for name in names:
            record = a_record(request_id=name, reason=PickReason.ONLY_REPLICA, tenant=names[0])
            self._recent.add(record, fleet.send(1))

    def running(self, limit: int) -> Any:
        raise AssertionError(limit)

    def explain(self, request_id: str) -> RequestExplanations:
        return self._recent.explain(request_id)


async def test_whichever_gateway_is_asked_all_of_them_answer() -> None:
    store: Any = None
    pods = {"gateway-2": "127.0.0.3", "gateway-gone": "127.0.0.4"}

    async def find() -> Mapping[str, str]:
        return pods

    port = unused_port()
    async with AsyncExitStack() as stack:
        for address, known in (("127.0.0.2", Known("a", "b")), ("127.0.0.3", Known("c", "b"))):
            others = OtherGateways(find, port)
            api = InternalApi(
                GatewayMetrics(), store, review, NAMESPACE, dict, known, others=others
            )
            server = TestServer(api.application(), host=address, port=port)
            await stack.enter_async_context(server)
        url = f"http://127.0.0.2:{port}/explanations"

        async def ask(name: str) -> JoinedExplanations:
            answer = await get(Reader(TokenApi()), NAMESPACE, url, {"request": name})
            return JoinedExplanations(**answer)

        both, elsewhere, unknown = await ask("b"), await ask("c"), await ask("x")
    assert [request.tenant for request in elsewhere.requests] == ["c"]
    assert sorted(request.tenant for request in both.requests) == ["a", "c"]
    assert (both.kept_requests, both.silent_gateways) == (4, ("gateway-gone",))
    assert "Note: gateway pod gateway-gone gave no answer" in report("b", both, "text").text
    with pytest.raises(CommandError, match=r"no gateway pod .*answer: gateway-gone"):
        report("x", unknown, "text")


async def test_a_gateway_that_cannot_find_the_others_says_so() -> None:
    async def find() -> Mapping[str, str]:
        raise ClusterError("the API server does not answer")

    answers = await OtherGateways(find, 1).explain("a", "Bearer x")
    assert answers == {"all others (the API server does not answer)": None}


def test_each_call_of_a_route_says_its_target_and_who_was_skipped() -> None:
    recent = RecentRequests()
    routed = {"request_id": "r", "model_route": "team-a/assistant"}
    skipped = "small=EngineFailed,medium=QueueFull"
    recent.add(a_record(**routed, target="small", target_reason="RuleMatched", requests=0), ())
    recent.add(
        a_record(**routed, target="large", target_reason="Fallback", skipped_targets=skipped), ()
    )
    known = recent.explain("r")
    lines = report("r", JoinedExplanations(**known.model_dump()), "text").text.splitlines()
    assert sorted(line.strip() for line in lines if "route " in line) == [
        "route team-a/assistant, target large: Fallback (small: EngineFailed, medium: QueueFull)",
        "route team-a/assistant, target small: RuleMatched",
    ]
