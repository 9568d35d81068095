"""What is observed of a service while it runs, as the next status has it."""

from dataclasses import replace
from datetime import datetime

from tessera.domain.aspects.aspect import Measurements
from tessera.domain.aspects.aspects import following
from tessera.domain.health.stall import Stall
from tessera.domain.incremental import Until, reused_until
from tessera.domain.observed.snapshot import Ref
from tessera.domain.planning.service_plan import ServicePlan


@reused_until
def with_observations(
    _ref: Ref, service_plan: ServicePlan, stall: Stall, measurements: Measurements, *, at: datetime
) -> Until[ServicePlan]:
    """Add a stall, and what is reported of what was measured."""
    reported = following(service_plan.placed, measurements, at)
    return Until(replace(service_plan, stall=stall, reported=reported.result), reported.until)
