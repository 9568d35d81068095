"""An eviction that the API server refuses since two PodDisruptionBudgets select the pod."""

import pytest
from aiohttp import web

from tessera.api.ref import Ref
from tessera.ports import DisruptionBudgetError
from tests.adapters.small_server import connected_cluster

SEVERAL = (
    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not "
    "support."
)
LABELS = {"app": "engine", "tessera.dev/service": "chat"}


def budget(name: str, *expressions: dict[str, object], **labels: str) -> dict[str, object]:
    selector = {"matchLabels": labels, "matchExpressions": list(expressions)}
    return {"metadata": {"name": name}, "spec": {"selector": selector}}


async def test_all_budgets_of_the_pod_are_named() -> None:
    budgets = [
        budget("ours", {"key": "tessera.dev/leaving", "operator": "DoesNotExist"}, app="engine"),
        budget("company", {"key": "app", "operator": "In", "values": ["engine", "web"]}),
        budget("web", app="web"),
        budget("others", {"key": "app", "operator": "NotIn", "values": ["engine"]}),
        budget("batch", {"key": "tessera.dev/batch", "operator": "Exists"}),
    ]

    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.json_response({"message": SEVERAL, "code": 500}, status=500)
        if request.path.endswith("/poddisruptionbudgets"):
            return web.json_response({"items": budgets})
        return web.json_response({"metadata": {"labels": LABELS}})

    names = "poddisruptionbudget/company and poddisruptionbudget/ours select it"
    async with connected_cluster(answer) as cluster:
        with pytest.raises(DisruptionBudgetError, match=names):
            await cluster.evict(Ref("team-a", "chat-0"), "uid-1")
