"""The operator restores any field that it applies, on any kind of child, within five seconds."""

import time
from typing import Any

import pytest

from demo.cluster import Json
from scenarios.actions import ScenarioNamespace
from scenarios.fields import owned_fields, owned_values, pointer, value_at
from tessera.api.api_resource import ApiResource
from tessera.resources.api_resources import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    POD_MONITORS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from world.api import ApiError
from world.testing import eventually

WITHIN = 30.0
# Without `--full` each so many fields only.
SAMPLED_EACH = 3
# The API server's answers to edits that make no valid object.
REFUSALS = (400, 403, 409, 422)
KINDS = pytest.mark.parametrize(
    "kind",
    [
        DEPLOYMENTS,
        pytest.param(SERVICES, marks=pytest.mark.full),
        pytest.param(SERVICE_ACCOUNTS, marks=pytest.mark.full),
        pytest.param(NETWORK_POLICIES, marks=pytest.mark.full),
        pytest.param(DISRUPTION_BUDGETS, marks=pytest.mark.full),
        pytest.param(POD_MONITORS, marks=pytest.mark.full),
    ],
    ids=lambda kind: kind.kind,
)
POD_MONITOR_CRD: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            }
                        },
                    }
                },
            }
        ],
    },
}


async def create_child(namespace: ScenarioNamespace, kind: ApiResource) -> Json:
    """Let the operator create an object of a kind; PodMonitors need their CRD first."""
    if kind is POD_MONITORS:
        await namespace.cluster.api.apply_manifest(POD_MONITOR_CRD)
    # A template that is edited must not start pods: the Deployment is one without replicas.
    await namespace.apply_service(replicas=2 if kind is DISRUPTION_BUDGETS else 0)

    async def is_created() -> Json:
        children = await namespace.list_children()
        # Of NetworkPolicies there is one for what engines connect to as well.
        names = sorted(name for name in children if name.startswith(f"{kind.kind}/"))
        assert names != [], sorted(children)
        return children[names[0]]

    return await eventually(is_created)


@KINDS
async def test_every_field_that_is_edited_or_removed_is_restored_and_those_of_others_stay(
    namespace: ScenarioNamespace, kind: ApiResource, pytestconfig: pytest.Config
) -> None:
    body = await create_child(namespace, kind)
    path = kind.path(namespace.name, body["metadata"]["name"])
    await namespace.cluster.api.patch(path, {"metadata": {"annotations": {"team": "own"}}})
    expected = owned_values(body)
    edit_count, slowest = 0, 0.0
    fields = list(expected)[:: 1 if pytestconfig.getoption("--full") else SAMPLED_EACH]
    for field in fields:
        for operation in _edits(await namespace.cluster.api.get(path), field):
            seconds = await _measure_repair(namespace, path, expected, operation)
            if seconds is not None:
                edit_count, slowest = edit_count + 1, max(slowest, seconds)
    print(f"{kind.kind}: {len(fields)} fields, {edit_count} edits, slowest {slowest:.2f} s")
    assert edit_count >= len(fields) // 2
    assert slowest <= WITHIN
    after = await namespace.cluster.api.get(path)
    assert after["metadata"]["annotations"]["team"] == "own"


@KINDS
async def test_a_deleted_object_is_recreated(
    namespace: ScenarioNamespace, kind: ApiResource
) -> None:
    body = await create_child(namespace, kind)
    path = kind.path(namespace.name, body["metadata"]["name"])
    await namespace.cluster.api.delete(path)

    async def is_recreated() -> None:
        assert (await namespace.cluster.api.get(path))["metadata"]["uid"] != body["metadata"]["uid"]

    await eventually(is_recreated, within=WITHIN)


def _edits(body: Json, field: str) -> list[Json]:
    """Return JSON patches: one that removes the field, one that changes it."""
    path = owned_fields(body)[field]
    edits: list[Json] = [{"op": "remove", "path": pointer(path)}]
    new_value = _change(value_at(body, path))
    if new_value is not None:
        edits.append({"op": "replace", "path": pointer(path), "value": new_value})
    return edits


def _change(value: Any) -> Any:
    """Return another value of the same type, as far as that is known without the schema."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str() if value.isdigit():
            return str(int(value) + 1)
        case str():
            return f"{value}x"
        case list() if value and isinstance(value[0], str):
            return [*value, value[-1] + "x"]
        case _:
            return None


async def _measure_repair(
    namespace: ScenarioNamespace, path: str, expected: dict[str, Any], operation: Json
) -> float | None:
    """Make an edit; return the seconds until it is undone, None when the API server refuses it."""
    try:
        body = await namespace.cluster.api.patch(path, [operation], "application/json-patch+json")
    except ApiError as error:
        if error.status not in REFUSALS:
            raise
        return None
    if owned_values(body) == expected:
        return None
    started_at = time.monotonic()

    async def is_undone() -> None:
        assert owned_values(await namespace.cluster.api.get(path)) == expected

    try:
        await eventually(is_undone, within=4 * WITHIN)
    except AssertionError as error:
        raise AssertionError(f"{operation} was not undone") from error
    return time.monotonic() - started_at
