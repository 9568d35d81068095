"""The programs below a world can be ended, started, paused and resumed, and the world lives on."""

import asyncio
from pathlib import Path

import pytest

import world as worlds
from world.api import connect
from world.errors import WorldError
from world.testing import a_pod, eventually, fresh_namespace

pytestmark = pytest.mark.world


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes:\n- {name: control, kind: cpu}\n")
    return fleet


@pytest.mark.full
async def test_a_world_outlives_its_api_server_etcd_and_prometheus(fleet: Path) -> None:
    with worlds.start(fleet=fleet) as world:
        async with connect(world.kubeconfig) as api, fresh_namespace(api) as namespace:
            # Under load the node may be unreachable for a moment; its pods have to stay.
            await namespace.start_pod(a_pod("before", tolerations=[{"operator": "Exists"}]))
            pids_before = {container.pod: container.pid for container in world.containers()}

            async def api_is_ready() -> None:
                assert await api.exists("/readyz")

            for name in ("kube-apiserver", "etcd", "prometheus"):
                world.end_program(name)
                with pytest.raises(WorldError, match=f"no program {name} runs"):
                    world.end_program(name)
                world.start_program(name)
                await eventually(api_is_ready, within=120)
            world.pause_program("etcd")
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(2):
                        await namespace.create(a_pod("meanwhile"))
            finally:
                world.resume_program("etcd")

            await eventually(api_is_ready, within=120)
            # A heart-beat that hung with etcd is given up after 30 seconds, and the node is out.
            await namespace.start_pod(a_pod("after"), within=120)
            await namespace.wait_until_ready("before", within=120)
            pids_after = {container.pod: container.pid for container in world.containers()}
            assert pids_after["before"] == pids_before["before"], "the container was not restarted"
