"""Every leaf of every CRD on the real API server: what it refuses, and where the operator ends.

The values are those of `tests/generation`. A dry run says what admission accepts; a refusal names
the field. With `--full` every field of a spec then has a legal value in a fleet that settles, and
returns: the operator runs on, and another tenant's objects stay as they are.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable

import pytest

from tessera.api.schema import CustomResource
from tessera.controller.main import LEADERSHIP_LOST
from tessera.domain.kinds.kinds import KINDS, NODE_LAYOUTS
from tessera.resources.api_resources import CLAIMS
from tests.faults.namespaces import API_VERSION, TenantNamespace
from tests.faults.operators import OperatorOptions, RestartingOperator, running_operator
from tests.generation.coverage import PROPERTY
from tests.generation.driven_fleet import REFUSED_BY_RULES, base_spec, prepare
from tests.generation.schema_walk import ITEM, MAP_KEY, VALUE, Leaf, Value, leaves
from tests.generation.test_states import SEED, driven_leaves, edits
from world import World
from world.api import Api, ApiError, Json
from world.object_comparison import comparable_objects, differences
from world.testing import eventually

TENANT, OTHER = "driven", "other"
# A state is settled when nothing has moved for so long.
SETTLED_SECONDS = 0.3
CLAIM: Json = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data"},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


def manifest(kind: CustomResource, name: str, spec: Json) -> Json:
    meta = {"name": name} | ({"namespace": TENANT} if kind.namespaced else {})
    return {"apiVersion": API_VERSION, "kind": kind.kind, "metadata": meta, "spec": spec}


def collection(kind: CustomResource) -> str:
    scope = f"/namespaces/{TENANT}" if kind.namespaced else ""
    return f"/apis/{API_VERSION}{scope}/{kind.plural}"


def base(kind: CustomResource, name: str) -> Json:
    """Return the object before any leaf is driven; what runs may run in the pool of all."""
    spec = base_spec(kind, TENANT)
    spec.pop("placement", None)
    return manifest(kind, name, spec)


def prepared(kind: CustomResource, leaf: Leaf, name: str) -> Json:
    body = base(kind, name)
    prepare(body, leaf)
    return body


def is_accepted(leaf: Leaf, value: Value) -> bool:
    """Return whether a value may be driven; highest bounds, as 1000 pods, only fill the world."""
    return value.step in ("legal", "lowest") and (leaf.name, value.step) not in REFUSED_BY_RULES


def is_named(leaf: Leaf, message: str) -> bool:
    """Return whether a refusal names the field, or for a field that is absent its parent."""
    path = ".".join(step for step in leaf.path if step not in (ITEM, VALUE))
    plain = message.replace("[0]", "").replace(f".{MAP_KEY}", "")
    return path in plain or path.rpartition(".")[0] in plain


async def refusal(api: Api, path: str, body: Json) -> ApiError | None:
    """Return why the API server refuses a new object, without creating it."""
    try:
        await api.create(path, body, dryRun="All")
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
async def test_admission_accepts_and_refuses_each_value_and_names_the_field(
    kind: CustomResource, api: Api, pytestconfig: pytest.Config
) -> None:
    await TenantNamespace(api, TENANT).create()
    wrong = []
    every = list(leaves(kind, "spec"))
    for leaf in driven_leaves(every, full=pytestconfig.getoption("--full")):
        for step, edit, in_schema in edits(leaf):
            body = prepared(kind, leaf, "dry-run")
            edit(body)
            is_legal = in_schema and (leaf.name, step) not in REFUSED_BY_RULES
            error = await refusal(api, collection(kind), body)
            names_field = error is None or (error.status == 422 and is_named(leaf, str(error)))
            if (error is None) is not is_legal or not names_field:
                wrong.append(f"{leaf.name} {step}: {error}")
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong[:40]])


class DrivenObject:
    """One object of the tenant, whose spec is replaced; a batch is made again for each."""

    def __init__(self, tenant: TenantNamespace, kind: CustomResource) -> None:
        self._tenant, self._api, self._kind = tenant, tenant.api, kind
        self._last: dict[str, object] = {}
        self._name = f"{kind.kind.lower()}-0"
        self._number = 0

    async def replace(self, body: Json) -> None:
        """Apply a spec, and wait until the operator has observed it and nothing moves."""
        if self._kind.kind == "BatchInference":
            await self.delete()
            self._number += 1
            self._name = f"batch-{self._number}"
        applied = body | {"metadata": body["metadata"] | {"name": self._name}}
        await self._api.apply(f"{collection(self._kind)}/{self._name}", applied, "driver")
        await eventually(self._is_observed, within=90)
        await eventually(self._is_still, within=90)

    async def delete(self) -> None:
        with contextlib.suppress(ApiError):
            await self._api.delete(f"{collection(self._kind)}/{self._name}")

    async def _is_observed(self) -> None:
        body = await self._api.get(f"{collection(self._kind)}/{self._name}")
        status = body.get("status", {})
        assert status.get("observedGeneration") == body["metadata"]["generation"], status

    async def _is_still(self) -> None:
        await asyncio.sleep(SETTLED_SECONDS)
        last = self._last
        self._last = comparable_objects(await self._tenant.list_objects(), {})
        assert differences(last, self._last) == []


async def errors_of(operator: RestartingOperator) -> float:
    """Return how many cycles failed."""
    name = "tessera_reconcile_errors_total "
    lines = (line for line in (await operator.metrics()).splitlines() if line.startswith(name))
    return float(next(lines).removeprefix(name))


@pytest.mark.full
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not NODE_LAYOUTS], ids=lambda kind: kind.kind
)
async def test_the_operator_observes_each_field_and_changes_nothing_of_others(
    kind: CustomResource,
    world: World,
    api: Api,
    record_property: Callable[[str, object], None],
) -> None:
    other, tenant = TenantNamespace(api, f"{OTHER}-{kind.plural}"), TenantNamespace(api, TENANT)
    every = list(leaves(kind, "spec"))
    source = random.Random(f"{SEED} {kind.kind}")  # noqa: S311 - a seeded choice
    states, changed = 0, list[str]()
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        await other.create()
        await other.apply_service("chat", replicas=2)
        await other.wait_for_replicas(chat=2)
        before = await other.wait_until_settled(60)
        await tenant.create()
        await api.apply(CLAIMS.path(TENANT, "data"), CLAIM, "driver")
        driven = DrivenObject(tenant, kind)
        await driven.replace(base(kind, TENANT))
        for leaf in every:
            body = prepared(kind, leaf, TENANT)
            legal = [value for value in leaf.values() if is_accepted(leaf, value)]
            leaf.set(body, source.choice(legal).value)
            for state in (body, base(kind, TENANT)):
                await driven.replace(state)
                objects = await other.list_objects()
                now = comparable_objects(objects, {other.name: "<place>"})
                changed += [f"{leaf.name}: {line}" for line in differences(before, now)]
                states += 1
        assert await errors_of(operator) == 0
        assert set(operator.exit_codes) <= {LEADERSHIP_LOST}
        await driven.delete()
        await other.delete()
    record_property(PROPERTY, (len(every), len(every), states))
    assert not changed, "\n".join(changed[:20])
