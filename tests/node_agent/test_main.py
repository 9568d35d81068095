import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from tessera.node_agent import main
from tessera.node_agent.reconcile import NodeAgent
from tessera.ports import OwnLayout

ROOT = Path(__file__).parents[2]


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tessera.node_agent.main"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "operator"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "tessera-node: invalid environment: node_name: Field required"),
        ({"TESSERA_NODE_NAME": "gpu-1", "KUBECONFIG": "/nowhere"}, "tessera-node: /nowhere: "),
    ],
)
def test_an_invalid_environment_is_reported_in_a_line(
    environment: dict[str, str], message: str
) -> None:
    process = run(**environment)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("part", ["reconcile", "wait_for_change"])
async def test_an_agent_outlives_a_defect_of_a_cycle_and_of_its_watch(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_WATCH_RETRY_SECONDS", 0.001)
    agent = _Agent()
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise KeyError("defect")
        agent.stop.set()

    setattr(agent, part, call)
    async with asyncio.timeout(60):
        await main._reconcile_loop(  # what `run` ends with
            cast("NodeAgent", agent), cast("OwnLayout", agent), 0.001, main.AgentHeartbeat()
        )
    assert calls > 3


class _Agent:
    """An agent, and the layout that it watches."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()

    async def reconcile(self) -> None:
        pass

    async def wait_for_change(self) -> None:
        await asyncio.sleep(0.001)

    def invalidate_layout(self) -> None:
        pass
