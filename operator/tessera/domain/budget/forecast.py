"""How many replicas a budget would grant, while services still choose their hardware."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

from tessera.domain.budget.budgets import BudgetView, by_namespace, tenant_of
from tessera.domain.budget.namespaces import in_namespaces
from tessera.domain.budget.state import RESERVED_DURATION, BudgetState, GrantRequest, grant_requests
from tessera.domain.observed.snapshot import Pod, Ref

_NO_PODS: Mapping[str, Sequence[Pod]] = {}


class GrantForecast:
    """Grants on copies of the budgets' states, so that the plan's own grants are unaffected."""

    def __init__(
        self,
        budgets: Sequence[BudgetView],
        pods: Mapping[str, Sequence[Pod]] = _NO_PODS,
        min_replicas: Callable[[Ref], int] = lambda _: 0,
    ) -> None:
        """Create a forecast; what runs of `pods`, by namespace, is reserved before anything new.

        The cost of `min_replicas` of a service is reserved until a window ends.
        """
        self._views = by_namespace(budgets)
        self._pods = pods
        self._min_replicas = min_replicas
        self._states: dict[BudgetState, BudgetState] = {}

    def tenant(self, namespace: str) -> tuple[str, float]:
        """Return the tenant of a namespace and its weight; without a budget all are one tenant."""
        return tenant_of(namespace, self._views)

    def count(self, request: GrantRequest) -> int:
        """Return how many of the desired replicas would be granted, after earlier requests."""
        view = self._views.get(request.ref.namespace)
        if view is None:
            return request.desired
        if view.state not in self._states:
            self._states[view.state] = self._with_running(view, deepcopy(view.state))
        return grant_requests(self._states[view.state], [request])[0].replicas

    def _with_running(self, view: BudgetView, state: BudgetState) -> BudgetState:
        counts = Counter[Ref]()
        for pod in in_namespaces(view.namespaces, self._pods):
            replica = view.meter.running.get(pod.uid)
            if replica is None:
                continue
            counts[pod.service] += 1
            if counts[pod.service] <= self._min_replicas(pod.service):
                state.reserve_min_replicas(replica.tariff, 1)
            else:
                state.reserve_termination(replica.tariff, RESERVED_DURATION, 1)
        return state
