"""What the plan of one service is computed from."""

from typing import NamedTuple

from tessera.api.reasons import Accepted, StatusVerdict
from tessera.api.service_status import ModelStatus, ReplicaConflict
from tessera.api.template_version import PodTemplateVersion
from tessera.domain.budget.state import Grant
from tessera.domain.observed.snapshot import ListedAutoscalers
from tessera.domain.rollout.drain import Displacement
from tessera.domain.service.proposal import Proposal


class KnownConflicts(NamedTuple):
    """What is known of others who write the replicas of a service."""

    of_workloads: tuple[ReplicaConflict | None, ...] = ()
    """What the last plan or the status says of each of its Deployments."""
    listed: ListedAutoscalers | None = None
    """Autoscalers of its namespace, where there is such a conflict."""


class ServicePlanInputs(NamedTuple):
    """All inputs of a service plan except the time."""

    proposal: Proposal
    grant: Grant | None
    displacement: Displacement
    """Replicas whose slices are removed."""
    surge_replicas: int
    """Further replicas that it needs on its previous variants."""
    newest_template: PodTemplateVersion
    with_surge_capacity: frozenset[str]
    """The variants whose pools have devices beyond the desired replicas."""
    unpaid_surges: frozenset[str] = frozenset()
    """Those of them of which the budget grants no replica beyond the desired ones."""
    start_refusal: str | None = None
    """Why the budget would start no replica of it, where it has none, or plan no slice for it."""
    preparation_refusal: str | None = None
    """Why the budget pays for nothing that prepares its model: it has no replica and gets none."""
    autoscalers: bool = False
    """HorizontalPodAutoscalers may be written."""
    name_conflicts: tuple[StatusVerdict[Accepted], ...] = ()
    """What is wrong with its names, the worst first."""
    known_conflicts: KnownConflicts = KnownConflicts()
    last_pin: ModelStatus | None = None
    """The revision that the last plan pinned, while the status does not have it."""
    withdrawn: frozenset[str] = frozenset()
    """Digests of the templates that the last plan withdrew, while the status does not have them."""
    recorded_claims: tuple[object, ...] = ()
    """What the claims of its model files depend on beside itself."""
