"""Start a world from a program, and act on it beyond the Kubernetes API."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tessera
from fakevolume.faulty_volume import set_error
from world import binaries
from world.binaries import Progress
from world.errors import WorldError, require_linux
from world.folders import DEFAULT_FLEET, HERE, SCRAPE_TOKEN
from world.supervisor import FACTS, READY

END_SECONDS = 60
ASK_SECONDS = 30
LAST_CHARACTERS = 2000


class RunningContainer(NamedTuple):
    """A container that runs just now; a coroutine has no process of its own."""

    namespace: str
    pod: str
    container: str
    node: str
    pid: int | None
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A world that is ready."""

    folder: Path
    pid: int
    kubeconfig: Path
    prometheus_url: str
    control_url: str
    binaries: Path
    audit_log: Path
    """One JSON object per line: who wrote what."""

    def scrape_headers(self) -> dict[str, str]:
        """Headers by which its Prometheus may read the operator's metrics."""
        token = (self.folder / SCRAPE_TOKEN).read_text()
        return {"Authorization": f"Bearer {token}"}

    def binary(self, name: str) -> Path:
        """A program of the world: kubectl, helm, prometheus, ..."""
        path = self.binaries / name
        if not path.exists():
            raise WorldError(f"the world has no program {name}")
        return path

    def containers(self) -> list[RunningContainer]:
        return [
            RunningContainer(**container)
            for container in json.loads(self._request("GET", "containers"))
        ]

    def kill(self, namespace: str, pod: str, container: str) -> None:
        """End a container at once: SIGKILL for a process, a cancel for a coroutine."""
        self._request("POST", "containers", namespace, pod, container, "kill")

    def run_out_of_memory(self, namespace: str, pod: str, container: str) -> None:
        """End a container as the kernel does when it takes more memory than it may."""
        self._request("POST", "containers", namespace, pod, container, "oom")

    def pause(self, namespace: str, pod: str, container: str) -> None:
        """Send SIGSTOP to a container that is a process: it keeps its connections and files."""
        self._request("POST", "containers", namespace, pod, container, "pause")

    def resume(self, namespace: str, pod: str, container: str) -> None:
        self._request("POST", "containers", namespace, pod, container, "resume")

    def silence(self, node: str) -> None:
        """Disconnect a node's kubelet from the API; its containers go on."""
        self._request("POST", "nodes", node, "silence")

    def wake(self, node: str) -> None:
        """Bring a silent node back, or boot one that was ended."""
        self._request("POST", "nodes", node, "wake")

    def end_node(self, node: str) -> None:
        """Let a node die with all its containers; its object stays until it is deleted."""
        self._request("POST", "nodes", node, "end")

    def node_group(self, name: str) -> dict[str, Any]:
        """How the machines of a group come, those that come and those that are there."""
        state: dict[str, Any] = json.loads(self._request("GET", "node-groups", name))
        return state

    def change_node_group(self, name: str, **changes: object) -> None:
        """How its machines come from now on: `arrival="Never"`, `start_seconds=5`, ..."""
        self._request("POST", "node-groups", name, **changes)

    def disrupt_node(self, node: str) -> None:
        """Consolidate a node of a group, unless an annotation keeps it."""
        self._request("POST", "nodes", node, "disrupt")

    def take_back(self, node: str, *, by: str, seconds: float) -> None:
        """Give the notice of a spot node, and end the node after so many seconds.

        `by` is how the cluster learns of it: `awsNodeTerminationHandler`, `karpenter`, `gke` or
        `aks`.
        """
        self._request("POST", "nodes", node, "notice", by=by, seconds=seconds)

    def gpus(self, node: str) -> list[dict[str, Any]]:
        """The GPUs of a node as they are: mode, and slices with their places."""
        gpus: list[dict[str, Any]] = json.loads(self._request("GET", "gpus", node))
        return gpus

    def compute(self, node: str, device: str, process: str, *, begin: bool = True) -> None:
        """Begin or end a process outside any pod on a GPU or slice, given by its UUID."""
        act = "attach" if begin else "detach"
        self._request("POST", "gpus", node, act, device=device, process=process)

    def fail(self, node: str, call: str, code: str, times: int = 1) -> None:
        """Let the next calls of a function of the driver fail, `IN_USE` or so."""
        self._request("POST", "gpus", node, "fail", call=call, code=code, times=times)

    def lose_gpu(self, node: str, gpu: int) -> None:
        """Let a GPU fall off the bus (XID 79): no device of it is offered any more."""
        self._request("POST", "gpus", node, "lose", gpu=gpu, lost=True)

    def repair_gpu(self, node: str, gpu: int) -> None:
        self._request("POST", "gpus", node, "lose", gpu=gpu, lost=False)

    def clear_slices(self, node: str) -> None:
        """Take away all slices that are not in use, as a reset of the GPUs does."""
        self._request("POST", "gpus", node, "clear")

    def restart_driver(self, node: str) -> None:
        """Load the driver of the GPUs again: their energy counters begin at 0."""
        self._request("POST", "gpus", node, "restart")

    def device_plugin(self, node: str, *, start_seconds: float, stop_seconds: float = 0.0) -> None:
        """How late its device plugin comes and goes; real ones take 10 to 60 s."""
        self._request(
            "POST",
            "device-plugins",
            node,
            start_seconds=start_seconds,
            stop_seconds=stop_seconds,
        )

    def fail_writes(self, folder: Path, error: str | None) -> None:
        """Answer writes of batch runners to a volume with `EROFS` or so; None ends that."""
        set_error(folder, error)

    def mig_manager(self, node: str, **switches: bool | float) -> None:
        """Its pace, where 1 is the real one, and its edges: `stuck=True`, `fails=2`, ..."""
        self._request("POST", "mig-managers", node, **switches)

    def mig_config(self, node: str) -> str:
        """What its mig-manager can read of the ConfigMap by now; empty before it has arrived."""
        try:
            return self._request("GET", "mig-managers", node).decode()
        except WorldError:
            return ""

    def end_program(self, name: str) -> None:
        """SIGKILL a program of the world (`etcd`, `kube-apiserver`, ...); it stays away."""
        self._request("POST", "programs", name, "end")

    def start_program(self, name: str) -> None:
        """Start it again as it was, with all that it had stored."""
        self._request("POST", "programs", name, "start")

    def pause_program(self, name: str) -> None:
        """Send SIGSTOP: the program keeps its connections and answers no request."""
        self._request("POST", "programs", name, "pause")

    def resume_program(self, name: str) -> None:
        self._request("POST", "programs", name, "resume")

    def _request(self, method: str, *parts: str, **body: object) -> bytes:
        path = "/".join(urllib.parse.quote(part, safe="") for part in parts)
        request = urllib.request.Request(  # noqa: S310
            f"{self.control_url}/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ASK_SECONDS) as response:  # noqa: S310
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise WorldError(error.read().decode()) from error
        except OSError as error:
            raise WorldError(f"the world in {self.folder} does not answer: {error}") from error


@contextlib.contextmanager
def start(
    fleet: Path | None = None,
    name: str | None = None,
    keep: bool = False,
    progress: Progress = print,
    vllm: Path | None = None,
) -> Iterator[World]:
    """A world for the time of the block, and no longer than this process lives.

    With `keep` it stays until `python -m world down --name NAME`.
    """
    require_linux()
    binaries.ensure(progress, binaries.EVERY_WORLD)
    supervisor = _supervise(fleet or DEFAULT_FLEET, name, keep, vllm)
    with contextlib.ExitStack() as undo:
        undo.callback(_end, supervisor)
        folder = _ready(supervisor, progress)
        undo.pop_all()
    if keep:
        # Not waited for: the process outlives this program from here on.
        supervisor.returncode = 0
        yield read(folder)
        return
    try:
        yield read(folder)
        ended = supervisor.poll() is not None
    finally:
        _end(supervisor)
    if ended:
        raise WorldError(f"the world ended too early; its log ends:\n{_log_end(folder)}")


def read(folder: Path) -> World:
    """Return the world of a folder, from the facts that it wrote."""
    try:
        facts = json.loads((folder / FACTS).read_text())
    except FileNotFoundError as error:
        raise WorldError(f"no world is ready in {folder}") from error
    return World(
        folder=folder,
        pid=facts["pid"],
        kubeconfig=Path(facts["kubeconfig"]),
        prometheus_url=facts["prometheusUrl"],
        control_url=facts["controlUrl"],
        binaries=Path(facts["binaries"]),
        audit_log=Path(facts["auditLog"]),
    )


def _supervise(
    fleet: Path, name: str | None, keep: bool, vllm: Path | None
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "world", "run", "--quiet", "--fleet", str(fleet)]
    command += ["--name", name] if name else []
    command += ["--vllm", str(vllm)] if vllm else []
    command += [] if keep else ["--lifeline"]
    sources = f"{HERE.parent}{os.pathsep}{Path(tessera.__file__).parents[1]}"
    environment = {
        "PYTHONPATH": sources,
        "PYTHONUNBUFFERED": "1",
        # Its gRPC server would go on in every child until that becomes its program, and end it
        # where the child's descriptors are closed first.
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        # The other end of its standard input is the lifeline: the kernel closes it when this
        # process is gone, however it went.
        stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _ready(supervisor: subprocess.Popen[str], progress: Progress) -> Path:
    """The folder of the world, once it is ready; its last words, if it never is."""
    assert supervisor.stdout is not None
    output: list[str] = []
    with supervisor.stdout as lines:
        for line in lines:
            if line.startswith(READY):
                return Path(line.removeprefix(READY).strip())
            output.append(line.rstrip())
            progress(output[-1])
    raise WorldError("\n".join(["the world did not start:", *output[-20:]]))


def _log_end(folder: Path) -> str:
    log = folder / "logs" / "world.log"
    return log.read_text()[-LAST_CHARACTERS:] if log.exists() else f"({log} is gone)"


def _end(supervisor: subprocess.Popen[str]) -> None:
    if supervisor.stdin is not None:
        supervisor.stdin.close()
    else:
        supervisor.terminate()
    try:
        supervisor.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()
