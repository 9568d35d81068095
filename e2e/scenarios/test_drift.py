"""Any field that the operator applies, on any kind of child, is back within five seconds."""

import time
from typing import Any

import pytest

from demo.stage import Json
from scenarios.actions import Place
from scenarios.fields import owned, pointer, projection, value_at
from tessera.resources.api_resources import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    POD_MONITORS,
    SERVICE_ACCOUNTS,
    SERVICES,
    ApiResource,
)
from world.api import ApiError
from world.testing import eventually

WITHIN = 5.0
# What the API server says to edits that make no valid object.
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


async def child(place: Place, kind: ApiResource) -> Json:
    """The object of a kind that the operator made here; PodMonitors need their CRD first."""
    if kind is POD_MONITORS:
        await place.stage.api.apply_manifest(POD_MONITOR_CRD)
    # A template that is edited must not start pods: the Deployment is one without replicas.
    await place.serve(replicas=2 if kind is DISRUPTION_BUDGETS else 0)

    async def made() -> list[Json]:
        found = await place.children()
        return [one for name, one in found.items() if name.startswith(f"{kind.kind}/")]

    (found,) = await eventually(made, lambda all_made: len(all_made) == 1)
    return found


@KINDS
async def test_every_field_that_is_edited_or_removed_is_back_and_foreign_ones_stay(
    place: Place, kind: ApiResource
) -> None:
    body = await child(place, kind)
    path = kind.path(place.namespace, body["metadata"]["name"])
    await place.stage.api.patch(path, {"metadata": {"annotations": {"team": "own"}}})
    wanted = projection(body)
    done, slowest = 0, 0.0
    for field in wanted:
        for operation in _edits(await place.stage.api.get(path), field):
            taken = await _repaired(place, path, wanted, operation)
            if taken is not None:
                done, slowest = done + 1, max(slowest, taken)
    print(f"{kind.kind}: {len(wanted)} fields, {done} edits taken, slowest back in {slowest:.2f} s")
    assert done >= len(wanted) // 2
    assert slowest <= WITHIN
    after = await place.stage.api.get(path)
    assert after["metadata"]["annotations"]["team"] == "own"


@KINDS
async def test_a_deleted_object_is_back(place: Place, kind: ApiResource) -> None:
    body = await child(place, kind)
    path = kind.path(place.namespace, body["metadata"]["name"])
    await place.stage.api.delete(path)

    async def uid() -> str:
        return str((await place.stage.api.get(path))["metadata"]["uid"])

    await eventually(uid, lambda now: now != body["metadata"]["uid"], within=WITHIN)


def _edits(body: Json, field: str) -> list[Json]:
    """JSON patches: one that removes the field, one that changes it."""
    path = owned(body)[field]
    edits: list[Json] = [{"op": "remove", "path": pointer(path)}]
    changed = _changed(value_at(body, path))
    if changed is not None:
        edits.append({"op": "replace", "path": pointer(path), "value": changed})
    return edits


def _changed(value: Any) -> Any:
    """Another value of the same type, as far as one can be told without the schema."""
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


async def _repaired(
    place: Place, path: str, wanted: dict[str, Any], operation: Json
) -> float | None:
    """Make an edit; the seconds until all is as wanted, None when the API server refuses it."""
    try:
        edited = await place.stage.api.patch(path, [operation], "application/json-patch+json")
    except ApiError as error:
        if error.status not in REFUSALS:
            raise
        return None
    if projection(edited) == wanted:
        return None
    begun = time.monotonic()

    async def present() -> dict[str, Any]:
        return projection(await place.stage.api.get(path))

    try:
        await eventually(present, lambda now: now == wanted, within=4 * WITHIN)
    except AssertionError as error:
        raise AssertionError(f"{operation} was not undone") from error
    return time.monotonic() - begun
