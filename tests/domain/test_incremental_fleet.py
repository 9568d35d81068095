"""An incremental plan decides as a plain one on fleets that roll out, and whose tenants pay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from tessera.api.tenant_budget import BudgetOverride, BudgetRaise, TenantBudgetStatus
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import (
    Budget,
    ForeignField,
    ListedAutoscalers,
    Ref,
    Snapshot,
)
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.budget import budget_status
from tessera.domain.status.routes import route_statuses
from tests.builders import NOW, a_budget, a_node, a_pod, a_pool, a_service, a_spec, readings_of
from tests.domain.quality.gated_fleet import a_gated_fleet, a_gated_spec
from tests.domain.status.test_routes import a_route
from tests.domain.test_incremental import decisions_on_others, without_history
from tests.domain.variant_fleet import CHAT, VariantFleet
from tests.properties import examples

GPU = {"nvidia.com/gpu": 1}
ROUTES = (a_route("chat", "code"),)
LIMITS: list[dict[str, Any]] = [
    {"window": "Hour", "amount": "40"},
    {"window": "Day", "amount": "300", "for": {"service": "*"}, "name": "each"},
]


@dataclass
class Comparison:
    """Decides with and without what earlier cycles computed, and wants no difference."""

    incremental: Incremental = field(default_factory=Incremental)
    routes: Incremental = field(default_factory=Incremental)

    def __call__(self, config: Config, snapshot: Snapshot, memory: PlanMemory) -> Plan:
        fast = self.incremental.run(plan, config, snapshot, memory)
        slow = plan(config, snapshot, memory)
        assert without_history(fast.service_plans) == without_history(slow.service_plans)
        assert decisions_on_others(fast) == decisions_on_others(slow)
        assert fast.gates == slow.gates
        statuses = [
            [budget_status(view, snapshot.at) for view in decision.budgets]
            for decision in (fast, slow)
        ]
        assert statuses[0] == statuses[1]
        refused = [
            [(view.state.shortage, view.state.gpus) for view in (*each.budgets, *each.closed)]
            for each in (fast, slow)
        ]
        assert refused[0] == refused[1]
        learned = [replace(memory.after(decision), scaling_history={}) for decision in (fast, slow)]
        assert learned[0] == learned[1]
        judged = self.routes.run(self._routes, snapshot, fast), self._routes(snapshot, slow)
        assert judged[0] == judged[1]
        return fast

    @staticmethod
    def _routes(snapshot: Snapshot, decision: Plan) -> object:
        return route_statuses(ROUTES, snapshot.services, decision.budgets, NOW, gateways=True)


@dataclass
class TenantFleet(VariantFleet):
    """Two services of a tenant on a pool of whole GPUs, and whatever else happens there."""

    budgets: list[Budget] = field(default_factory=list)
    is_late: bool = False
    """What rollouts keep is not written."""
    waiting: float | None = None

    @override
    def snapshot(self) -> Snapshot:
        snapshot = super().snapshot()
        if self.waiting is not None:
            readings = readings_of(snapshot.pods, at=snapshot.at, waiting=self.waiting)
            snapshot = replace(snapshot, readings=readings)
        return replace(snapshot, budgets=tuple(self.budgets))

    @override
    def cycle(self, seconds: float = 5) -> ServicePlan:
        floors = {each.ref: each.status.rollout_floor for each in (self.service, *self.others)}
        service_plan = super().cycle(seconds)
        if self.is_late:
            self.service, *self.others = (
                replace(
                    each,
                    status=each.status.model_copy(update={"rollout_floor": floors[each.ref]}),
                )
                for each in (self.service, *self.others)
            )
        return service_plan

    def record_budgets(self, decision: Plan, snapshot: Snapshot) -> None:
        self.budgets = [
            replace(each, status=budget_status(view, snapshot.at))
            for each in self.budgets
            for view in decision.budgets
            if view.budget.name == each.name
        ]


def a_tenant_fleet() -> tuple[TenantFleet, Comparison]:
    comparison = Comparison()
    fleet = TenantFleet(
        service=a_service(spec=edited(0, 2)),
        others=[a_service("code", edited(0, 1))],
        pools=[a_pool("a100")],
        nodes=[a_node("a100", whole=2, name="a100-0"), a_node("a100", whole=2, name="a100-1")],
        start=timedelta(seconds=10),
        stop=timedelta(seconds=5),
        config=Config(gateways=True),
        budgets=[a_budget(limits=LIMITS)],
    )

    def decide(config: Config, snapshot: Snapshot, memory: PlanMemory) -> Plan:
        decision = comparison(config, snapshot, memory)
        fleet.record_budgets(decision, snapshot)
        return decision

    fleet.decide = decide
    fleet.run(15)
    return fleet, comparison


def edited(edit: int, replicas: int) -> Any:
    return a_spec(replicas=replicas, podTemplate={"annotations": {"edit": str(edit)}})


def edit(fleet: TenantFleet, value: int) -> None:
    spec = edited(fleet.service.generation, 1 + value % 3)
    fleet.service = replace(fleet.service, spec=spec, generation=fleet.service.generation + 1)


def edit_neighbor(fleet: TenantFleet, value: int) -> None:
    fleet.others = [
        replace(each, spec=edited(each.generation, value % 3), generation=each.generation + 1)
        for each in fleet.others
    ]


def take(fleet: TenantFleet, value: int) -> None:
    """Bind a pod of somebody else to a free device, or let it end."""
    ref = Ref("team-z", f"notebook-{value % 2}")
    if fleet.pods.pop(ref, None) is None:
        node = f"a100-{value % 2}"
        used = sum(pod.node == node for pod in fleet.pods.values())
        bound = NOW + fleet.now if used < 2 else None
        fleet.pods[ref] = a_pod(
            ref.name,
            ref=ref,
            service="",
            variant="",
            node=node if bound else None,
            bound=bound,
            devices=GPU,
            unschedulable=None if bound else "0/2 nodes are available",
        )


def silence(fleet: TenantFleet, value: int) -> None:
    """Let a kubelet be silent, or a node be cordoned, or take either back."""
    index = value % 2
    node = fleet.nodes[index]
    if not node.schedulable:
        fleet.nodes[index] = replace(node, schedulable=True, kubelet_ready=True)
    else:
        fleet.nodes[index] = replace(node, schedulable=False, kubelet_ready=bool(value // 2))


def fail(fleet: TenantFleet, value: int) -> None:
    """Let a replica restart, or end."""
    own = [pod for pod in fleet.pods.values() if not pod.unmanaged]
    if own:
        pod = own[value % len(own)]
        if value % 2:
            del fleet.pods[pod.ref]
        else:
            fleet.pods[pod.ref] = replace(pod, ready_since=None, containers_ready=False)


def list_autoscalers(fleet: TenantFleet, value: int) -> None:
    """Let a HorizontalPodAutoscaler write the replicas of a Deployment, or be gone."""
    workloads = sorted(fleet.workloads)
    by_deployment = {}
    if workloads and value:
        ref = workloads[value % len(workloads)]
        workload = fleet.workloads[ref]
        fleet.workloads[ref] = replace(
            workload,
            replicas=value % 3,
            generation=workload.generation + 1,
            foreign_fields=(ForeignField("kube-controller-manager", "spec.replicas"),),
        )
        by_deployment = {ref.name: "hpa"}
    listed = ListedAutoscalers(at=NOW + fleet.now, by_deployment=by_deployment)
    fleet.fields = {**fleet.fields, "autoscalers": {"team-a": listed}}


def pay(fleet: TenantFleet, value: int) -> None:
    """Give the tenant another budget, or none, or a raise, or an override."""
    budget = fleet.budgets[0] if fleet.budgets else a_budget(limits=LIMITS)
    until = NOW + fleet.now + timedelta(minutes=1)
    if value == 0:
        fleet.budgets = [] if fleet.budgets else [budget]
    elif value in (1, 2):
        amount = "0.5" if value == 1 else "40"
        limits = [{**LIMITS[0], "amount": amount}, LIMITS[1]]
        spec = a_budget(limits=limits, gpus="3").spec
        fleet.budgets = [replace(budget, spec=spec, generation=budget.generation + 1)]
    elif value == 3:
        given = BudgetRaise.model_validate(
            {"limit": "cost-hour", "by": "20", "until": until, "reason": "INC-8"}
        )
        fleet.budgets = [replace(budget, raises=(given,))]
    else:
        override = BudgetOverride(until=until, reason="INC-8")
        fleet.budgets = [replace(budget, override=override, status=TenantBudgetStatus())]


def move_clock(fleet: TenantFleet, value: int) -> None:
    fleet.now += timedelta(hours=1) * (1 if value % 2 else -1)


def be_late(fleet: TenantFleet, _: int) -> None:
    fleet.is_late = not fleet.is_late


def load(fleet: TenantFleet, value: int) -> None:
    fleet.waiting = None if value == 0 else 10.0 * value


def wait(fleet: TenantFleet, value: int) -> None:
    """Let minutes pass, in which nothing else happens."""
    for _ in range(value):
        fleet.cycle(40)


CHANGES: Mapping[str, Callable[[TenantFleet, int], None]] = {
    "edit": edit,
    "neighbor": edit_neighbor,
    "take": take,
    "silence": silence,
    "fail": fail,
    "autoscaler": list_autoscalers,
    "pay": pay,
    "clock": move_clock,
    "late": be_late,
    "load": load,
    "wait": wait,
}
changes = st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 5), st.integers(1, 3))


def play(steps: list[tuple[str, int, int]]) -> Comparison:
    fleet, comparison = a_tenant_fleet()
    for change, value, cycles in steps:
        CHANGES[change](fleet, value)
        for _ in range(cycles):
            fleet.cycle()
    return comparison


@settings(max_examples=examples(16), suppress_health_check=list(HealthCheck))
@given(st.lists(changes, min_size=1, max_size=4))
@example(
    [
        ("take", 1, 2),
        ("edit", 2, 3),
        ("fail", 1, 2),
        ("late", 0, 1),
        ("autoscaler", 1, 2),
        ("silence", 2, 2),
    ]
)
@example([("pay", 3, 1), ("neighbor", 0, 2), ("clock", 1, 1), ("clock", 0, 1), ("pay", 1, 1)])
def test_an_incremental_plan_equals_a_plain_one_of_tenants_that_roll_out(
    steps: list[tuple[str, int, int]],
) -> None:
    play(steps)


def test_a_device_that_frees_is_seen_while_a_replica_drains_for_another() -> None:
    """One of its replicas had no device when the rollout began, so that it had none to keep."""
    fleet, comparison = a_tenant_fleet()
    fleet.budgets, fleet.others = [], []
    fleet.pods = {ref: pod for ref, pod in fleet.pods.items() if pod.service == CHAT}
    fleet.workloads = {ref: own for ref, own in fleet.workloads.items() if own.service == CHAT}
    fleet.nodes[1] = replace(fleet.nodes[1], allocatable=GPU)
    take(fleet, 1)
    for generation in (2, 3):
        spec = edited(generation // 3, 3)
        fleet.service = replace(fleet.service, spec=spec, generation=generation)
        fleet.run(20)
    drains = replace(fleet.snapshot(), in_flight={})
    assert any(pod.draining_since is not None for pod in drains.pods)
    memory = fleet.memory
    freed = replace(drains, pods=tuple(pod for pod in drains.pods if not pod.unmanaged))
    for index, snapshot in enumerate((drains, drains, freed)):
        at = drains.at + timedelta(seconds=5 * index)
        decision = comparison(fleet.config, replace(snapshot, at=at), memory)
        memory = memory.after(decision)


def test_an_incremental_plan_equals_a_plain_one_while_a_gate_tries_versions() -> None:
    fleet = a_gated_fleet()
    fleet.decide = Comparison()
    for seed, devices in ((1, 3), (2, 2)):
        spec = a_gated_spec(2, podTemplate={"annotations": {"edit": str(seed)}})
        generation = fleet.service.generation + 1
        fleet.service = replace(fleet.service, spec=spec, generation=generation)
        fleet.nodes = [a_node("a100", whole=devices)]
        fleet.run(30)
