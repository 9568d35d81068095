"""What a tenant may write at the door of the API: refused with a reason, paid by nobody."""

import copy

import pytest

from tessera.api.api_resource import ApiResource
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.reconcile.writing.write_order import MAX_CONCURRENCY
from tessera.resources.api_resources import CLAIMS, KINDS
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL
from tests.hostile.twin import HOSTILE, Body, Fleet, Twins


def _build(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget("team-a", "100")
    fleet.add_budget(HOSTILE, "100")
    fleet.serve("chat", "team-a", replicas=2)


def _condition(body: Body, kind: str) -> Body:
    conditions = body["status"]["conditions"]
    return next(condition for condition in conditions if condition["type"] == kind)


def _in(fleet: Fleet, namespace: str) -> set[str]:
    """Return the names of the objects that Tessera and controllers made in a namespace."""
    return {
        f"{key.plural}/{key.name}"
        for key in fleet.cluster.objects
        if key.namespace == namespace and not key.plural.endswith(("services", "inferences"))
    }


async def test_a_name_that_no_service_can_have_is_refused_and_holds_nothing() -> None:
    twins = Twins(_build)
    names = ("llama-3.1-8b", "n" * 64)
    for name in names:
        twins.hostile.serve(name, HOSTILE, replicas=2)
    await twins.run(cycles=10)
    for name in names:
        body = twins.hostile.body(ObjectKey("inferenceservices", HOSTILE, name))
        accepted = _condition(body, "Accepted")
        assert (accepted["status"], accepted["reason"]) == ("False", "InvalidName")
    assert _in(twins.hostile, HOSTILE) == set()
    assert twins.hostile.spent(HOSTILE) == 0
    twins.assert_equal()


def _kind(plural: str) -> ApiResource:
    return next(kind for kind in KINDS if kind.plural == plural)


async def test_a_copy_of_an_applied_object_stays_as_it_is() -> None:
    """`kubectl get OBJECT -o yaml`, renamed and applied: same labels, same owner."""

    def build(fleet: Fleet) -> None:
        _build(fleet)
        fleet.serve("chat", HOSTILE, replicas=2)

    twins = Twins(build)
    await twins.run(cycles=8)
    copies = {}
    for key, body in list(twins.hostile.cluster.objects.items()):
        if key.namespace == HOSTILE and key.plural in (
            "deployments", "services", "serviceaccounts", "networkpolicies", "poddisruptionbudgets",
        ):  # fmt: skip
            copied = copy.deepcopy(body)
            copied["metadata"] = {**copied["metadata"], "name": f"copy-of-{key.name}"}
            del copied["metadata"]["uid"]
            if key.plural == "deployments":
                copied["spec"]["replicas"] = 0  # its pods would be pods like any others
            copies[twins.hostile.cluster.put(_kind(key.plural), copied, "kubectl")] = copied
    assert {key.plural for key in copies} >= {"deployments", "services", "poddisruptionbudgets"}
    await twins.run(cycles=5)
    cluster = twins.hostile.cluster
    assert [key for key in copies if key not in cluster.objects] == []
    for key, copied in copies.items():
        assert cluster.objects[key].get("spec") == copied.get("spec")
    assert twins.hostile.outcome is not None
    assert twins.hostile.outcome.problems == {}
    twins.assert_equal()


@pytest.mark.parametrize("stranger", ["another-uid", None])
async def test_only_the_children_of_the_service_itself_are_deleted(stranger: str | None) -> None:
    fleet = Fleet()
    _build(fleet)
    for _ in range(8):
        await fleet.cycle()
    budget = next(key for key in fleet.cluster.objects if key.plural == "poddisruptionbudgets")
    owners = [{"kind": "InferenceService", "controller": True, "uid": stranger}] if stranger else []
    fleet.body(budget)["metadata"]["ownerReferences"] = owners
    fleet.cluster.touch(budget)
    fleet.serve("chat", "team-a", replicas=1)
    await fleet.cycle()
    assert (budget in fleet.cluster.objects) is (stranger is not None)


def _add_batch(fleet: Fleet, name: str, namespace: str, created: str, **spec: str) -> ObjectKey:
    claim = {
        "metadata": {"name": "data", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }
    fleet.cluster.put(CLAIMS, claim)
    meta = {"name": name, "namespace": namespace, "creationTimestamp": created}
    paths = {"claimName": "data", "input": "in.jsonl", "output": "out.jsonl", **spec}
    return fleet.cluster.put(
        BATCH_INFERENCES, {"metadata": meta, "spec": {**paths, "model": {"uri": SMALL}}}
    )


async def test_a_file_is_written_by_one_batch_and_the_later_one_is_not_paid() -> None:
    def build(fleet: Fleet) -> None:
        _build(fleet)
        _add_batch(fleet, "night", "team-a", "2026-11-20T11:59:00Z")

    twins = Twins(build)
    # Older than the batch of team-a, but the claim is another one.
    _add_batch(twins.hostile, "first", HOSTILE, "2026-11-20T11:58:00Z")
    later = _add_batch(
        twins.hostile, "second", HOSTILE, "2026-11-20T11:58:30Z", output="x", errors="out.jsonl"
    )
    await twins.run(cycles=3)
    accepted = _condition(twins.hostile.body(later), "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "OutputConflict")
    jobs = [key.name for key in twins.hostile.cluster.objects if key.plural == "jobs"]
    assert sorted(jobs) == ["first-check", "night-check"]
    twins.assert_equal()


async def test_many_services_of_one_tenant_delay_the_writes_of_no_other() -> None:
    fleet = Fleet()
    _build(fleet)
    await fleet.cycle()
    fleet.cluster.applied.clear()
    for index in range(60):
        fleet.serve(f"s{index:02}", HOSTILE, replicas=1)
    fleet.serve("rival", "team-a", replicas=1)  # after all of them, also by name
    await fleet.reconcile()
    deployments, statuses = (
        [key for key in fleet.cluster.applied if key.plural == plural]
        for plural in ("deployments", "inferenceservices")
    )
    for written in (deployments, statuses):
        position = next(index for index, key in enumerate(written) if key.namespace == "team-a")
        assert position < MAX_CONCURRENCY
    assert len(deployments) > 60
