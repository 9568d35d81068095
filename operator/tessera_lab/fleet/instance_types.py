"""The instance types of a simulated service: by the recorded load one of them runs, or two while it
changes. Each is a pool of its own, that a policy scales."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.hardware.pools import HardwareOffer
from tessera.domain.instance_types.change import RunningType, TypeDecision, decide_type
from tessera.domain.instance_types.rank import MIN_HISTORY
from tessera.domain.observed.load_history import SPAN, LoadHistory
from tessera.domain.placement.candidates import (
    HardwareChoice,
    fitting_choices,
    hardware_candidates,
)
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import is_type_of
from tessera_lab.fleet.model import FleetModel, NodePool, PoolHardware, Tier
from tessera_lab.fleet.recorded_load import recorded_until
from tessera_lab.fleet.sizing import sized_fleet

# As often as the operator reads a history.
READ_INTERVAL = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTypes:
    """The instance types among which a recorded load decides."""

    spec: InferenceServiceSpec
    choices: tuple[HardwareChoice, ...]
    """Whole GPUs of one pool in one precision; the cheapest replica first."""
    recorded: LoadHistory
    """To the end of a run; a decision reads the spans that have ended by then."""
    running: RunningType
    """At the start of the run."""

    @property
    def choice(self) -> HardwareChoice:
        """Return the hardware at the start of the run."""
        return next(each for each in self.choices if each.variant == self.running.variant)

    def decide(self, at: datetime, running: RunningType) -> TypeDecision:
        """Return what the load until a moment says of the type that runs."""
        shape = shape_of(self.spec)
        assert shape is not None  # noqa: S101 - choices were sized for it
        recorded = recorded_until(self.recorded, at)
        return decide_type(self.spec, shape, self.choices, recorded, running)

    def at(self, moment: datetime) -> "RecordedTypes":
        """Return the types with that which runs at a moment, if the service began on the first one
        when the history does, and each hour was decided on since."""
        running = self.running
        decided = self.recorded.spans[0].end - SPAN + MIN_HISTORY
        while decided < moment:
            changed = self.decide(decided, running).change_to
            if changed is not None:
                running = replace(running, variant=changed.variant, since=decided)
            decided += READ_INTERVAL
        return replace(self, running=running)

    def pools(self, fleet: FleetModel) -> tuple[NodePool, ...]:
        """Return a pool of each type for a fleet on the first one, that which runs in front.

        Engines are as much slower than predicted as those of the fleet.
        """
        slower = fleet.step.weights / self.choices[0].fit.step.weights
        ranked = sorted(self.choices, key=lambda choice: choice.variant != self.running.variant)
        return tuple(self._pool(fleet, choice, slower) for choice in ranked)

    def _pool(self, fleet: FleetModel, choice: HardwareChoice, slower: float) -> NodePool:
        typed = sized_fleet(self.spec, choice.fit)
        return NodePool(
            name=choice.variant,
            tier=Tier.ON_DEMAND,
            hardware=PoolHardware(
                replica=typed.replica,
                limits=typed.limits,
                step=typed.step if slower == 1 else typed.step.scaled(slower, "Measured"),
                size=typed.gpus // fleet.gpus,
            ),
        )


def recorded_types(
    spec: InferenceServiceSpec,
    first: HardwareChoice,
    offers: Sequence[HardwareOffer],
    recorded: LoadHistory,
    start: timedelta,
) -> RecordedTypes:
    """Return the types among the offers of the first one's pool, in its precision."""
    shape = shape_of(spec)
    assert shape is not None  # noqa: S101 - the first one was sized for it
    others = [
        choice
        for choice in fitting_choices(hardware_candidates(spec, shape, offers))
        if is_type_of(choice, first)
        and choice.fit.hardware.devices % first.fit.hardware.devices == 0
        and choice.variant != first.variant
    ]
    return RecordedTypes(
        spec=spec,
        choices=(first, *others),
        recorded=recorded,
        running=RunningType(variant=first.variant, start=start),
    )
