"""Conversations whose turns come to any of several gateways, which tell each other nothing."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.owners import GatewayPeers
from tests.gateway.harness import CHAT, RunningGateway, a_directory, a_gateway, a_model, a_replica
from tests.lab.sim.running import running

pytestmark = pytest.mark.anyio
STEP = StepTime(weights=0.01, token=1e-4, kv_token=1e-8)
PEERS = GatewayPeers(count=2, secret=bytes(range(32)))


@asynccontextmanager
async def gateways(peers: GatewayPeers = PEERS) -> AsyncIterator[list[RunningGateway]]:
    """Run two gateways of the same three replicas."""
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(3):
            engine = await stack.enter_async_context(
                running("--enable-prompt-tokens-details", "--served-model-name=chat")
            )
            address = engine.url.removeprefix("http://")
            replicas.append(a_replica(address, f"chat-{number}", step_time=STEP))
        directory = a_directory(a_model(*replicas))
        pods = [await stack.enter_async_context(a_gateway(directory)) for _ in range(2)]
        for pod in pods:
            pod.admission.replicas.peers = peers
        # Gateways that had the same requests choose alike by chance, as equal replicas take turns.
        await pods[0].post(CHAT)
        await pods[0].take_record()
        yield pods


async def converse(pods: list[RunningGateway], name: str, turns: int) -> list[UsageRecord]:
    """Ask in a conversation, each turn at the next gateway, and return the records."""
    messages, records = list[dict[str, str]](), []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn} of {name}. " * 60})
        pod = pods[turn % len(pods)]
        answer = await pod.post({**CHAT, "max_tokens": 2, "stream": True, "messages": messages})
        assert answer.status == 200, answer.body
        records.append(await pod.take_record())
        messages.append({"role": "assistant", "content": f"Answer {turn} to {name}. " * 60})
    return records


async def test_turns_that_come_to_any_gateway_stay_at_one_replica() -> None:
    async with gateways() as pods:
        owners = set[str | None]()
        for name in "abcdefgh":
            records = await converse(pods, name, turns=4)
            (owner,) = {record.replica for record in records}
            owners.add(owner)
            # The prompt of the turn before was there, whichever gateway it came to.
            assert all(each.cached_tokens > 0.5 * each.input_tokens for each in records[2:])
    assert len(owners) > 1


async def test_a_document_that_both_gateways_are_asked_about_is_read_once() -> None:
    document = {"role": "system", "content": "A long report about rivers and lakes. " * 400}
    async with gateways() as pods:
        records = []
        for number in range(6):
            question = {"role": "user", "content": f"What does chapter {number} say?"}
            pod = pods[number % 2]
            await pod.post({**CHAT, "max_tokens": 2, "messages": [document, question]})
            records.append(await pod.take_record())
    assert len({record.replica for record in records}) == 1
    assert all(record.cached_tokens > 0.9 * record.input_tokens for record in records[1:])
