"""What is compared before a decision is taken again is what it reads.

Fleets are generated, and what each of their services is decided by is recorded. A decision that
gets another value of any field of that differs for some of them: none is only a key of the cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import pytest
from typing_extensions import override

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Accepted, RevisionReason, StatusVerdict
from tessera.api.service_status import ModelStatus, ReplicaConflict
from tessera.api.template_version import PodTemplateVersion
from tessera.domain.budget.state import Grant
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.load_history import LoadHistory, LoadSpan
from tessera.domain.observed.snapshot import Ref, Snapshot, SpeedReading, TokenRates
from tessera.domain.planning import plan as planning
from tessera.domain.planning.inputs import KnownConflicts, ServicePlanInputs
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.planning.service_decision import plan_service
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.drain import Displacement
from tessera.domain.scaling.load import ServiceReadings
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service import proposals
from tessera.domain.service.preparation.claims import ClaimUsers
from tessera.domain.service.proposal import ProposalInputs, propose
from tests.builders import a_spec
from tests.domain.aspects.measured_fleet import MeasuredFleet

STATES = 300
_CYCLES = 30


class _Call(NamedTuple):
    """One service of a generated fleet, as it was decided."""

    ref: Ref
    inputs: Any
    circumstances: Mapping[str, Any]


class _PlannedFleet(MeasuredFleet):
    """A generated fleet whose gateways report, and may be removed."""

    def states(self) -> Iterator[tuple[Config, Snapshot, PlanMemory, Mapping[Ref, ServicePlan]]]:
        """Play the sequence; yield each state with what is decided for it."""
        for cycle in range(_CYCLES):
            if cycle and self.random.random() < 0.3:
                self._change()
            if self.random.random() < 0.5:
                self._read(cycle)
            if self.random.random() < 0.4:
                self.fleet.fields["demand"] = self._demand()
            if self.random.random() < 0.1:
                gateways = not self.fleet.config.gateways
                self.fleet.config = replace(self.fleet.config, gateways=gateways)
            config, memory = self.fleet.config, self.fleet.memory
            self.fleet.cycle(self.random.choice((5, 5, 15, 60)))
            assert self.last is not None
            snapshot, decided = self.last
            yield config, snapshot, memory, decided.service_plans

    @override
    def _spec(self) -> InferenceServiceSpec:
        spec, chosen = super()._spec(), self.random
        scaling = spec.scaling.model_dump(by_alias=True, exclude_unset=True)
        scaling["policy"] = chosen.choice(("Capacity", "QueueAndActivity"))
        if chosen.random() < 0.3:
            scaling |= {"minReplicas": 0, "idle": {"after": "1m"}}
        elif chosen.random() < 0.3:
            scaling["mode"] = "HPA"
        return a_spec(**{**spec.model_dump(by_alias=True, exclude_unset=True), "scaling": scaling})

    @override
    def _read(self, cycle: int) -> None:
        super()._read(cycle)
        if (readings := self.fleet.fields["readings"]) is not None:
            finished = {ref: self.random.choice((0.0, 9.0)) for ref in self.loads}
            pods = {ref: pod for ref, pod in readings.pods.items() if self.random.random() < 0.9}
            problem = self.random.choice((None, None, None, "connection refused"))
            self.fleet.fields["readings"] = replace(
                readings, pods=pods, finished=finished, problem=problem
            )

    @override
    def _speeds(self, ref: Ref) -> tuple[SpeedReading, ...]:
        return tuple(replace(each, cached_share=0.5) for each in super()._speeds(ref))

    def _demand(self) -> Mapping[Ref, GatewayDemand] | None:
        if self.random.random() < 0.3:
            return None
        count = self.random.choice((0, 5, 60, 60))
        arrivals = (0,) * 59 + (count,)
        demand = GatewayDemand(
            queued=count, arrivals_per_second=count / 60, arrivals=arrivals, arrived=count
        )
        return dict.fromkeys(self.loads, demand)


def _without_times(service_plans: Mapping[Ref, ServicePlan]) -> Mapping[Ref, ServicePlan]:
    """Drop the times in the histories, which an incremental plan updates later."""
    return {
        ref: replace(service_plan, scale=replace(service_plan.scale, history=ScalingHistory()))
        for ref, service_plan in service_plans.items()
    }


def _case(seed: int) -> object:
    marks = [] if seed <= 2 else [pytest.mark.full, pytest.mark.long]
    return pytest.param(seed, marks=marks)


@pytest.mark.parametrize("seed", [_case(seed) for seed in range(1, STATES // _CYCLES + 1)])
def test_an_incremental_plan_of_a_generated_fleet_equals_a_plain_one(seed: int) -> None:
    incremental, last = Incremental(), PlanMemory()
    for config, snapshot, memory, service_plans in _PlannedFleet(seed).states():
        # A restart forgets what was decided.
        last = last if memory.scaling_history else PlanMemory()
        decided = incremental.run(planning.plan, config, snapshot, last)
        assert _without_times(decided.service_plans) == _without_times(service_plans)
        last = last.after(decided)


@cache
def _calls() -> Mapping[type[Any], Sequence[_Call]]:
    """Return how services of generated fleets are decided, by the type of what is compared."""
    calls: dict[type[Any], list[_Call]] = {ProposalInputs: [], ServicePlanInputs: []}

    def recording(decide: Any) -> Any:
        def call(ref: Ref, inputs: Any, **circumstances: Any) -> Any:
            # What the services before it left is changed by the next one.
            room = deepcopy(circumstances.get("room"))
            named = circumstances | ({} if room is None else {"room": room})
            calls[type(inputs)].append(_Call(ref, inputs, named))
            return decide(ref, inputs, **circumstances)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "propose", recording(propose))
        patch.setattr(planning, "plan_service", recording(plan_service))
        for seed in range(1, STATES // _CYCLES + 1):
            for _ in _PlannedFleet(seed).states():
                pass
    return calls


def _decide(call: _Call, inputs: Any) -> Any:
    decide: Any = propose if isinstance(inputs, ProposalInputs) else plan_service
    return decide(call.ref, inputs, **call.circumstances)


def _a_conflict(call: _Call) -> ReplicaConflict:
    at = call.circumstances["at"] + timedelta(minutes=5)
    return ReplicaConflict(
        deployment="chat-a100",
        manager="hpa",
        replicas=7,
        generation=1,
        writes=3,
        correction_at=at,
        since=at,
    )


def _a_history(call: _Call) -> LoadHistory:
    at = call.circumstances["at"]
    span = LoadSpan(
        end=at,
        rate=1.0,
        input_tokens=500.0,
        output_tokens=200.0,
        input_variation=1.0,
        resident_tokens=600.0,
    )
    return LoadHistory(read_at=at, spans=(span,) * 36)


def _a_pin(call: _Call) -> ModelStatus:
    model = call.inputs.proposal.service.spec.model
    return ModelStatus(uri=model.uri, revision="a" * 40, reason=RevisionReason.REVISION_RESOLVED)


# Values that no generated fleet has: those of hubs, of people who write replicas, of new versions.
OTHERS: Mapping[str, Callable[[_Call], object]] = {
    "load_history": _a_history,
    "token_rates": lambda _: TokenRates(prompt=9000.0, output=900.0),
    "grant": lambda call: Grant(
        counts=(0,) * len(call.inputs.proposal.counts), shortage="no money"
    ),
    "displacement": lambda call: Displacement(
        frozenset(pod.ref for pod in call.inputs.proposal.objects.pods)
    ),
    "newest_template": lambda _: PodTemplateVersion(builder_version=2),
    "unpaid_surges": lambda call: call.inputs.with_surge_capacity,
    "start_refusal": lambda _: "no money",
    "autoscalers": lambda call: not call.inputs.autoscalers,
    "name_conflicts": lambda _: (StatusVerdict(Accepted.NAME_CONFLICT, "taken"),),
    "known_conflicts": lambda call: KnownConflicts(
        tuple(_a_conflict(call) for _ in call.inputs.proposal.objects.workloads)
    ),
    "last_pin": _a_pin,
    "withdrawn": lambda call: frozenset(
        variant.template.digest for variant in _decide(call, call.inputs).variants
    ),
}
# Those that the room and the snapshot are compared by, which a decision reads beside its inputs,
# one that layouts alone have, tests/domain/repartition, and one of models that a Job reads or
# downloads, tests/hostile/test_unpaid.py.
KEYS = ("room_key", "recorded_claims", "surge_replicas", "preparation_refusal")


def _others(field: str, calls: Sequence[_Call], index: int, nested: str) -> Iterator[object]:
    """Yield values that a field might have instead: one that is made, or those of other calls."""
    if field in OTHERS:
        yield OTHERS[field](calls[index])
        return
    for other in islice(calls, index + 1, index + 30, 4):
        yield getattr(getattr(other.inputs, nested) if nested else other.inputs, field)


FIELDS = [
    (value, nested, field)
    for value, nested, fields in (
        (ProposalInputs, "", ProposalInputs._fields),
        (ProposalInputs, "readings", ServiceReadings._fields),
        (ServicePlanInputs, "", ServicePlanInputs._fields),
    )
    for field in fields
    if field not in KEYS
]


@pytest.mark.parametrize(("value", "nested", "field"), FIELDS)
def test_a_field_that_is_held_back_is_found(value: type[Any], nested: str, field: str) -> None:
    calls = _calls()[value]
    for index, call in enumerate(calls[:STATES]):
        expected = _decide(call, call.inputs)
        for other in _others(field, calls, index, nested):
            inputs = call.inputs
            if nested:
                part = getattr(inputs, nested)._replace(**{field: other})
                inputs = inputs._replace(**{nested: part})
            else:
                inputs = inputs._replace(**{field: other})
            if _decide(call, inputs) != expected:
                return
    pytest.fail(f"{value.__name__}.{field} is compared, and decides nothing")


def test_a_plan_that_is_not_made_again_in_every_cycle_reads_nothing_beside_its_inputs() -> None:
    calls, standing = _calls()[ServicePlanInputs], 0
    for call in calls[:STATES]:
        expected = _decide(call, call.inputs)
        if expected.is_moving:
            continue
        standing += 1
        later = call.circumstances["at"] + timedelta(days=1)
        empty = Snapshot(at=later)
        assert (
            plan_service(call.ref, call.inputs, at=later, snapshot=empty, users=ClaimUsers())
            == expected
        )
    assert standing > STATES / 10
