"""What the steps of a demo use: a world, the installed chart, the applied examples."""

import asyncio
import contextlib
import json
import os
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from demo.recorded import BillLine, Moment
from world import World
from world.api import Api

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tessera"
EXAMPLES = ROOT / "examples"
SCRIPTS = Path(sysconfig.get_path("scripts"))
NAMESPACE = "tessera-system"
PORT = 8000
_LOOK_SECONDS = 0.2

Json = dict[str, Any]
Say = Callable[[str], None]


class StepError(Exception):
    """A step of a demo failed; the text says what was observed."""


@dataclass(frozen=True, slots=True)
class Ref:
    """One InferenceService."""

    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class Notebook:
    """What scenes write down for the report of their run."""

    begun: float = field(default_factory=time.time)
    """Unix time."""
    moments: list[Moment] = field(default_factory=list)
    mosaics: list[str] = field(default_factory=list)
    """SVG documents, before and after."""
    bill: tuple[BillLine, ...] = ()

    @property
    def seconds(self) -> float:
        """Return the seconds since the begin."""
        return time.time() - self.begun

    @property
    def started(self) -> str:
        """Return the begin as a time in UTC, such as 2026-11-28T12:00:00Z."""
        return datetime.fromtimestamp(self.begun, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def mark(self, text: str) -> None:
        """Note that something happens now."""
        self.moments.append(Moment(round(self.seconds, 1), text))


@dataclass(frozen=True, slots=True)
class InstalledCluster:
    """A world with Tessera in it."""

    world: World
    api: Api
    say: Say
    notebook: Notebook = field(default_factory=Notebook)

    async def service(self, ref: Ref) -> Json:
        return await self.api.get(_path("inferenceservices", ref))

    async def services(self) -> list[tuple[Ref, Json]]:
        listed = await self.api.get("/apis/tessera.dev/v1alpha1/inferenceservices")
        services = [
            (Ref(service["metadata"]["namespace"], service["metadata"]["name"]), service)
            for service in listed["items"]
        ]
        return sorted(services, key=lambda pair: str(pair[0]))

    async def address(self, ref: Ref) -> str:
        """Base URL of a service: its cluster IP, since only pods find Services by name."""
        body = await self.api.get(f"/api/v1/namespaces/{ref.namespace}/services/{ref.name}")
        return f"http://{body['spec']['clusterIP']}:{PORT}"

    async def patch(self, ref: Ref, spec: Json) -> None:
        await self.api.patch(_path("inferenceservices", ref), {"spec": spec})

    async def run(self, program: str, *arguments: str) -> str:
        """Run kubectl or helm as a user of this world would; its output."""
        return await self._run(self.world.binary(program), *arguments)

    async def tessera(self, *arguments: str) -> str:
        """Run `kubectl tessera` as a user of this world would; return its output."""
        return await self._run(SCRIPTS / "tessera", *arguments)

    async def _run(self, program: Path, *arguments: str) -> str:
        environment = os.environ | {
            "KUBECONFIG": str(self.world.kubeconfig),
            "HELM_CACHE_HOME": str(self.world.folder / "helm"),
            "HELM_CONFIG_HOME": str(self.world.folder / "helm"),
            "HELM_DATA_HOME": str(self.world.folder / "helm"),
        }
        process = await asyncio.create_subprocess_exec(
            str(program),
            *arguments,
            env=environment,
            # Ctrl-C at the terminal is for this process alone, which then ends its children.
            process_group=0,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await communicate(process)
        if process.returncode:
            raise StepError(f"{program.name} {' '.join(arguments)}: {output.decode().strip()}")
        return output.decode()


async def communicate(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Return what a process wrote; one that is given up is ended, and leaves no pipe open."""
    try:
        return await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        raise


async def install(cluster: InstalledCluster, *values: str, chart: Path = CHART) -> None:
    """Install or upgrade the chart with Helm, as on any cluster; `values` are `name=value`.

    The gateway runs where they enable it.
    """
    defaults = (f"prometheus.url={cluster.world.prometheus_url}", "gateway.enabled=false")
    await cluster.run(
        *("helm", "upgrade", "--install", "tessera", str(chart)),
        *("--namespace", NAMESPACE, "--create-namespace"),
        *("--set", ",".join((*defaults, *values))),
    )
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tessera-operator"

    async def available() -> Json:
        status: Json = (await cluster.api.get(path)).get("status", {})
        return status

    await until(
        available, lambda status: status.get("availableReplicas"), "the operator is up", 180
    )


async def fund(
    cluster: InstalledCluster, name: str, *namespaces: str, amount: str = "100000"
) -> None:
    """Give namespaces a budget for a month, as the platform does."""
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "TenantBudget",
        "metadata": {"name": name},
        "spec": {
            "owner": "platform@example.org",
            "tenant": {"namespaces": list(namespaces)},
            "limits": [{"window": "Month", "amount": amount}],
        },
    }
    await cluster.api.apply(f"/apis/tessera.dev/v1alpha1/tenantbudgets/{name}", body, "kubectl")


async def apply_examples(cluster: InstalledCluster) -> None:
    """`kubectl apply -f examples/`."""
    await cluster.run("kubectl", "apply", "-f", str(EXAMPLES))


async def clear(cluster: InstalledCluster) -> None:
    """Delete all services and batches, and wait until their hardware is free."""
    for kind in ("inferenceservices", "batchinferences"):
        await cluster.run("kubectl", "delete", kind, "--all", "--all-namespaces", "--wait")

    async def left() -> list[str]:
        engines = "app.kubernetes.io/component=engine"
        pods = await cluster.api.get("/api/v1/pods", labelSelector=engines)
        return [pod["metadata"]["name"] for pod in pods["items"]]

    await until(left, lambda names: not names, "all engines have ended", 300)


async def until(
    read: Callable[[], Any], holds: Callable[[Any], object], what: str, within: float
) -> Any:
    """Poll until it holds; the failure shows the last state.

    On a machine on which several processes wait for each processor it may take so many times as
    long.
    """
    last_value: Any = None
    within *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    try:
        async with asyncio.timeout(within):
            while not holds(last_value := await read()):
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        if isinstance(last_value, dict) and "metadata" in last_value:
            # They are longer than all that says something.
            last_value["metadata"].pop("managedFields", None)
        shown = json.dumps(last_value, indent=1, default=str)[-3000:]
        raise StepError(f"not within {within:.0f} s: {what}; seen last: {shown}") from None
    return last_value


async def all_ready(
    cluster: InstalledCluster, within: float = 300, namespace: str | None = None
) -> None:
    """Wait until every service, or each of a namespace, is Ready; report each once."""
    begun, reported = time.monotonic(), set()

    async def waiting() -> list[str]:
        left = []
        for ref, service in await cluster.services():
            if namespace not in (None, ref.namespace):
                continue
            status = condition(service, "Ready")
            if status.get("status") == "True":
                if ref not in reported:
                    where = service["status"]["variant"]["name"]
                    cluster.say(f"{ref} answers on {where} after {time.monotonic() - begun:.0f} s")
                    reported.add(ref)
            else:
                left.append(f"{ref}: {status.get('reason')}: {status.get('message')}")
        return left

    await until(waiting, lambda left: not left, "every service is Ready", within)


def condition(service: Json, kind: str) -> Json:
    """One condition of a service; empty when there is none yet."""
    conditions = service.get("status", {}).get("conditions", [])
    return next((entry for entry in conditions if entry["type"] == kind), {})


def _path(plural: str, ref: Ref) -> str:
    return f"/apis/tessera.dev/v1alpha1/namespaces/{ref.namespace}/{plural}/{ref.name}"
