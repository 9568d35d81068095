"""The scenarios: a load, what goes wrong, and when a fleet should have recovered.

Each has an active phase, and then a tail with so little load that one replica keeps the SLO.
"""

from array import array
from dataclasses import dataclass

from tessera_lab.fleet.disturbance import CALM, Disturbance
from tessera_lab.fleet.generators import situation
from tessera_lab.fleet.policies.product import FleetObjects
from tessera_lab.fleet.scenarios.service import fleet_objects
from tessera_lab.fleet.spot import SpotMarket, spot_market
from tessera_lab.fleet.trace import Trace

# Usual requests per second; a replica keeps the SLO with about 3.
RATE = 6.0
ACTIVE = TAIL = 1200.0
TAIL_RATE = 1.0
_RECOVERY_SECONDS = 300.0
_SEED = 20
_SPOT_NODES = 20
# The load `step` is four times as high from here on.
_STEP_AT = ACTIVE / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HardScenario:
    """One hard situation."""

    name: str
    load: str
    """The situation of the active phase."""
    usual_rate: float = RATE
    """Requests per second for which the fleet begins with enough replicas."""
    rate: float = 1.0
    """Of the active phase, as a multiple of the usual one."""
    tail: float = TAIL
    """Seconds of the tail."""
    steady: bool = False
    """The rate does not change within the active phase."""
    silent: bool = False
    """The tail has no request at all."""
    recovers_from: float = 0.0
    """When the load has changed for the last time and nothing more goes wrong, seconds."""
    disturbance: Disturbance = CALM
    speed: float = 1.0
    """Time of an engine's step relative to its profile."""
    spot: SpotMarket | None = None
    objects: FleetObjects | None = None
    """What the product's plan sees, where it is not as usual; other policies see no objects."""
    edits: tuple[tuple[float, FleetObjects], ...] = ()
    """Changes of these objects by their moments."""

    @property
    def recovery_seconds(self) -> float:
        """Return the time to recover: twice the longest start-up, and 20 s to notice."""
        return _RECOVERY_SECONDS * self.disturbance.start_up_factor

    @property
    def product_only(self) -> bool:
        """Return whether the scenario differs for the product's plan alone."""
        return self.objects is not None or bool(self.edits)

    def trace(self) -> Trace:
        """Return the active phase and the tail."""
        active = situation(self.load, self.usual_rate * self.rate, ACTIVE, _SEED)
        tail_rate = 0.0 if self.silent else TAIL_RATE
        return _joined(self.name, active, situation("steady", tail_rate, self.tail, _SEED + 1))


def _joined(name: str, first: Trace, second: Trace) -> Trace:
    later = array("d", (first.seconds + arrival for arrival in second.arrivals))
    return Trace(
        name=name,
        seconds=first.seconds + second.seconds,
        arrivals=first.arrivals + later,
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
    )


_BLACKOUT = (500.0, 800.0)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        HardScenario(name="steady", load="steady", steady=True),
        HardScenario(name="ramp", load="ramp", recovers_from=ACTIVE),
        HardScenario(name="step", load="step", recovers_from=_STEP_AT),
        HardScenario(name="spike", load="spike", recovers_from=ACTIVE / 2 + 10),
        HardScenario(name="wave", load="wave", recovers_from=ACTIVE),
        HardScenario(name="silent-night", load="silent-night", silent=True, recovers_from=ACTIVE),
        HardScenario(name="heavy-tail", load="heavy-tail", rate=0.5, steady=True),
        HardScenario(name="code", load="code", rate=0.05, recovers_from=ACTIVE),
        HardScenario(
            name="slow-start",
            load="step",
            disturbance=Disturbance(start_up_factor=2.0),
            recovers_from=_STEP_AT,
        ),
        HardScenario(
            name="metrics-missing",
            load="step",
            disturbance=Disturbance(no_metrics=((_STEP_AT - 50, 650.0),)),
            recovers_from=650.0,
        ),
        HardScenario(
            name="metrics-late",
            load="step",
            disturbance=Disturbance(metrics_delay=60.0),
            recovers_from=_STEP_AT,
        ),
        HardScenario(
            name="metrics-nan",
            load="steady",
            steady=True,
            disturbance=Disturbance(partial_metrics=((350.0, 650.0),)),
            recovers_from=650.0,
        ),
        HardScenario(
            name="metrics-reset",
            load="steady",
            steady=True,
            disturbance=Disturbance(counter_resets=(310.0, 610.0, 620.0)),
            recovers_from=620.0,
        ),
        HardScenario(
            name="dead-node",
            load="steady",
            steady=True,
            disturbance=Disturbance(dead_nodes=(600.0,)),
            recovers_from=600.0,
        ),
        HardScenario(
            name="full-pool",
            load="step",
            disturbance=Disturbance(full_pools=((_STEP_AT - 20, 700.0),)),
            recovers_from=700.0,
        ),
        HardScenario(
            name="spot-blackout",
            load="steady",
            steady=True,
            spot=spot_market([(0.0, _SPOT_NODES)]).without([_BLACKOUT]),
            recovers_from=_BLACKOUT[1],
        ),
        HardScenario(
            name="price-change",
            load="steady",
            steady=True,
            edits=((600.0, fleet_objects("13.72")), (900.0, fleet_objects("0.50"))),
            recovers_from=900.0,
        ),
        HardScenario(
            name="budget-end",
            load="step",
            objects=fleet_objects(hourly_limit="5.20"),
            edits=((800.0, fleet_objects(hourly_limit="100")),),
            recovers_from=800.0,
        ),
        HardScenario(name="model-slower", load="steady", steady=True, speed=1.3),
        HardScenario(name="model-faster", load="steady", steady=True, speed=0.7),
    )
}
