"""LangChain and LiteLLM as clients of the gateway, each in an environment of its own."""

import asyncio
import os
from pathlib import Path

import pytest

from environments import environment
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import OfferedModel
from tests.clients.running import CHAT, EMBEDDINGS, offered, simulators
from tests.clients.tool_engine import scripted_tools
from tests.gateway.harness import (
    KEY,
    ScriptedEngine,
    a_directory,
    a_model,
    a_replica,
    an_api_key,
)
from tests.gateway.test_gateway_process import a_process

pytestmark = [pytest.mark.anyio, pytest.mark.full]
LIMITED = "tsk-limited"


@pytest.mark.parametrize("client", ["langchain", "litellm"])
async def test_every_scene_of_the_client_passes(client: str, tmp_path: Path) -> None:
    async with simulators(tmp_path, CHAT) as (chat,):
        await play_client(client, offered(chat, "chat"), tmp_path)


async def play_client(client: str, chat: OfferedModel, folder: Path) -> None:
    """Run all scenes of a client; only `chat` has another engine than the simulator."""
    python = await asyncio.to_thread(environment, client) / "bin" / "python"
    limited = an_api_key(
        LIMITED, name="limited", limits=RateLimitsSpec(requests=PeriodLimits(per_day=1))
    )
    async with (
        simulators(folder, EMBEDDINGS) as (embeddings,),
        ScriptedEngine(scripted_tools) as tools,
    ):
        directory = a_directory(
            chat,
            offered(embeddings, "embeddings"),
            a_model(a_replica(tools.address), names=("tools",), uid="uid-tools"),
            keys=(an_api_key(), limited),
        )
        async with a_process(folder, directory) as gateway:
            output = await run_scene(client, python, gateway.url)
    print(output)
    assert output.splitlines()[-1] == "chat_asynchronously"


async def run_scene(client: str, python: Path, url: str) -> str:
    """Run the scenes of a client, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(Path(__file__).with_name(f"{client}_scene.py")),
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "URL": url,
            "KEY": KEY,
            "LIMITED_KEY": LIMITED,
            # Neither asks others for prices or traces.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LANGSMITH_TRACING": "false",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
