"""Metrics and log lines about the outcome of reconcile cycles."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.text import counted
from tessera.domain.batch.names import billing_ref
from tessera.domain.cost.bill import Bill
from tessera.domain.cost.energy import EnergyMeter
from tessera.domain.incremental import Incremental, reused_per_object
from tessera.domain.observed.snapshot import Pod, Ref
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.reporting.series import Sample, Series
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.telemetry.aspects import FOLLOWED, aspect_series, inputs_of, samples_by
from tessera.telemetry.bill import BILL_SERIES, BilledCosts, bill_samples
from tessera.telemetry.energy import ENERGY_SERIES, TenantEnergy, energy_samples
from tessera.telemetry.fleet import (
    BATCH_SERIES,
    BUDGET_SERIES,
    SERVICE_SERIES,
    batch_samples,
    budget_samples,
    service_samples,
)
from tessera.telemetry.layouts import (
    LAYOUT_SERIES,
    ObservedLayouts,
    PoolLayoutState,
    layout_samples,
)
from tessera.telemetry.process import ProcessMetrics
from tessera.telemetry.series import SeriesCollector

log = logging.getLogger("tessera")

T = TypeVar("T")


class Telemetry:
    """The operator's own metrics, and one log line for every decision that changed."""

    def __init__(self) -> None:
        self.process = ProcessMetrics()
        self.registry = self.process.registry
        """All metrics except those of the services, their speeds and objectives, and the bill."""
        self._outcome: ReconcileOutcome | None = None
        self._billed, self._energy = BilledCosts(), TenantEnergy()
        self._layouts = ObservedLayouts()
        of = self._of_outcome
        for series, samples in ((BATCH_SERIES, batch_samples), (BUDGET_SERIES, budget_samples)):
            self.registry.register(SeriesCollector(series, of(samples, ())))
        self.registry.register(
            SeriesCollector(LAYOUT_SERIES, lambda: layout_samples(self._layouts))
        )
        # These series are most of the page, so they are rendered only when their inputs changed.
        self._large_parts: tuple[tuple[CollectorRegistry, Callable[[], object]], ...] = (
            (_registry(SERVICE_SERIES, of(service_samples, ())), of(_service_plans, None)),
            *(
                (
                    _registry(aspect_series(name), of(partial(samples_by, name), ())),
                    of(partial(inputs_of, name), None),
                )
                for name in FOLLOWED
            ),
            (_registry(BILL_SERIES, lambda: bill_samples(self._billed)), lambda: self._billed),
            (_registry(ENERGY_SERIES, lambda: energy_samples(self._energy)), lambda: self._energy),
        )
        self._pages = Incremental()
        self._logged_decisions: dict[Ref, tuple[object, ...]] = {}
        self._logged_layouts: dict[str, StatusVerdict[LayoutReady]] = {}
        self._logged_plans: dict[Ref, ServicePlan] = {}

    def _of_outcome(self, read: Callable[[ReconcileOutcome], T], before: T) -> Callable[[], T]:
        """Return what reads the last outcome; `before` there is one it returns that."""
        return lambda: before if self._outcome is None else read(self._outcome)

    def record_reconcile(self, outcome: ReconcileOutcome, seconds: float) -> None:
        """Record the outcome of a reconcile cycle."""
        self.process.record_reconcile(seconds, outcome.cpu_seconds, outcome.writes)
        names = {name: view.budget.name for name, view in outcome.plan.budgets_by_namespace.items()}
        self.record_bill(outcome.bill, names)
        self.record_energy(outcome.energy, names)
        self._outcome = outcome
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
            self._log_service(ref, service_plan, outcome.problems.get(ref))
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
        return generate_latest(self.registry) + self._pages.run(self._render_large_parts)

    def _render_large_parts(self) -> bytes:
        return b"".join(_render(registry, inputs()) for registry, inputs in self._large_parts)

    def families(self) -> Iterator[Metric]:
        """Yield all metrics with their current values."""
        yield from self.registry.collect()
        for registry, _ in self._large_parts:
            yield from registry.collect()

    def record_bill(self, bill: Bill, tenants: Mapping[str, str]) -> None:
        """Record the bill after a cycle; `tenants` maps each namespace to its TenantBudget."""
        self._billed = self._billed.after(bill, tenants)

    def record_energy(self, meter: EnergyMeter, tenants: Mapping[str, str]) -> None:
        """Record the energy after a cycle, with the tenants that the bill has."""
        self._energy = self._energy.after(meter, tenants)

    def record_layouts(self, pools: Sequence[PoolLayoutState], pods: tuple[Pod, ...]) -> None:
        """Record the layouts after a cycle.

        `pods` say which GPUs are in use where no agent runs.
        """
        self._layouts = self._layouts.after(pools, pods)
        for pool in pools:
            name, verdict = pool.view.pool.name, pool.actions.verdict
            if self._logged_layouts.get(name) != verdict:
                self._logged_layouts[name] = verdict
                log.info("pool %s: %s: %s", name, verdict.reason, verdict.message)

    def _log_service(self, ref: Ref, service_plan: ServicePlan, problem: str | None) -> None:
        """Log what changed of the decision about a service."""
        if self._logged_plans.get(ref) is service_plan and problem is None:
            return
        self._logged_plans[ref] = service_plan
        accepted, placement = service_plan.accepted, service_plan.placement.verdict
        scale, stuck = service_plan.scale, service_plan.stall.replacement
        decision = (
            *(accepted.reason, placement.reason, service_plan.desired_pods, scale.reason, problem),
            stuck.uid if stuck is not None else None,
            *(_change_key(each) for each in service_plan.variants),
        )
        logged = self._logged_decisions.get(ref, ())
        if logged == decision:
            return
        self._logged_decisions[ref] = decision
        fields: dict[str, Any] = {
            "service": str(ref),
            "accepted": accepted.reason,
            "placed": placement.reason,
            "variant": service_plan.choice.variant if service_plan.choice else None,
            "replicas": service_plan.desired_pods,
            "reason": scale.reason,
        }
        variants = service_plan.variants
        if len(variants) > 1:
            fields["variants"] = {each.choice.variant: each.desired for each in variants}
        if problem is not None:
            log.warning("%s: %s", ref, problem, extra=fields)
        if stuck is not None:
            log.warning("%s: %s", ref, stuck.message, extra=fields)
        if not accepted.reason.is_true:
            log.info("%s: not accepted: %s", ref, accepted.message, extra=fields)
        elif not placement.reason.is_true:
            log.info("%s: not placed: %s", ref, placement.message, extra=fields)
        else:
            replicas_text = counted(service_plan.desired_pods, "replica")
            log.info("%s: %s: %s", ref, replicas_text, scale.message, extra=fields)
        for variant in variants:
            change = variant.change
            if change is not None and _change_key(variant) not in logged:
                log.info("%s: %s: %s", ref, change.reason, change.message, extra=fields)


def _change_key(variant: VariantPlan) -> tuple[str, int, str] | None:
    """Return what is logged once of a variant; None for the only one, whose number is logged."""
    change = variant.change
    return (change.variant, variant.desired, change.reason) if change is not None else None


def _service_plans(outcome: ReconcileOutcome) -> object:
    return outcome.plan.service_plans


def _registry(series: Sequence[Series], read: Callable[[], Iterable[Sample]]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(SeriesCollector(series, read))
    return registry


@reused_per_object
def _render(registry: CollectorRegistry, _inputs: object) -> bytes:
    return generate_latest(registry)
