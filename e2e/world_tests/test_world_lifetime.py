"""Worlds start quickly, run side by side, and leave nothing behind."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tessera
import world as worlds
from world import WorldError, client
from world.api import Api, connect
from world.folders import HERE
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    container_status,
    eventually,
    fresh_namespace,
)

pytestmark = pytest.mark.world
SOURCES = f"{HERE.parent}:{Path(tessera.__file__).parents[1]}"

STARTER = """
import sys
import world
with world.start(name="orphan", progress=lambda _: None) as orphan:
    print(orphan.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with the programs of the real one."""
    real = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera" / "bin"
    (tmp_path / "tessera").mkdir()
    (tmp_path / "tessera" / "bin").symlink_to(real)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def processes_of(folder: Path) -> dict[int, str]:
    """Return the command lines of processes with the folder in command line or environment."""
    command_lines = {}
    for process in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            line = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line + environment:
            command_lines[int(process.name)] = line.replace(b"\0", b" ").decode()
    return command_lines


@contextmanager
def start_in_process(cache: Path) -> Iterator[tuple["subprocess.Popen[str]", worlds.World]]:
    """Run a program that starts a world and then waits."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cache), "PYTHONPATH": SOURCES}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        env=environment | {"XDG_CACHE_HOME": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        try:
            yield process, client.read(folder)
        finally:
            process.kill()


async def wait_until_nothing_runs(cache: Path) -> None:
    async def nothing_runs() -> None:
        assert processes_of(cache) == {}

    await eventually(nothing_runs, within=180)


async def run_process_family(world: worlds.World) -> None:
    """Run a pod whose processes have children, one of them in a session of its own."""
    script = "setsid sleep 1000 & sh -c 'sleep 1000; true' & sleep 1000; true"
    pod = a_pod("family", a_container(script))
    async with connect(world.kubeconfig) as api:
        await WorldNamespace(api, "default").start_pod(pod)


async def test_nothing_is_left_when_the_starter_is_killed(cache: Path) -> None:
    with start_in_process(cache) as (process, world):
        await run_process_family(world)

        async def family_runs() -> None:
            assert len(processes_of(cache)) >= 10

        await eventually(family_runs)
        process.send_signal(signal.SIGKILL)
        process.wait()

        await wait_until_nothing_runs(cache)
    assert not world.folder.exists()


async def test_nothing_is_left_when_the_supervisor_is_killed(cache: Path) -> None:
    with start_in_process(cache) as (process, world):
        await run_process_family(world)
        os.kill(world.pid, signal.SIGKILL)

        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        await wait_until_nothing_runs(cache)


def test_a_world_of_the_command_outlives_its_starter_until_it_is_taken_down(cache: Path) -> None:
    def run_world(*words: str) -> str:
        line = [sys.executable, "-m", "world", *words]
        environment = os.environ | {"PYTHONPATH": SOURCES}
        return subprocess.run(
            line, env=environment, capture_output=True, text=True, check=True, timeout=300
        ).stdout

    output = run_world("up", "--name", "kept")
    assert f"export KUBECONFIG={cache}/tessera/worlds/kept/kubeconfig" in output
    world = client.read(cache / "tessera" / "worlds" / "kept")
    assert world.containers() is not None

    run_world("down", "--name", "kept")

    assert processes_of(cache) == {}
    assert not world.folder.exists()


@pytest.mark.full
def test_an_interrupt_ends_a_world_in_the_foreground(cache: Path) -> None:
    environment = os.environ | {"PYTHONPATH": SOURCES}
    with subprocess.Popen(
        [sys.executable, "-m", "world", "run", "--name", "front"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("ready: ") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 0

    assert processes_of(cache) == {}
    assert not (cache / "tessera" / "worlds" / "front").exists()


@pytest.mark.full
async def test_two_worlds_run_side_by_side(api: Api, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes: [{name: alone, kind: cpu}]")
    started_at = time.monotonic()
    with worlds.start(fleet=fleet) as second:
        print(f"a second world was ready after {time.monotonic() - started_at:.1f} s")
        async with connect(second.kubeconfig) as other_api:
            other_pod = await WorldNamespace(other_api, "default").start_pod(a_pod("web"))
            async with fresh_namespace(api) as namespace:
                pod = await namespace.start_pod(a_pod("web"))

    assert other_pod["spec"]["nodeName"] == "alone"
    network, other_network = (
        web_pod["status"]["podIP"].rsplit(".", 2)[0] for web_pod in (pod, other_pod)
    )
    assert network != other_network


@pytest.mark.smoke
def test_a_world_name_is_used_once(world: worlds.World) -> None:
    with (
        pytest.raises(WorldError, match="runs already"),
        worlds.start(name=world.folder.name, progress=lambda _: None),
    ):
        pass


def test_a_wrong_fleet_file_stops_the_start_with_its_reason(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes: [{name: a, kind: gpu}]")

    with (
        pytest.raises(WorldError, match=r"fleet\.yaml: nodes\[0\]\.gpus: a node of kind gpu"),
        worlds.start(fleet=fleet, progress=lambda _: None),
    ):
        pass


@pytest.mark.full
def test_a_world_whose_part_died_says_which_one(cache: Path) -> None:
    with pytest.raises(WorldError, match="etcd ended with -9"):
        _lose_etcd(cache)

    assert (cache / "tessera" / "worlds" / "poor" / "logs").exists()


def _lose_etcd(cache: Path) -> None:
    with worlds.start(name="poor", progress=lambda _: None) as world:
        poll = select.poll()
        poll.register(watched := os.pidfd_open(world.pid), select.POLLIN)
        etcd = next(pid for pid, line in processes_of(cache).items() if "/etcd --" in line)
        os.kill(etcd, signal.SIGKILL)
        assert poll.poll(180_000)
        os.close(watched)


@pytest.mark.full
async def test_a_real_vllm_is_started_with_what_a_cpu_needs(cache: Path) -> None:
    program = cache / "venv" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"; env | grep VLLM_ | sort; exit 1\n')
    program.chmod(0o755)
    container = a_container("m --port 8000", terminationMessagePolicy="FallbackToLogsOnError")
    pod = a_pod(
        "engine", container | {"image": "tessera.dev/vllm-cpu:0.32.0"}, restartPolicy="Never"
    )

    with worlds.start(vllm=cache / "venv", progress=lambda _: None) as world:
        async with connect(world.kubeconfig) as api:
            ended_pod = await WorldNamespace(api, "default").run_pod(pod)

    address = ended_pod["status"]["podIP"]
    assert container_status(ended_pod)["state"]["terminated"]["message"].splitlines() == [
        f"serve m --port 8000 --enforce-eager --num-gpu-blocks-override 64 --host {address}",
        "VLLM_CPU_CI_ENV=1",
        "VLLM_CPU_KVCACHE_SPACE=1",
        "VLLM_NO_USAGE_STATS=1",
    ]
