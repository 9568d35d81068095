"""What is done to engines, and what kubectl and `tessera explain` tell of it."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo.stage import NAMESPACE, Json, Stage
from scenarios.actions import Place
from scenarios.commands import explained
from tessera.domain.names import PORT
from tessera.resources.api_resources import PODS
from world.testing import eventually

# How long an engine may stand still here; two minutes by default.
STALL_SECONDS = 8
# Under which topic a condition is explained, where it is not its own.
_TOPICS = {"Progressing": "rollout", "Placed": "placed", "Ready": "ready"}
_PRODUCT = "NVIDIA-A100-SXM4-80GB"


def fleet(folder: Path) -> Path:
    """A fleet file: a node for the operator, and two with four small slices each."""
    gpus = {"product": _PRODUCT, "tier": "Reserved", "cloud": "aws", "gpus": [["1g.10gb"] * 4]}
    nodes = [{"name": "control", "kind": "cpu"}, {"name": "a100", "count": 2, **gpus}]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    return path


async def be_impatient(stage: Stage) -> None:
    """The operator waits for a stalled engine as long as a test can."""
    where = ("kubectl", "--namespace", NAMESPACE)
    deployment = "deployment/tessera-operator"
    await stage.run(*where, "set", "env", deployment, f"TESSERA_STALL_SECONDS={STALL_SECONDS}")
    await stage.run(*where, "rollout", "status", deployment, "--timeout=60s")


@dataclass(frozen=True, slots=True)
class Told:
    """One condition as it is printed."""

    status: str
    reason: str
    message: str


async def printed(place: Place, jsonpath: str, name: str = "chat") -> str:
    """What `kubectl get tsvc -o jsonpath=...` prints."""
    return await place.stage.run(
        *("kubectl", "--namespace", place.namespace, "get", "tsvc", name),
        *("--output", f"jsonpath={jsonpath}"),
    )


async def until_told(
    place: Place, reason: str, kind: str = "Progressing", within: float = 40
) -> Told:
    """Wait until kubectl prints a condition with this reason."""
    return await eventually(
        lambda: told_now(place, kind), lambda told: told.reason == reason, within=within
    )


async def until_both_tell(
    place: Place, reason: str, kind: str = "Progressing", within: float = 40
) -> Told:
    """The same, and `tessera explain` says it in the same words."""
    await until_told(place, reason, kind, within)

    async def both() -> tuple[Told, Json]:
        decisions = await explained(place)
        return await told_now(place, kind), decisions[_TOPICS.get(kind, kind)]

    def alike(told: Told, decision: Json) -> bool:
        said = decision["reason"], decision["message"]
        return (reason, told.message) == said and told.reason == reason

    told, _ = await eventually(both, lambda found: alike(*found), within=20)
    return told


async def told_now(place: Place, kind: str = "Progressing") -> Told:
    """A condition as kubectl prints it at this moment."""
    one = f'.status.conditions[?(@.type=="{kind}")]'
    path = "{'\\n'}".join(f"{{{one}.{field}}}" for field in ("status", "reason", "message"))
    status, reason, message = [*(await printed(place, path)).split("\n", 2), "", ""][:3]
    return Told(status, reason, message)


async def until_printed(place: Place, jsonpath: str, wanted: str, within: float = 60) -> None:
    await eventually(lambda: printed(place, jsonpath), lambda text: text == wanted, within=within)


async def replicas(place: Place) -> list[Json]:
    """The pods that are not on their way out, in the order of their names."""
    found = [one for one in await place.all(PODS) if "deletionTimestamp" not in one["metadata"]]
    return sorted(found, key=lambda one: str(one["metadata"]["name"]))


async def freeze(pod: Json, model: str) -> "asyncio.Task[str]":
    """Let an engine stand still that has taken steps, and send it a request, which will hang.

    The task is over once the request's connection is cut; its result says how.
    """
    base = f"http://{pod['status']['podIP']}:{PORT}"
    async with httpx.AsyncClient(base_url=base, timeout=10) as http:
        answer = await http.post("/v1/completions", json=_request(model))
        answer.raise_for_status()
        (await http.post("/sim/freeze")).raise_for_status()
    return asyncio.create_task(_hang(base, model))


async def _hang(base: str, model: str) -> str:
    async with httpx.AsyncClient(base_url=base, timeout=180) as http:
        try:
            answer = await http.post("/v1/completions", json=_request(model))
        except httpx.HTTPError as error:
            return type(error).__name__
    return answer.text


def _request(model: str) -> Json:
    return {"model": model, "prompt": "a", "max_tokens": 4}
