"""The status of a route is written when it changes, and only then."""

from typing import Any

from tessera.domain.kinds.kinds import INFERENCE_SERVICES, MODEL_PROVIDERS, MODEL_ROUTES
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL, a_provider_spec
from tests.memory_operator import MemoryOperator

ROUTE = ObjectKey(MODEL_ROUTES.plural, "team-a", "assistant")


def a_service(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team-a"}, "spec": {"model": {"uri": SMALL}}}


async def test_a_route_follows_its_targets() -> None:
    operator = MemoryOperator()
    cluster = operator.cluster
    targets = [{"service": "small", "when": {"maxScore": 1}}, {"service": "large"}]
    meta = {"name": ROUTE.name, "namespace": ROUTE.namespace}
    cluster.put(MODEL_ROUTES, {"metadata": meta, "spec": {"targets": targets}})
    cluster.put(INFERENCE_SERVICES, a_service("large"))
    await operator.reconcile()
    status = cluster.objects[ROUTE]["status"]
    assert status["conditions"][0]["reason"] == "TargetNotFound"
    assert [each["reason"] for each in status["targets"]] == ["TargetNotFound", "NoReadyReplica"]

    cluster.compact()
    await operator.reconcile()
    assert ROUTE not in cluster.applied, "nothing changed"

    cluster.put(INFERENCE_SERVICES, a_service("small"))
    await operator.reconcile()
    assert cluster.objects[ROUTE]["status"]["conditions"][0]["reason"] == "GatewayDisabled"

    cluster.objects[ROUTE]["spec"]["targets"].append({"service": "Large"})
    cluster.touch(ROUTE)
    await operator.reconcile()
    (condition,) = cluster.objects[ROUTE]["status"]["conditions"]
    assert condition["reason"] == "InvalidSpec"
    assert condition["message"].startswith("spec.targets.2.service: String should match pattern")
    assert "kubectl explain troute.spec shows the fields" in condition["message"]


async def test_a_provider_says_whether_gateways_may_ask_it() -> None:
    operator = MemoryOperator()
    body = {"metadata": {"name": "acme"}, "spec": a_provider_spec()}
    key = operator.cluster.put(MODEL_PROVIDERS, body)

    def reason() -> str:
        (condition,) = operator.cluster.objects[key]["status"]["conditions"]
        return str(condition["reason"])

    await operator.reconcile()
    assert reason() == "ProvidersDisabled"

    operator.cluster.compact()
    await operator.reconcile()
    assert key not in operator.cluster.applied, "nothing changed"

    operator.cluster.objects[key]["spec"]["baseUrl"] = "http://api.example.com"
    operator.cluster.touch(key)
    await operator.reconcile()
    assert reason() == "InvalidSpec"
