"""The state of services, budgets and batches after the last cycle, as metrics.

Deleted objects leave no series.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from tessera.api.accelerator_pool import Tier
from tessera.domain.names import RECOMMENDED_REPLICAS
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.scaling.starts import phase_seconds
from tessera.reconcile.cycle import ReconcileOutcome

_SERVICE_LABELS = ("namespace", "service")
_DESIRED = Series(
    "tessera_service_desired_replicas", "Desired replicas.", *(*_SERVICE_LABELS, "reason")
)
_RECOMMENDED = Series(
    RECOMMENDED_REPLICAS,
    "Replicas that the policy would choose where another autoscaler decides.",
    *_SERVICE_LABELS,
)
_READY = Series(
    "tessera_service_ready_replicas",
    "Replicas that are ready and receive requests.",
    *_SERVICE_LABELS,
)
_TIER_REPLICAS = Series(
    "tessera_service_tier_replicas",
    "Replicas on nodes by the tier of their pool; the sum of those of `OnDemand` at each minute is "
    "the minutes on demand, burst minutes where the service may use reserved pools too.",
    *(*_SERVICE_LABELS, "tier"),
)
_COST = Series(
    "tessera_service_cost_per_hour",
    "Cost per hour of running replicas and of desired ones that do not run yet.",
    *(*_SERVICE_LABELS, "currency"),
)
_CONDITION = Series(
    "tessera_service_condition",
    "1 if the condition is True, else 0; with its reason.",
    *(*_SERVICE_LABELS, "condition", "reason"),
)
_START_SECONDS = Series(
    "tessera_service_start_seconds",
    "Duration of the newest replica's start by `phase`: schedule, image (with volumes), engine "
    "(download without a cache, load, compilation, warm-up).",
    *(*_SERVICE_LABELS, "phase"),
)
SERVICE_SERIES = (
    _DESIRED,
    _RECOMMENDED,
    _READY,
    _TIER_REPLICAS,
    _COST,
    _CONDITION,
    _START_SECONDS,
)


def service_samples(outcome: ReconcileOutcome) -> Iterator[Sample]:
    """Yield the replicas, the cost and the conditions of each service."""
    for ref, service_plan in outcome.plan.service_plans.items():
        labels, scale = (ref.namespace, ref.name), service_plan.scale
        if scale.recommended is not None:
            yield _RECOMMENDED, labels, scale.recommended_pods
        yield _DESIRED, (*labels, scale.reason), service_plan.desired_pods
        yield _READY, labels, sum(pod.takes_requests for pod in service_plan.pods)
        for tier, replicas in _replicas_by_tier(service_plan).items():
            yield _TIER_REPLICAS, (*labels, tier), replicas
        status = service_plan.service.status
        if status.cost is not None:
            yield _COST, (*labels, status.cost.currency), float(status.cost.per_hour)
        if status.start is not None:
            for phase, seconds in phase_seconds(status.start):
                yield _START_SECONDS, (*labels, phase), seconds
        for condition in status.conditions:
            condition_labels = (*labels, condition.type, condition.reason)
            yield _CONDITION, condition_labels, condition.status == "True"


def _replicas_by_tier(service_plan: ServicePlan) -> Mapping[Tier, int]:
    """Return the replicas on nodes of each tier that the service uses."""
    choices = {variant.choice.variant: variant.choice.offer for variant in service_plan.variants}
    counts: Counter[Tier] = Counter({offer.tier: 0 for offer in choices.values()})
    counts.update(
        choices[pod.variant].tier
        for pod in service_plan.pods
        if pod.node is not None and pod.variant in choices
    )
    return counts


_WINDOW_LABELS = ("budget", "window")
_LIMIT, _SPENT, _OUTSIDE, _LENT, _COMMITTED, _FORECAST = (
    Series(f"tessera_budget_{name}_nanos", f"{text}, in 1e-9 of the currency.", *_WINDOW_LABELS)
    for name, text in (
        ("limit", "Maximum spend in the current window"),
        ("spent", "Spend in the current window, with what was used at outside providers"),
        ("outside", "What of the spend in the current window was used at outside providers"),
        ("lent", "What is lent for outside providers in the current window, used or not"),
        (
            "committed",
            "Cost of minReplicas until the window ends, plus what is reserved beyond them",
        ),
        ("forecast", "Spend at the end of the window if everything that runs continues"),
    )
)
_ENFORCING = Series(
    "tessera_budget_enforcing",
    "1 if limits hold, those of spec or the last accepted ones, else 0; with the reason.",
    *("budget", "reason"),
)
_WITHIN_BUDGET = Series(
    "tessera_budget_within_budget",
    "1 if the budget covers everything that is requested, else 0; with the reason.",
    *("budget", "owner", "reason"),
)
_START = Series(
    "tessera_budget_window_start_timestamp_seconds",
    "Start of the current window.",
    *(*_WINDOW_LABELS, "currency"),
)
_OVERRIDE = Series(
    "tessera_budget_override_until_timestamp_seconds", "End of the override in effect.", "budget"
)
BUDGET_SERIES = (
    *(_LIMIT, _SPENT, _OUTSIDE, _LENT, _COMMITTED, _FORECAST),
    *(_ENFORCING, _WITHIN_BUDGET, _START, _OVERRIDE),
)


def budget_samples(outcome: ReconcileOutcome) -> Iterator[Sample]:
    """Yield the verdicts about each TenantBudget, and the amounts of its windows."""
    for view in outcome.plan.budgets:
        name, owner = view.budget.name, view.spec.owner if view.spec is not None else ""
        if view.override is not None:
            yield _OVERRIDE, (name,), view.override.until.timestamp()
        enforcing, within_budget = view.enforcing.reason, view.within_budget.reason
        yield _ENFORCING, (name, enforcing), enforcing.is_true
        yield _WITHIN_BUDGET, (name, owner, within_budget), within_budget.is_true
        for window in view.state.current_windows:
            if window.period.service is not None:
                continue
            labels = name, window.period.key
            yield _START, (*labels, view.state.currency), window.period.start.timestamp()
            yield _LIMIT, labels, window.limit
            yield _SPENT, labels, window.spent
            if window.outside:
                yield _OUTSIDE, labels, window.outside
            if lent := window.outside + window.lent:
                yield _LENT, labels, lent
            yield _COMMITTED, labels, window.min_replicas_cost + window.granted
            yield _FORECAST, labels, window.forecast
        for limit in view.limits:
            if limit.basis == "Charge" or limit.is_partial:
                labels = name, limit.name
                yield _LIMIT, labels, limit.limit
                yield _SPENT, labels, limit.spent


_BATCH_LABELS = ("namespace", "batch")
_ROWS = Series(
    "tessera_batch_rows",
    "Rows of the batch by outcome: completed, failed or remaining.",
    *(*_BATCH_LABELS, "outcome"),
)
_RESENT = Series(
    "tessera_batch_resent_tokens",
    "Estimated tokens processed again because attempts were lost.",
    *_BATCH_LABELS,
)
_STATE = Series(
    "tessera_batch_state",
    "1 for the current state of the batch.",
    *(*_BATCH_LABELS, "state", "reason"),
)
BATCH_SERIES = _ROWS, _RESENT, _STATE


def batch_samples(outcome: ReconcileOutcome) -> Iterator[Sample]:
    """Yield the state and the progress of each batch."""
    for ref, batch in outcome.plan.batches.items():
        labels, progress = (ref.namespace, ref.name), batch.progress
        yield _STATE, (*labels, batch.state, batch.running.reason), 1
        if progress is not None:
            yield _ROWS, (*labels, "completed"), progress.completed
            yield _ROWS, (*labels, "failed"), progress.failed
            yield _ROWS, (*labels, "remaining"), progress.rows - progress.done
            yield _RESENT, labels, progress.resent_tokens
