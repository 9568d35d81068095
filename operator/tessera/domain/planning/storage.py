"""The size of all claims of model files and of gates' answers that a tenant may have at once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tessera.api.model_files import gibibytes
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.domain.budget.budgets import BudgetView, by_namespace
from tessera.domain.incremental import reused_per_object
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.quality.names import answers_claim_name
from tessera.domain.service.preparation.claims import ModelClaim


class StorageRoom:
    """What the budgets leave for claims while a plan is made, in the order of what asks."""

    def __init__(self, budgets: Iterable[BudgetView], snapshot: Snapshot) -> None:
        self._views = by_namespace(tuple(budgets))
        self._snapshot = snapshot
        self._used: Counter[str] | None = None
        self._granted = dict[Ref, int]()

    def refuse(self, claim: ModelClaim) -> str | None:
        """Return why a claim is neither created nor grows; None where it now has its room."""
        return self._refuse(
            claim.ref,
            claim.gib - (claim.volume.gib if claim.volume is not None else 0),
            f"for {claim.files.uri} have no room. Raise spec.storage, lower "
            "spec.model.cache.size, or delete services whose files are not needed.",
        )

    def refuse_answers(self, gate: ObservedGate) -> str | None:
        """Return why the claim of a gate's answers is not written; None where it has its room."""
        if gate.spec is None:
            return None
        ref = Ref(gate.ref.namespace, answers_claim_name(gate.ref.name))
        volume = self._snapshot.claims.get(ref)
        return self._refuse(
            ref,
            gibibytes(gate.spec.answers.size) - (volume.gib if volume is not None else 0),
            "for its answers have no room. Raise spec.storage, lower spec.answers.size of the "
            "gate, or delete services whose files are not needed.",
        )

    def _refuse(self, ref: Ref, larger_gib: int, purpose: str) -> str | None:
        growth = max(0, larger_gib - self._granted.get(ref, 0))
        view = self._views.get(ref.namespace)
        if not growth or view is None or view.spec is None:
            return None
        if self._used is None:
            self._used = _used_gib(self._snapshot, self._views)
        tenant, quota = view.budget.name, view.spec.storage
        if self._used[tenant] + growth <= gibibytes(quota):
            self._used[tenant] += growth
            self._granted[ref] = self._granted.get(ref, 0) + growth
            return None
        return (
            f"TenantBudget/{tenant}: spec.storage is {quota}, and claims of model files and of "
            f"answers have {self._used[tenant]} GiB, so {growth} GiB more {purpose}"
        )


def within_storage(
    service_plans: Mapping[Ref, ServicePlan], room: StorageRoom
) -> Mapping[Ref, ServicePlan]:
    """Return the plans with the claims that have room; existing ones stay as large as they are."""
    refused = dict[Ref, ServicePlan]()
    for ref in sorted(service_plans):
        for claim in service_plans[ref].claims:
            if (refusal := room.refuse(claim)) is not None:
                refused[ref] = _refused(ref, refused.get(ref, service_plans[ref]), claim, refusal)
    return {**service_plans, **refused}


@reused_per_object
def _refused(_ref: Ref, service_plan: ServicePlan, claim: ModelClaim, refusal: str) -> ServicePlan:
    """Return the plan without a claim, or with the size that it has."""
    claims = tuple(
        replace(each, gib=each.volume.gib) if each.volume is not None else each
        for each in service_plan.claims
        if each is not claim or each.volume is not None
    )
    preparation = service_plan.preparation
    if preparation is not None and claim.volume is None:
        missing = StatusVerdict(Progressing.STORAGE_QUOTA_EXCEEDED, refusal)
        preparation = replace(preparation, job_to_create=None, missing_files=missing)
    return replace(service_plan, claims=claims, preparation=preparation)


def _used_gib(snapshot: Snapshot, views: Mapping[str, BudgetView]) -> Counter[str]:
    """Return what the claims of services, batches and gates of each tenant have."""
    users = {service.uid for service in snapshot.services}
    users |= {batch.uid for batch in snapshot.batches}
    users |= {gate.uid for gate in snapshot.gates}
    used = Counter[str]()
    for ref, volume in snapshot.claims.items():
        view = views.get(ref.namespace)
        if view is not None and not users.isdisjoint(volume.owners):
            used[view.budget.name] += volume.gib
    return used
