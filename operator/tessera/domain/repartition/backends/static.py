"""Nobody cuts: slices are what somebody made by hand."""

from dataclasses import dataclass
from datetime import datetime

from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.repartition.backend import Ask, Capabilities, Heard, Layouts
from tessera.domain.repartition.facts import Ground


@dataclass(frozen=True, slots=True)
class Static:
    """`GeometryBackend` of pools that are taken as they are."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            pinned_starts=False, sibling_safe=False, knows_pods=False, pauses_node=False
        )

    def ask(self, ground: Ground, wanted: Layouts, attempt: int) -> Ask:
        del ground, wanted, attempt
        return Ask()

    def heard(
        self, ground: Ground, wanted: Layouts, attempt: int, since: datetime, at: datetime
    ) -> Heard:
        del wanted, attempt, since, at
        message = f"the GPUs of {ground.name} are taken as they are: spec.mig.layout is empty"
        return Heard(problem=StatusVerdict(LayoutReady.NOT_MANAGED, message))
