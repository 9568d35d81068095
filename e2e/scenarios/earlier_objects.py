"""Records what Tessera 0.1 leaves in a cluster: `python -m scenarios.earlier_objects`.

A world with the chart, the CRDs and the operator of 0.1 serves models of several kinds and runs a
batch; then all objects that an operator reads are written, one a line, with the date. Tests of
cycles begin from them.
"""

import asyncio
import json
from pathlib import Path

from demo.cluster import EXAMPLES, ROOT, InstalledCluster, Json
from scenarios.actions import SMALL, ScenarioNamespace, a_budget
from scenarios.conftest import FLEET
from scenarios.test_upgrade import install_earlier
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.resources.api_resources import CLAIMS, KINDS
from world import start
from world.api import connect
from world.kubelet.images import EARLIER_TESSERA
from world.testing import eventually

OBJECTS = ROOT / "tests" / "reconcile" / f"objects-of-{EARLIER_TESSERA}.jsonl"
_TENANT, _ROWS = "team-a", 20
# What a service of each kind asks for, besides its model.
_SERVICES: dict[str, Json] = {
    "fixed": {"replicas": 2},
    "scaled": {"scaling": {"minReplicas": 1, "maxReplicas": 3}},
    "asleep": {"scaling": {"minReplicas": 0, "maxReplicas": 1, "idle": {"after": "30s"}}},
    "labelled": {"replicas": 1, "podTemplate": {"annotations": {"example.org/scrape": "true"}}},
    "shared": {"replicas": 1, "access": {"public": True, "aliases": ["gpt"]}},
    "tier": {"replicas": 1, "placement": {"tiers": ["OnDemand"]}},
}


async def record() -> None:
    with start(fleet=FLEET) as world:
        async with connect(world.kubeconfig) as api:
            cluster = InstalledCluster(world, api, print)
            await install_earlier(cluster)
            await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
            await api.create("/api/v1/namespaces", {"metadata": {"name": _TENANT}})
            namespace = ScenarioNamespace(cluster, _TENANT)
            async with a_budget(namespace, "100000"):
                for name, spec in _SERVICES.items():
                    await namespace.apply_service(name, **spec)
                await _run_batch(namespace)
                for name in _SERVICES.keys() - {"asleep"}:
                    await namespace.wait_until_ready(name)
                await namespace.wait_for_condition("asleep", "Ready", "ScaledToZero")
                await _write(namespace)


async def _run_batch(namespace: ScenarioNamespace) -> None:
    run, api = namespace.cluster.run, namespace.cluster.api
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": _TENANT},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    await api.apply(CLAIMS.path(_TENANT, "data"), claim, "kubectl")

    async def folder() -> Path:
        volume = (await api.get(CLAIMS.path(_TENANT, "data")))["spec"].get("volumeName")
        assert volume is not None
        path = "--output=jsonpath={.spec.hostPath.path}"
        return Path(await run("kubectl", "get", "pv", volume, path))

    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Tile"}]}
    row = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    rows = [json.dumps({"custom_id": f"row-{number}", **row}) for number in range(_ROWS)]
    await asyncio.to_thread((await eventually(folder) / "in.jsonl").write_text, "\n".join(rows))
    batch = {
        "apiVersion": BATCH_INFERENCES.api_version,
        "kind": BATCH_INFERENCES.kind,
        "metadata": {"name": "night", "namespace": _TENANT},
        "spec": {
            "claimName": "data",
            "input": "in.jsonl",
            "output": "out.jsonl",
            "model": {"uri": SMALL},
        },
    }
    await api.apply(BATCH_INFERENCES.path(_TENANT, "night"), batch, "kubectl")
    await run(
        *("kubectl", "wait", "--namespace", _TENANT, "batchinference/night"),
        *("--for=condition=Complete", "--timeout=5m"),
    )


async def _write(namespace: ScenarioNamespace) -> None:
    objects = list[tuple[str, Json]]()
    for kind in KINDS:
        path = kind.path(_TENANT)
        if await namespace.cluster.api.exists(path):
            for body in (await namespace.cluster.api.get(path))["items"]:
                body["metadata"].pop("managedFields", None)
                objects.append((kind.plural, body))
    dates = [body["metadata"]["creationTimestamp"] for _, body in objects]
    lines: list[Json] = [{"recorded": max(dates), "tessera": EARLIER_TESSERA}]
    lines += [{"plural": plural, "body": body} for plural, body in objects]
    text = "".join(f"{json.dumps(line, sort_keys=True)}\n" for line in lines)
    # Volumes are folders of the machine that records.
    text = text.replace(str(namespace.cluster.world.folder), "/volumes")
    await asyncio.to_thread(OBJECTS.write_text, text, "utf-8")


if __name__ == "__main__":
    asyncio.run(record())
