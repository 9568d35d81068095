"""What is observed of a service while it runs, as the next status has it."""

from dataclasses import replace

from tessera.domain.aspects.aspect import Measurements
from tessera.domain.aspects.aspects import following
from tessera.domain.health.stall import Stall
from tessera.domain.incremental import reused_per_object
from tessera.domain.observed.snapshot import Ref
from tessera.domain.planning.service_plan import ServicePlan


@reused_per_object
def with_observations(
    _ref: Ref, service_plan: ServicePlan, stall: Stall, measurements: Measurements
) -> ServicePlan:
    """Add a stall, and what was measured; without a reading what is reported stays."""
    reported = following(service_plan.placed, measurements, service_plan.reported)
    return replace(service_plan, stall=stall, reported=reported)
