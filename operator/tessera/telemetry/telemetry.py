"""Metrics and log lines about the outcome of reconcile cycles."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.api.meta import Condition
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.api.text import counted
from tessera.domain.batch.names import billing_ref
from tessera.domain.billing.bill import Bill, CostLine
from tessera.domain.incremental import Incremental, reused_per_object
from tessera.domain.money import NANO
from tessera.domain.names import RECOMMENDED_REPLICAS
from tessera.domain.observed.snapshot import Pod, Ref
from tessera.domain.planning.service_plan import ServicePlan
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.telemetry.layouts import LayoutsCollector, PoolLayoutState
from tessera.telemetry.process import ProcessMetrics
from tessera.telemetry.slo import SloCollector
from tessera.telemetry.speed import SpeedCollector

log = logging.getLogger("tessera")


class Telemetry:
    """The operator's own metrics, and one log line for every decision that changed."""

    def __init__(self) -> None:
        self.process = ProcessMetrics()
        self.registry = self.process.registry
        """All metrics except those of the services, their speeds and objectives, and the bill."""
        self._service_states, self._speeds = _ServiceCollector(), SpeedCollector()
        self._slos, self._bill = SloCollector(), _BillCollector()
        self._services, self._speed, self._slo, self._costs = (
            _registry(collector)
            for collector in (self._service_states, self._speeds, self._slos, self._bill)
        )
        self._batches, self._budgets = _BatchCollector(), _BudgetCollector()
        self._layouts = LayoutsCollector()
        for collector in (self._batches, self._budgets, self._layouts):
            self.registry.register(collector)
        self._pages = Incremental()
        self._logged_decisions: dict[Ref, tuple[object, ...]] = {}
        self._logged_layouts: dict[str, StatusVerdict[LayoutReady]] = {}
        self._logged_plans: dict[Ref, ServicePlan] = {}

    def record_reconcile(self, outcome: ReconcileOutcome, seconds: float) -> None:
        """Record the outcome of a reconcile cycle."""
        self.process.record_reconcile(seconds, outcome.cpu_seconds, outcome.writes)
        names = {name: view.budget.name for name, view in outcome.plan.budgets_by_namespace.items()}
        self.record_bill(outcome.bill, names)
        self._service_states.outcome = outcome
        self._speeds.service_plans = outcome.plan.service_plans
        self._speeds.readings = outcome.snapshot.readings
        self._slos.service_plans = outcome.plan.service_plans
        self._slos.readings = outcome.snapshot.readings
        self._budgets.outcome = outcome
        self._batches.outcome = outcome
        repartitions = outcome.plan.repartitions
        self.record_layouts(
            [
                PoolLayoutState(
                    view=view, nodes=repartitions.nodes.get(view.pool.name, ()), actions=orders
                )
                for view in outcome.plan.pools
                if (orders := repartitions.actions.get(view.pool.name)) is not None
            ],
            outcome.snapshot.pods,
        )
        for ref, service_plan in outcome.plan.service_plans.items():
            scale, problem = service_plan.scale, outcome.problems.get(ref)
            if self._logged_plans.get(ref) is service_plan and problem is None:
                continue
            self._logged_plans[ref] = service_plan
            verdicts = (service_plan.accepted, service_plan.placement.verdict)
            decision = (
                *(verdict.reason for verdict in verdicts),
                scale.replicas,
                scale.reason,
                problem,
                stuck.uid if (stuck := service_plan.stall.replacement) is not None else None,
            )
            if self._logged_decisions.get(ref) != decision:
                self._log(ref, outcome)
                self._logged_decisions[ref] = decision
        for ref, batch in outcome.plan.batches.items():
            reasons = (batch.accepted.reason, batch.running.reason, batch.complete.reason)
            attempt = batch.attempt.number if batch.attempt is not None else 0
            if self._logged_decisions.get(billing_ref(ref)) != (*reasons, attempt):
                self._logged_decisions[billing_ref(ref)] = (*reasons, attempt)
                log.info("%s: attempt %s: %s", billing_ref(ref), attempt, batch.running.message)
        known = {*outcome.plan.service_plans, *map(billing_ref, outcome.plan.batches)}
        for ref in self._logged_decisions.keys() - known:
            del self._logged_decisions[ref]
            self._logged_plans.pop(ref, None)

    def exposition(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        # The series of the services, their speeds, objectives and the bill are most of the page, so
        # they are rendered only when one of them changed.
        return generate_latest(self.registry) + self._pages.run(self._large_parts)

    def _large_parts(self) -> bytes:
        outcome = self._service_states.outcome
        return (
            _render(self._services, outcome and outcome.plan.service_plans)
            + _render(self._speed, self._speeds.inputs)
            + _render(self._slo, self._slos.inputs)
            + _render(self._costs, self._bill.billed)
        )

    def families(self) -> Iterator[Metric]:
        """Yield all metrics with their current values."""
        yield from self.registry.collect()
        yield from self._services.collect()
        yield from self._speed.collect()
        yield from self._slo.collect()
        yield from self._costs.collect()

    def record_bill(self, bill: Bill, tenants: Mapping[str, str]) -> None:
        """Record the bill after a cycle; `tenants` maps each namespace to its TenantBudget."""
        self._bill.update(bill, tenants)

    def record_layouts(self, pools: Sequence[PoolLayoutState], pods: tuple[Pod, ...]) -> None:
        """Record the layouts after a cycle.

        `pods` say which GPUs are in use where no agent runs.
        """
        self._layouts.take(pools, pods)
        for pool in pools:
            name, verdict = pool.view.pool.name, pool.actions.verdict
            if self._logged_layouts.get(name) != verdict:
                self._logged_layouts[name] = verdict
                log.info("pool %s: %s: %s", name, verdict.reason, verdict.message)

    def _log(self, ref: Ref, outcome: ReconcileOutcome) -> None:
        service_plan = outcome.plan.service_plans[ref]
        scale, placement = service_plan.scale, service_plan.placement.verdict
        fields: dict[str, Any] = {
            "service": str(ref),
            "accepted": service_plan.accepted.reason,
            "placed": placement.reason,
            "variant": service_plan.choice.variant if service_plan.choice else None,
            "replicas": scale.replicas,
            "reason": scale.reason,
        }
        if (problem := outcome.problems.get(ref)) is not None:
            log.warning("%s: %s", ref, problem, extra=fields)
        if (stuck := service_plan.stall.replacement) is not None:
            log.warning("%s: %s", ref, stuck.message, extra=fields)
        if not service_plan.accepted.reason.is_true:
            log.info("%s: not accepted: %s", ref, service_plan.accepted.message, extra=fields)
        elif not placement.reason.is_true:
            log.info("%s: not placed: %s", ref, placement.message, extra=fields)
        else:
            replicas_text = counted(scale.replicas, "replica")
            log.info("%s: %s: %s", ref, replicas_text, scale.message, extra=fields)


def _registry(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


@reused_per_object
def _render(registry: CollectorRegistry, _shown: object) -> bytes:
    return generate_latest(registry)


class _ServiceCollector(Collector):
    """The state of the services after the last cycle; deleted services leave no series."""

    outcome: ReconcileOutcome | None = None

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["namespace", "service"]
        desired = GaugeMetricFamily(
            "tessera_service_desired_replicas", "Desired replicas.", labels=[*labels, "reason"]
        )
        ready = GaugeMetricFamily(
            "tessera_service_ready_replicas",
            "Replicas that are ready and receive requests.",
            labels=labels,
        )
        cost = GaugeMetricFamily(
            "tessera_service_cost_per_hour",
            "Cost per hour of running replicas and of desired ones that do not run yet.",
            labels=[*labels, "currency"],
        )
        condition = GaugeMetricFamily(
            "tessera_service_condition",
            "1 if the condition is True, else 0; with its reason.",
            labels=[*labels, "condition", "reason"],
        )
        recommended = GaugeMetricFamily(
            RECOMMENDED_REPLICAS,
            "Replicas that the policy would choose where another autoscaler decides.",
            labels=labels,
        )
        for ref, service_plan in self.outcome.plan.service_plans.items() if self.outcome else ():
            label_values = [ref.namespace, ref.name]
            if service_plan.scale.recommended is not None:
                recommended.add_metric(label_values, service_plan.scale.recommended.replicas)
            desired.add_metric(
                [*label_values, service_plan.scale.reason], service_plan.scale.replicas
            )
            ready.add_metric(label_values, sum(pod.takes_requests for pod in service_plan.pods))
            status = service_plan.service.status
            if status.cost is not None:
                cost.add_metric([*label_values, status.cost.currency], float(status.cost.per_hour))
            for status_condition in status.conditions:
                condition.add_metric(
                    [*label_values, status_condition.type, status_condition.reason],
                    _condition_value(status_condition),
                )
        yield from (desired, recommended, ready, cost, condition)


class _BudgetCollector(Collector):
    """The state of the TenantBudgets after the last cycle."""

    outcome: ReconcileOutcome | None = None

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["budget", "window"]
        limit, spent, committed, forecast = (
            GaugeMetricFamily(
                f"tessera_budget_{name}_nanos", f"{text}, in 1e-9 of the currency.", labels=labels
            )
            for name, text in (
                ("limit", "Maximum spend in the current window"),
                ("spent", "Spend in the current window"),
                (
                    "committed",
                    "Cost of minReplicas until the window ends, plus what is reserved beyond them",
                ),
                ("forecast", "Spend at the end of the window if everything that runs continues"),
            )
        )
        enforcing = GaugeMetricFamily(
            "tessera_budget_enforcing",
            "1 if limits hold, those of spec or the last accepted ones, else 0; with the reason.",
            labels=["budget", "reason"],
        )
        within_budget = GaugeMetricFamily(
            "tessera_budget_within_budget",
            "1 if the budget covers everything that is requested, else 0; with the reason.",
            labels=["budget", "owner", "reason"],
        )
        start = GaugeMetricFamily(
            "tessera_budget_window_start_timestamp_seconds",
            "Start of the current window.",
            labels=[*labels, "currency"],
        )
        override = GaugeMetricFamily(
            "tessera_budget_override_until_timestamp_seconds",
            "End of the override in effect.",
            labels=["budget"],
        )
        for view in self.outcome.plan.budgets if self.outcome else ():
            if view.override is not None:
                override.add_metric([view.budget.name], view.override.until.timestamp())
            name, verdict = view.budget.name, view.within_budget
            limits = view.enforcing.reason
            enforcing.add_metric([name, limits], float(limits.is_true))
            owner = view.spec.owner if view.spec is not None else ""
            within_budget.add_metric([name, owner, verdict.reason], float(verdict.reason.is_true))
            for budget_window in view.state.current_windows:
                label_values = [name, budget_window.period.name]
                start.add_metric(
                    [*label_values, view.state.currency], budget_window.period.start.timestamp()
                )
                limit.add_metric(label_values, budget_window.limit)
                spent.add_metric(label_values, budget_window.spent)
                committed.add_metric(
                    label_values, budget_window.min_replicas_cost + budget_window.granted
                )
                forecast.add_metric(label_values, budget_window.forecast)
        yield from (limit, spent, committed, forecast, enforcing, within_budget, start, override)


class _BatchCollector(Collector):
    """The progress of the batches after the last cycle."""

    outcome: ReconcileOutcome | None = None

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["namespace", "batch"]
        rows = GaugeMetricFamily(
            "tessera_batch_rows",
            "Rows of the batch by outcome: completed, failed or remaining.",
            labels=[*labels, "outcome"],
        )
        resent = GaugeMetricFamily(
            "tessera_batch_resent_tokens",
            "Estimated tokens processed again because attempts were lost.",
            labels=labels,
        )
        state = GaugeMetricFamily(
            "tessera_batch_state",
            "1 for the current state of the batch.",
            labels=[*labels, "state", "reason"],
        )
        for ref, batch in self.outcome.plan.batches.items() if self.outcome else ():
            label_values = [ref.namespace, ref.name]
            state.add_metric([*label_values, batch.state, batch.running.reason], 1)
            if batch.progress is not None:
                remaining = batch.progress.rows - batch.progress.done
                rows.add_metric([*label_values, "completed"], batch.progress.completed)
                rows.add_metric([*label_values, "failed"], batch.progress.failed)
                rows.add_metric([*label_values, "remaining"], remaining)
                resent.add_metric(label_values, batch.progress.resent_tokens)
        yield from (rows, resent, state)


@dataclass(frozen=True, slots=True)
class _BilledCosts:
    """The bill with its tenants; one immutable value, since scrapes read it from another thread."""

    bill: Bill = field(default_factory=Bill)
    nanos: Mapping[tuple[CostLine, str], int] = field(default_factory=dict)


class _BillCollector(Collector):
    """The bill as counters, in nano-units and in the currency.

    A cost stays with the tenant that its namespace belonged to at the time.
    """

    def __init__(self) -> None:
        self.billed = _BilledCosts()

    def update(self, bill: Bill, tenants: Mapping[str, str]) -> None:
        if bill is self.billed.bill:
            return
        before, nanos = self.billed.bill.lines, dict(self.billed.nanos)
        for line, total in bill.lines.items():
            increase = total - before.get(line, 0)
            if increase or line not in before:
                key = line, tenants.get(line.namespace, "")
                nanos[key] = nanos.get(key, 0) + increase
        self.billed = _BilledCosts(bill, nanos)

    @override
    def collect(self) -> Iterator[Metric]:
        billed = self.billed
        labels = ["currency", "pool", "profile", "tenant", "namespace", "service", "state"]
        cost_nanos = CounterMetricFamily(
            "tessera_cost_nanos",
            "Cost of the nodes of all pools since this process started counting, in 1e-9 of "
            "the currency.",
            labels=labels,
        )
        cost = CounterMetricFamily(
            "tessera_cost",
            "tessera_cost_nanos_total in the currency, rounded to a float.",
            labels=labels,
        )
        for (line, tenant), nanos in billed.nanos.items():
            owner_labels = [tenant, line.namespace, line.service]
            label_values = [line.currency, line.pool, line.profile, *owner_labels, line.state]
            cost_nanos.add_metric(label_values, nanos)
            cost.add_metric(label_values, nanos / NANO)
        as_of = GaugeMetricFamily(
            "tessera_cost_as_of_timestamp_seconds", "Time up to which costs are charged."
        )
        since = GaugeMetricFamily(
            "tessera_cost_since_timestamp_seconds", "When this process started counting."
        )
        if billed.bill.as_of is not None and billed.bill.since is not None:
            as_of.add_metric([], billed.bill.as_of.timestamp())
            since.add_metric([], billed.bill.since.timestamp())
        yield from (cost_nanos, cost, as_of, since)


def _condition_value(condition: Condition) -> float:
    return 1.0 if condition.status == "True" else 0.0
