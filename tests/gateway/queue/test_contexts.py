"""Requests of a model whose replicas take prompts of different lengths."""

import asyncio
import json

import pytest

from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
TOO_LONG = {"error": {"message": "maximum context length is 8192 tokens", "code": 400}}


async def whole(call: EngineCall) -> None:
    await call.whole(COMPLETION)


async def too_long(call: EngineCall) -> None:
    await call.whole(TOO_LONG, status=400)


def a_prompt(words: int, **fields: object) -> dict[str, object]:
    """Return a chat of about as many tokens by the estimate, since a word has three bytes."""
    return {**CHAT, "messages": [{"role": "user", "content": "ab " * words}], **fields}


async def test_a_request_goes_where_its_prompt_and_answer_fit() -> None:
    engines = ScriptedEngine(whole), ScriptedEngine(whole)
    async with asyncio.timeout(WAIT_SECONDS), engines[0] as small, engines[1] as large:
        model = a_model(
            a_replica(small.address, "small", max_model_len=8192),
            a_replica(large.address, "large", max_model_len=32_768),
            max_model_len=32_768,
        )
        async with a_gateway(a_directory(model)) as gateway:
            for _ in range(4):
                long_prompt = await gateway.post(a_prompt(9000))
                long_answer = await gateway.post(a_prompt(100, max_tokens=8150))
                for answer in (long_prompt, long_answer):
                    assert answer.headers["x-tessera-replica"] == "large"
            for _ in range(2):
                assert (await gateway.post(a_prompt(100))).status == 200
    assert (len(small.calls), len(large.calls)) == (1, 9)


async def test_a_prompt_of_more_tokens_than_estimated_is_sent_on_to_the_longer_context() -> None:
    engines = ScriptedEngine(too_long), ScriptedEngine(whole)
    async with asyncio.timeout(WAIT_SECONDS), engines[0] as small, engines[1] as large:
        replicas = (
            a_replica(small.address, "small", max_model_len=8192),
            a_replica(large.address, "large", max_model_len=32_768, max_num_seqs=1),
        )
        model = a_model(*replicas, max_model_len=32_768)
        async with a_gateway(a_directory(model)) as gateway:
            answer = await gateway.post(a_prompt(7000))
            assert (answer.status, answer.headers["x-tessera-replica"]) == (200, "large")
            small.script = large.script = too_long
            answer = await gateway.post(a_prompt(7000))
            assert (answer.status, json.loads(answer.body)) == (400, TOO_LONG)
            assert (len(small.calls), len(large.calls)) == (2, 2)
        # Of one length no other replica takes more.
        equal = a_model(replicas[0], max_model_len=8192)
        async with a_gateway(a_directory(equal)) as gateway:
            assert (await gateway.post(a_prompt(7000))).status == 400
            assert len(small.calls) == 3


async def test_the_list_of_models_says_the_longest_context() -> None:
    known = a_model(max_model_len=32_768)
    headers = {"authorization": f"Bearer {KEY}"}
    for model, context in ((known, {"max_model_len": 32_768}), (a_model(), {})):
        async with a_gateway(a_directory(model)) as gateway:
            url = f"{gateway.url}/v1/models"
            async with gateway.client.get(url, headers=headers) as response:
                (listed,) = (await response.json())["data"]
        assert listed == {
            "id": "chat",
            "object": "model",
            "created": 0,
            "owned_by": "tessera",
            **context,
        }


async def test_a_request_passes_one_that_waits_for_a_longer_context() -> None:
    answering = asyncio.Event()

    async def busy(call: EngineCall) -> None:
        await answering.wait()
        await whole(call)

    engines = ScriptedEngine(whole), ScriptedEngine(busy)
    async with asyncio.timeout(WAIT_SECONDS), engines[0] as small, engines[1] as large:
        model = a_model(
            a_replica(small.address, "small", max_model_len=8192),
            a_replica(large.address, "large", max_model_len=32_768, max_num_batched_tokens=512),
            max_model_len=32_768,
        )
        async with a_gateway(a_directory(model)) as gateway, asyncio.TaskGroup() as tasks:
            long_prompts = [tasks.create_task(gateway.post(a_prompt(9000))) for _ in range(3)]
            await gateway.wait_for_queue(2)
            assert (await gateway.post(a_prompt(100))).headers["x-tessera-replica"] == "small"
            assert gateway.queued_requests == 2
            answering.set()
        replicas = [task.result().headers["x-tessera-replica"] for task in long_prompts]
        assert replicas == ["large"] * 3


async def test_what_a_replica_does_not_take_wants_none_of_its_places() -> None:
    async def hanging(call: EngineCall) -> None:
        await call.gone.wait()

    engines = ScriptedEngine(hanging), ScriptedEngine(hanging)
    async with asyncio.timeout(WAIT_SECONDS), engines[0] as small, engines[1] as large:
        model = a_model(
            a_replica(small.address, "small", max_model_len=8192, max_num_seqs=1),
            a_replica(large.address, "large", max_model_len=32_768, max_num_seqs=1),
            max_model_len=32_768,
        )
        async with a_gateway(a_directory(model)) as gateway:
            sending = [
                asyncio.create_task(gateway.post(a_prompt(9000, max_tokens=9))) for _ in range(3)
            ]
            await gateway.wait_for_queue(1)
            (queue,) = gateway.admission.queues
            wanted = {
                state.replica.pod.name: queue.wants(state)
                for state in gateway.admission.replicas.states(model)
            }
            assert wanted == {"small": False, "large": True}
            for each in sending:
                each.cancel()
