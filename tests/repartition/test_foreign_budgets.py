"""PodDisruptionBudgets that others put on replicas: what they allow happens, the rest is named."""

from datetime import timedelta

from tessera.api.pool_reasons import LayoutReady
from tessera.domain.repartition.evictions import BLOCKED_PERIOD
from tessera.resources.api_resources import DISRUPTION_BUDGETS
from tessera.resources.manifest import ObjectKey
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, TICK, RepartitionSimulation


async def repartitioning(*budgets: str) -> RepartitionSimulation:
    """Return a fleet in mid plan; others allow so many unavailable engines."""
    scenario = SCENARIOS["one slice is free"]
    simulation = RepartitionSimulation.of(BACKENDS["agent"], scenario.nodes)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    for index, max_unavailable in enumerate(budgets):
        spec = {
            "maxUnavailable": max_unavailable,
            "selector": {"matchLabels": {"app.kubernetes.io/component": "engine"}},
        }
        meta = {"name": f"company-{index}", "namespace": "team-a"}
        simulation.kube.put(DISRUPTION_BUDGETS, {"metadata": meta, "spec": spec}, "company")
    scenario.change(simulation)
    return simulation


async def test_a_budget_of_others_that_allows_everything_stops_nothing() -> None:
    simulation = await repartitioning("100%")
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()


async def test_two_budgets_of_others_are_named_and_the_replica_serves_again_meanwhile() -> None:
    simulation = await repartitioning("100%", "100%")
    while simulation.reason != LayoutReady.DISRUPTION_BUDGET:
        await simulation.tick()
    condition = next(text for text in simulation.describe() if text.startswith("LayoutReady"))
    assert "poddisruptionbudget/company-0 and poddisruptionbudget/company-1" in condition
    leaving = [key for key, pod in simulation.kube.pods() if pod.leaving]
    assert leaving
    for _ in range(round(BLOCKED_PERIOD / timedelta(seconds=TICK)) + 3):
        await simulation.tick()
    assert all(simulation.kube.pod(key).takes_requests for key in leaving)
    assert simulation.reason == LayoutReady.DISRUPTION_BUDGET
    for index in range(2):
        key = ObjectKey(DISRUPTION_BUDGETS.plural, "team-a", f"company-{index}")
        simulation.kube.discard(key)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()
