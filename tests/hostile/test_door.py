"""What a tenant may write at the door of the API: refused with a reason, paid by nobody."""

from tessera.resources.manifest import ObjectKey
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
