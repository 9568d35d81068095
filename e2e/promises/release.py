"""A release is upgraded and uninstalled, and the models go on."""

import asyncio
from collections.abc import Iterable
from fnmatch import fnmatchcase

from demo.cluster import NAMESPACE, InstalledCluster, Ref
from demo.load import steady_load
from demo.serve import chat
from demo.streams import streaming
from promises.installation import PATIENCE_SECONDS, install_release
from scenarios.actions import ScenarioNamespace
from scenarios.streams import TOKENS, stream_completion, wait_for_replicas
from scenarios.test_upgrade import (
    BUILDER,
    NEXT,
    list_pod_uids,
    list_pre_stop_seconds,
    run_update,
)
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from world.api import PODS
from world.testing import eventually

_ENGINES = "app.kubernetes.io/component=engine"
# What docs/tasks/uninstall.md and docs/tasks/usage.md name, beside the models and their pools.
_DOCUMENTED = (
    "CustomResourceDefinition *.tessera.dev",
    "APIService v1alpha1.tessera.dev",
    "Namespace tessera-system",
    "Namespace tessera-system-keys",
    "Secret tessera-system-keys/tessera-keys-*",
    "Secret tessera-system/tessera-webhook",
    "Lease tessera-system/tessera-operator",
    "ConfigMap tessera-system/tessera-spend",
    "PersistentVolumeClaim tessera-system/tessera-gateway",
)


async def upgrade(namespace: ScenarioNamespace) -> None:
    """An upgraded operator restarts no pod until the update is requested, and loses no request."""
    cluster = namespace.cluster
    ref = await namespace.apply_service(replicas=2)
    await wait_for_replicas(namespace, 2, within=PATIENCE_SECONDS)
    await namespace.wait_for_condition(
        "chat", "UpdateAvailable", "UpToDate", within=PATIENCE_SECONDS
    )
    old_uids = await list_pod_uids(namespace)
    base = await cluster.address(ref)

    async def is_updated() -> None:
        await namespace.check_condition("chat", "UpdateAvailable", "UpToDate")
        await namespace.check_condition("chat", "Progressing", "RolloutComplete")
        assert await list_pre_stop_seconds(namespace) == [6]
        assert old_uids & await list_pod_uids(namespace) == set()

    cluster.say("helm upgrade")
    await install_release(cluster, NEXT)
    await namespace.wait_for_condition(
        *("chat", "UpdateAvailable", "NewTemplateAvailable", PATIENCE_SECONDS),
        words=(f"builder version {BUILDER + 1} instead of {BUILDER}",),
    )
    cluster.say("the next operator leads")
    assert await list_pod_uids(namespace) == old_uids
    assert await list_pre_stop_seconds(namespace) == [5]
    assert await _restarted_engines(cluster) == []

    streams = [asyncio.create_task(stream_completion(base, ref.name)) for _ in range(2)]
    async with steady_load(base, ref.name, clients=2, tokens=40, pause=0.2) as load:
        await asyncio.wait(streams, timeout=1)
        await run_update(namespace, "chat")
        await eventually(is_updated, within=PATIENCE_SECONDS)
    assert await asyncio.gather(*streams) == [(TOKENS, "length")] * 2
    assert load.failures == []
    assert load.finished > 0


async def uninstall(namespace: ScenarioNamespace) -> None:
    """Without Tessera its models go on answering, and no more of it is left than is documented."""
    cluster = namespace.cluster
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready(within=PATIENCE_SECONDS)
    # The operator itself may remove replicas of the others while it is there.
    fixed = [
        ref
        for ref, service in await cluster.services()
        if service["spec"].get("replicas") and service.get("status", {}).get("readyReplicas")
    ]
    uids = await _engine_uids(cluster, fixed)

    async def no_more_is_left() -> None:
        assert (await cluster.api.get(PODS.path(NAMESPACE)))["items"] == []
        names = await _names_with_tessera(cluster)
        assert [
            name for name in names if not any(fnmatchcase(name, pattern) for pattern in _DOCUMENTED)
        ] == []

    async with streaming({ref.name: await cluster.address(ref)}, tokens=100) as streams:
        cluster.say("helm uninstall")
        await cluster.run("helm", "uninstall", "tessera", "--namespace", NAMESPACE, "--wait")
        cluster.say("Tessera is gone")
        for each in fixed:
            await chat(cluster, each, each.name)
    assert streams.broken == []
    assert await _engine_uids(cluster, fixed) == uids
    await eventually(no_more_is_left, within=PATIENCE_SECONDS)


async def _restarted_engines(cluster: InstalledCluster) -> list[str]:
    """Return the pods whose engine was started again."""
    pods = await cluster.api.get(PODS.path(), labelSelector=_ENGINES)
    return [
        pod["metadata"]["name"]
        for pod in pods["items"]
        if any(status["restartCount"] for status in pod["status"].get("containerStatuses", ()))
    ]


async def _engine_uids(cluster: InstalledCluster, refs: Iterable[Ref]) -> dict[str, str]:
    """Return the UIDs of the pods of services, by name."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for ref in refs
        for pod in (
            await cluster.api.get(
                PODS.path(ref.namespace), labelSelector=f"tessera.dev/service={ref.name}"
            )
        )["items"]
    }


async def _names_with_tessera(cluster: InstalledCluster) -> list[str]:
    """Return the objects with Tessera in their names, but those of its kinds and of models."""
    output = await cluster.run("kubectl", "api-resources", "--verbs=list", "--output=name")
    kinds = [
        kind
        for kind in output.split()
        if kind.partition(".")[0] not in ("componentstatuses", "endpoints", "events")
        and not kind.endswith(".tessera.dev")
    ]
    columns = "KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name"
    rows = await cluster.run(
        *("kubectl", "get", ",".join(kinds), "--all-namespaces", "--no-headers"),
        f"--output=custom-columns={columns}",
    )
    batches = await cluster.api.get(BATCH_INFERENCES.path(None))
    of_models = {ref.namespace for ref, _ in await cluster.services()}
    of_models |= {batch["metadata"]["namespace"] for batch in batches["items"]}
    return [
        f"{kind} {name}" if namespace == "<none>" else f"{kind} {namespace}/{name}"
        for kind, namespace, name in (row.split() for row in rows.splitlines())
        if "tessera" in name and namespace not in of_models
    ]
