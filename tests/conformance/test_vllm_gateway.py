"""Clients through a gateway before a real vLLM on the CPU."""

import asyncio
from pathlib import Path

import pytest

from tests.clients import openai_scenes as scenes
from tests.clients.openai_scenes import Endpoint
from tests.clients.running import offered
from tests.clients.test_other_clients import play_client
from tests.conformance import engines
from tests.conformance.configurations import MODEL, PLAIN
from tests.gateway.harness import KEY, a_directory
from tests.gateway.test_gateway_process import a_process

pytestmark = pytest.mark.vllm


async def test_clients_get_from_a_real_engine_what_they_get_from_a_simulated_one(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    async with (
        engines.running(engines.real(venv), str(model), PLAIN, tmp_path) as engine,
        a_process(tmp_path, a_directory(offered(engine, MODEL))) as gateway,
    ):
        endpoint = Endpoint(url=gateway.url, key=KEY, model=MODEL, engine=engine)
        await asyncio.to_thread(scenes.chat_synchronously, endpoint)
        await scenes.chat_whole_and_streamed(endpoint)
        await scenes.complete_several_prompts(endpoint)
        await scenes.send_a_request_id(endpoint)
        await scenes.leave_a_stream(endpoint)
        await scenes.make_mistakes(endpoint)


@pytest.mark.parametrize("client", ["langchain", "litellm"])
async def test_other_clients_get_what_they_expect_of_a_real_engine(
    client: str, venv: Path, model: Path, tmp_path: Path
) -> None:
    async with engines.running(engines.real(venv), str(model), PLAIN, tmp_path) as engine:
        await play_client(client, offered(engine, MODEL, "chat"), tmp_path)
