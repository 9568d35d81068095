"""What services and batches ask of the budgets of their tenants, and get."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from tessera.domain.batch import batches
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import HOLD, Claim, Funding, Purse, fund
from tessera.domain.draft import Draft, of_variant, remembered, scaling_of
from tessera.domain.snapshot import Ref, Snapshot

LEAVING = timedelta(seconds=60)
"""A replica that is let go costs so long beyond its drain, until its engine has exited."""


def granted(
    snapshot: Snapshot,
    drafts: Mapping[Ref, Draft],
    runs: Mapping[Ref, batches.Drafted],
    budgets: Sequence[BudgetView],
) -> Mapping[Ref, Funding]:
    """What the tenants can pay, for the services and batches of those that have a budget."""
    granted: dict[Ref, Funding] = {}
    for view in budgets:
        if view.purse is None or view.budget.spec is None:
            continue
        names = view.budget.spec.tenant.namespaces
        claims: list[Claim] = []
        for ref in sorted(ref for ref in drafts if ref.namespace in names):
            _go_on(drafts[ref], view.meter, view.purse)
            claims += _claims(snapshot, drafts[ref])
        for ref in sorted(ref for ref in runs if ref.namespace in names):
            runs[ref].go_on(view.meter, view.purse)
            claims += runs[ref].claims
        granted |= fund(view.purse, claims, view.budget.spec.currency)
    return granted


def _go_on(draft: Draft, meter: Meter, purse: Purse) -> None:
    """What has to be paid besides the claim: pods of a service that cannot be placed are left as
    they are, and those of a former variant go on until the new one is up."""
    choice = draft.placement.choice
    for pod in draft.holding.pods:
        running = meter.running.get(pod.uid)
        if running is not None and choice is None:
            purse.floor(running.tariff, 1)
        elif running is not None and choice is not None and pod.variant != choice.variant:
            purse.leave(running.tariff, HOLD, 1)


def _claims(snapshot: Snapshot, draft: Draft) -> tuple[Claim, ...]:
    """A fixed number has a floor of 1: what the user set beyond it is granted or not."""
    choice, spec = draft.placement.choice, draft.service.spec
    if choice is None or spec is None:
        return ()
    holding, wanted, ref = draft.holding, draft.scale.replicas, draft.service.ref
    least = 1 if spec.replicas is not None else scaling_of(spec).min_replicas
    memory = snapshot.memory.get(ref) or remembered(draft.service.status)
    counts = [count.replicas for count in memory.counts[-1:]]
    mine = [pod for pod in of_variant(holding.pods, choice) if pod.ended is None]
    claim = Claim(
        ref=ref,
        tariff=choice.offer.tariff,
        floor=min(least, wanted),
        wanted=wanted,
        running=max([*counts, *(one.replicas for one in holding.workloads)], default=0),
        alive=len(mine),
        leaving=spec.drain.timeout + LEAVING,
    )
    return (claim,)
