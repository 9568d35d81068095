"""Services behind a gate: a suite, engines that answer it, and clients that stream meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from demo.cluster import Json
from scenarios.actions import ScenarioNamespace
from scenarios.streams import stream_completion
from tessera.cli.gate.starter import starter_rows
from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from world.api import CONFIG_MAPS
from world.testing import eventually

GATE = "answers"
GATE_ROLE_LABEL = "tessera.dev/gate-role"
PROMPTS_A_STRATUM = 40
# A step of the engine: a suite takes some ten seconds, so that a scene can end a Job within it.
_STEP_SECONDS = 0.02
# A busy machine makes any version slow, which no scene is about.
_SLO = {"ttftP95": "60s", "itlP95": "10s"}
_STREAM_TOKENS = 60
_CONFIG_MAP = "chat-suite"
_KEY = "suite.jsonl"


@dataclass(frozen=True, slots=True)
class GatedNamespace:
    """A namespace with a gate, and the file from which its engines answer the suite."""

    namespace: ScenarioNamespace
    answers: Path

    async def apply_gate(self, **spec: Any) -> None:
        """Write the suite, and the gate that has it."""
        api, name = self.namespace.cluster.api, self.namespace.name
        suite = "\n".join(starter_rows(0, PROMPTS_A_STRATUM))
        self.answers.write_text(suite, encoding="utf-8")
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": _CONFIG_MAP, "namespace": name},
            "data": {_KEY: suite},
        }
        await api.apply(CONFIG_MAPS.path(name, _CONFIG_MAP), body, "kubectl")
        gate = {
            "apiVersion": QUALITY_GATES.api_version,
            "kind": QUALITY_GATES.kind,
            "metadata": {"name": GATE, "namespace": name},
            "spec": {"suite": {"configMap": {"name": _CONFIG_MAP, "key": _KEY}}, **spec},
        }
        await api.apply(QUALITY_GATES.path(name, GATE), gate, "kubectl")

    async def apply_service(self, answers: Mapping[str, Any], **spec: Any) -> None:
        """Apply the gated service, whose engines answer so much of the suite wrongly."""
        given = {"file": str(self.answers), **answers}
        env = {
            "TESSERA_SIM_ANSWERS": json.dumps(given),
            "TESSERA_SIM_SPEED": json.dumps({"weights": _STEP_SECONDS}),
        }
        await self.namespace.apply_service(
            rollout={"strategy": "Gated", "gateRef": GATE},
            slo=_SLO,
            podTemplate={"env": [{"name": name, "value": value} for name, value in env.items()]},
            **spec,
        )

    async def gate_status(self) -> Json:
        gate = await self.namespace.cluster.api.get(QUALITY_GATES.path(self.namespace.name, GATE))
        status: Json = gate.get("status", {})
        return status

    async def engine_pods(self) -> dict[str, Json]:
        """Return the pods of engines that are not terminating, by uid."""
        return {
            pod["metadata"]["uid"]: pod
            for pod in await self.namespace.list_objects(PODS)
            if "deletionTimestamp" not in pod["metadata"]
            and pod["spec"]["containers"][0]["name"] == "engine"
        }

    async def wait_for_candidate(self, stable: set[str]) -> Json:
        """Wait until a pod that is not of the stable version has started; return it."""

        async def has_started() -> Json:
            pods = await self.engine_pods()
            others = [pod for uid, pod in pods.items() if uid not in stable]
            assert len(others) == 1, sorted(pods)
            statuses = others[0].get("status", {}).get("containerStatuses", [])
            assert any(each["ready"] for each in statuses), others[0].get("status")
            return others[0]

        return await eventually(has_started)

    async def wait_for_job(self, role: str) -> Json:
        """Wait until a pod asks one of the two versions; return it."""

        async def runs() -> Json:
            pods = [
                pod
                for pod in await self.namespace.list_objects(PODS)
                if pod["metadata"].get("labels", {}).get(GATE_ROLE_LABEL) == role
                and pod.get("status", {}).get("phase") == "Running"
            ]
            assert len(pods) == 1, [pod["metadata"]["name"] for pod in pods]
            return pods[0]

        return await eventually(runs)

    async def wait_for_record(self, reason: str) -> Json:
        """Wait until the last change ended for a reason; return its record."""

        async def has_ended() -> Json:
            status = await self.namespace.service_status()
            records = status.get("rollouts", [])
            assert [each["reason"] for each in records[:1]] == [reason], status
            record: Json = records[0]
            return record

        return await eventually(has_ended)

    async def templates(self) -> dict[str, Json]:
        """Return the pod templates of the Deployments by name."""
        return {
            body["metadata"]["name"]: body["spec"]["template"]
            for body in await self.namespace.list_objects(DEPLOYMENTS)
        }


@dataclass(slots=True)
class StreamEnds:
    """How the streams of clients ended."""

    finished: int = 0
    broken: list[str] = field(default_factory=list)


@asynccontextmanager
async def streaming(
    namespace: ScenarioNamespace, service: str = "chat", clients: int = 4
) -> AsyncIterator[StreamEnds]:
    """Stream all the time of the block, and let the last streams end after it."""
    ref = namespace.ref(service)
    base = await namespace.cluster.address(ref)
    ends, ended = StreamEnds(), asyncio.Event()

    async def stream() -> None:
        while not ended.is_set():
            try:
                end = await stream_completion(base, ref.name, _STREAM_TOKENS)
            except httpx.HTTPError as error:
                ends.broken.append(repr(error))
                await asyncio.sleep(0.2)
                continue
            if end == (_STREAM_TOKENS, "length"):
                ends.finished += 1
            else:
                ends.broken.append(str(end))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(stream())
        try:
            yield ends
        finally:
            ended.set()
