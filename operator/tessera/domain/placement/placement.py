"""The cheapest hardware on which a service fits and keeps its SLO."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from tessera.api.accelerator_pool import Tier
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import PlacementReason, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.api.variant_status import MAX_VARIANTS
from tessera.domain.hardware.pools import HardwareOffer, PoolView, admits, plans_layouts
from tessera.domain.observed.snapshot import Pool
from tessera.domain.placement.candidates import (
    HardwareChoice,
    Ranking,
    by_price,
    error_of_both,
    fitting_choices,
    free_replicas,
    hardware_candidates,
    is_surely_cheaper,
    running_at_best,
    watts_clause,
)
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.no_hardware import no_fit, no_group, no_offer
from tessera.domain.placement.variant_cost import capacity_of, cash_of

# Tiers whose nodes are not reclaimed.
NON_SPOT_TIERS: frozenset[Tier] = frozenset({"Reserved", "OnDemand"})
# Where devices are too few, a lower rank goes first within a tenant.
CLASS_RANKS = {"Interactive": 0, "Standard": 1, "Batch": 2}
_NO_OTHER = "; no other hardware fits"


class SliceAssignment(NamedTuple):
    """The slices that a layout plan assigns to a service."""

    pool: str
    profile: str
    """`whole` for the whole GPU."""
    replicas: int


def slice_assignments(service: Ref, pools: Iterable[Pool]) -> tuple[SliceAssignment, ...]:
    """Return the assignments by the plans in status, by pool and profile."""
    assignments = (
        SliceAssignment(pool.name, assignment.profile, assignment.replicas)
        for pool in pools
        if plans_layouts(pool.spec) and pool.status.mig and pool.status.mig.target
        for assignment in pool.status.mig.target.services
        if assignment.service == str(service)
    )
    return tuple(sorted(assignments))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningReplicas:
    """What a service runs, while its precision may change."""

    replicas: Mapping[str, int]
    """By variant; also of previous ones that still have pods."""
    held_devices: Mapping[tuple[str, str], int]
    """All devices that its pods hold, by pool and resource."""
    start: timedelta
    """The expected time until a replica is ready on a node."""


class TypeByLoad(NamedTuple):
    """What the recorded load of a service says of its instance type."""

    change_to: str | None
    """The variant to change to now; None to stay."""
    message: str
    """What the types cost; empty where nothing is decided."""
    worth: Mapping[str, float]
    """How many replicas of the type that runs serve the last hour's load as one of each type, by
    variant."""
    under_way: int = 0
    """So many replicas of the type to change to are wanted, some of which exist; 0 where the change
    has not begun."""
    left: str | None = None
    """The variant to which a change is taken back, as it does not end."""


_NO_TYPE = TypeByLoad(None, "", {})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementDecision:
    """The choices with their reason, or the reason for none."""

    verdict: StatusVerdict[PlacementReason]
    choices: tuple[HardwareChoice, ...] = ()
    """The variants that may serve it, the one that it is placed on first."""
    awaited: HardwareChoice | None = None
    """The cheapest hardware that fits, while a layout plan is awaited."""
    replaced_capacity: int = 0
    """What the replicas serve that a change of precision replaces, in thousandths of a token per
    second."""
    type_replicas: int = 0
    """As many replicas as serve the load after a change of type; 0 without one."""
    left_type: str | None = None
    """The variant of the type to which a change is taken back, as it does not end."""
    awaits_type: bool = False
    """The load calls for another type, which has no room beside what runs, or may not start."""
    type_capacities: Mapping[str, int] = field(default_factory=dict)
    """What a replica of the other types serves of the load, as `replaced_capacity`, by variant."""
    assigned: Mapping[str, int] = field(default_factory=dict)
    """Replicas by variant, where layout plans assign slices to them."""
    unshared: str | None = None
    """Why hardware of another pool does not serve beside the chosen one."""
    untried: HardwareChoice | None = None
    """What would be chosen if a gate had tried its precision."""
    keeps_slices: bool = False
    """The model fits on the chosen slices alone, which the layout of their pool does not have."""

    @property
    def choice(self) -> HardwareChoice | None:
        """The variant that it is placed on."""
        return self.choices[0] if self.choices else None


def place(  # noqa: PLR0913 - two of them are for batches
    spec: InferenceServiceSpec,
    views: Sequence[PoolView],
    *,
    namespace: str,
    current: str | None,
    running: RunningReplicas | None = None,
    running_variants: Collection[str] = (),
    min_replicas: int,
    desired: int = 0,
    used_devices: Mapping[tuple[str, str], int],
    tiers: Collection[Tier] = NON_SPOT_TIERS,
    rank: Ranking = by_price,
    assignments: Sequence[SliceAssignment] = (),
    may_share: Callable[[Sequence[HardwareChoice]], str | None] | None = None,
    type_by_load: Callable[[Sequence[HardwareChoice]], TypeByLoad] | None = None,
    bound: bool = True,
    stuck: bool = False,
) -> PlacementDecision:
    """Choose hardware for a checked spec.

    A service stays on its `current` variant as long as that fits: no model moves only for a better
    price, except to a listed precision in which it costs less, and to the instance type that its
    recorded load calls for (`type_by_load`), beside what is `running` (None: never). No choice that
    turns within the error of the predictions moves `running_variants`. It moves from slices that
    the pool's `spec.mig.layout` has no more, once others have room, and from a pool without a node
    that backs off, unless it is `bound`: a replica of it is on a node. Nor does it stay where its
    replicas are `stuck`, since none has a device and others hold all.
    Otherwise it gets the cheapest hardware with capacity for `min_replicas`, and without any what
    has capacity for most of them, where the scheduler reports what is missing; of equal price what
    draws fewer watts. `used_devices` counts devices of other services by pool and resource. Only
    pools of `tiers` that admit the namespace count, and `rank` defines cheap.

    Where layouts are planned, the service runs on the slices of its `assignments`; until it has
    one, it stays where it is or waits. `may_share` says why several kinds of hardware may not serve
    together (None: it is not asked, and one serves). Several kinds of a pool do where one of them
    has too few devices for the floor and for the replicas that were `desired` last.
    """
    shape = shape_of(spec)
    if shape is None:
        raise ValueError(f"{spec.model.uri} was placed without a shape")
    pools = spec.placement.pools
    named = [view for view in views if not pools or view.pool.name in pools]
    allowed = [view for view in named if admits(view.pool.spec, namespace)]
    if named and not allowed:
        closed = ", ".join(view.pool.name for view in named)
        return _not_placed(
            PlacementReason.POOL_NOT_ALLOWED,
            f"spec.placement.pools: spec.namespaces of AcceleratorPool {closed} does not list "
            f"{namespace}; have it added, or name another pool of kubectl get acceleratorpools",
        )
    offers = [
        offer
        for view in allowed
        for offer in view.offers
        if offer.tier in tiers and _is_eligible(spec, offer, current)
    ]
    if not offers:
        return PlacementDecision(verdict=no_offer(allowed, tiers))
    if len(currencies := {offer.hourly.currency for offer in offers}) > 1:
        return _not_placed(
            PlacementReason.MIXED_CURRENCIES,
            f"spec.placement.pools: prices in {len(currencies)} currencies "
            f"({', '.join(sorted(currencies))}) cannot be compared; name pools of one currency",
        )
    candidates = [
        running_at_best(candidate, running_variants)
        for candidate in hardware_candidates(spec, shape, offers)
    ]
    choices = rank(fitting_choices(candidates))
    if not choices:
        verdict = no_fit(spec, candidates) if candidates else no_group(spec, offers)
        return PlacementDecision(verdict=verdict)
    current_choices = [choice for choice in choices if choice.variant == current]
    if layout_pools := _pools_with_layouts(spec, allowed, choices):
        return _place_as_assigned(layout_pools, choices, current_choices, assignments)
    room = {choice.variant: max(0, free_replicas(choice.offer, used_devices)) for choice in choices}
    with_others = partial(
        _with_others,
        may_share=may_share,
        running_variants=running_variants,
        room=room,
        wanted=max(min_replicas, desired),
    )
    by_load = _type_by_load(choices, current_choices, type_by_load)
    of_type = _of_type(choices, current_choices[0]) if by_load.message else choices
    decision = _stay_or_change(of_type, current_choices, room, running, used_devices, min_replicas)
    decision = _with_type(decision, choices, by_load, running, used_devices, min_replicas)
    decision = _on_what_is_left(decision, current, current_choices, running, min_replicas)
    decision = with_others(decision, choices)

    def is_hopeless(choice: HardwareChoice) -> bool:
        return _rests_without_nodes(choice) or (stuck and not room[choice.variant])

    if not bound and all(is_hopeless(choice) for choice in decision.choices):
        # Nothing that may serve beside it has a node, so all replicas go where one is.
        others = [choice for choice in choices if not is_hopeless(choice)]
        if any(room[choice.variant] for choice in others):
            decision = _place_on_existing(others, [], room, min_replicas)
            decision = _back_on_type(decision, current_choices, running, min_replicas)
            decision = with_others(decision, others)
    return decision


def _rests_without_nodes(choice: HardwareChoice) -> bool:
    return choice.offer.backoff_until is not None and not choice.offer.replicas


def _with_others(
    decision: PlacementDecision,
    choices: Sequence[HardwareChoice],
    may_share: Callable[[Sequence[HardwareChoice]], str | None] | None,
    running_variants: Collection[str],
    room: Mapping[str, int],
    wanted: int,
) -> PlacementDecision:
    """Add the cheapest hardware per token of each other pool, in the same precision.

    What runs in a pool stays unless other hardware there is surely cheaper. A pool gives devices of
    another kind, too, where these run already, or the first kind has `room` for fewer replicas than
    are `wanted`.
    """
    reference = decision.choice
    if may_share is None or reference is None:
        return decision
    by_tokens = [
        choice
        for choice in sorted(choices, key=lambda each: (each.token_price.nanos, each.variant))
        if choice.fit.precision == reference.fit.precision
        and not choice.offer.needs_repartition
        and choice.offer.in_layout is not False
        # A change of type is of one pool, whose pods say whether it ends.
        and (not decision.type_replicas or choice.variant in running_variants)
    ]
    running = {
        choice.offer.pool: choice
        for choice in by_tokens[::-1]
        if choice.variant in running_variants
    }
    shared, unshared = [reference], None

    def add(choice: HardwareChoice) -> None:
        nonlocal unshared
        if (reason := may_share((*shared, choice))) is None:
            shared.append(choice)
        else:
            unshared = unshared or reason

    for cheapest in by_tokens:
        pool, choice = cheapest.offer.pool, cheapest
        if pool in {each.offer.pool for each in shared}:
            continue
        if pool in running and not is_surely_cheaper(choice, running[pool]):
            choice = running[pool]
        add(choice)
    # What runs comes first, so that it leaves no later than what could start.
    for choice in sorted(by_tokens, key=lambda each: each.variant not in running_variants):
        same_pool = [each for each in shared if each.offer.pool == choice.offer.pool]
        if choice.offer.hardware.resource in {each.offer.hardware.resource for each in same_pool}:
            continue  # replicas of another number of GPUs are on the same devices
        is_short = sum(room[each.variant] for each in same_pool) < wanted
        if choice.variant in running_variants or (is_short and room[choice.variant]):
            add(choice)
    return replace(decision, choices=tuple(shared[:MAX_VARIANTS]), unshared=unshared)


def _place_on_existing(
    choices: Sequence[HardwareChoice],
    current_choices: Sequence[HardwareChoice],
    room: Mapping[str, int],
    min_replicas: int,
) -> PlacementDecision:
    """Choose among hardware that exists, by how many of minReplicas it has `room` for."""
    existing = [
        choice
        for choice in choices
        if not choice.offer.needs_repartition
        or (choice.offer.is_partitioned_now and choice in current_choices)
    ]
    if not existing:
        return _layout_pending([choices[0].offer.pool], choices)
    with_capacity = [choice for choice in existing if room[choice.variant] >= min_replicas]
    lasting = [choice for choice in with_capacity if choice.offer.in_layout is not False]
    unmoved = [choice for choice in current_choices if choice.offer.in_layout is not False]
    most = max(room[choice.variant] for choice in existing)
    largest = [choice for choice in existing if room[choice.variant] == most]
    preferred = unmoved or lasting or current_choices or with_capacity or largest
    if preferred[0].offer.in_layout is False:
        return _leaving_decision(preferred[0], choices)
    return _placed_decision(preferred[0], existing)


def _stay_or_change(
    choices: Sequence[HardwareChoice],
    current_choices: Sequence[HardwareChoice],
    room: Mapping[str, int],
    running: RunningReplicas | None,
    used_devices: Mapping[tuple[str, str], int],
    min_replicas: int,
) -> PlacementDecision:
    """Choose among hardware that exists, or change the precision of what runs."""
    change = _PrecisionChange()
    if current_choices and running is not None:
        change = _precision_change(choices, current_choices[0], running, used_devices, min_replicas)
    decision = change.decision or _place_on_existing(choices, current_choices, room, min_replicas)
    if change.unsure is None or decision.choice is not current_choices[0]:
        return decision
    return _with_unsure(decision, current_choices[0], change.unsure)


class _PrecisionChange(NamedTuple):
    """Hardware in another precision, to which a service changes or may be about to."""

    decision: PlacementDecision | None = None
    unsure: HardwareChoice | None = None
    """It is cheaper by the prediction, but not surely."""


def _precision_change(
    choices: Sequence[HardwareChoice],
    current: HardwareChoice,
    running: RunningReplicas,
    used_devices: Mapping[tuple[str, str], int],
    min_replicas: int,
) -> _PrecisionChange:
    """Return hardware in the best other precision, if a service that runs should change to it.

    A replica of it costs no more and its tokens surely less, as many as serve the same cost no more
    beyond what is paid anyway, and they have room there beside all that the service runs: so no
    change is taken back, none stops a service, and none starts replicas elsewhere. No second one
    begins before the pods of the first one's precision are gone.
    """
    by_name = {choice.variant: choice for choice in choices}
    replaced = [(by_name.get(variant), count) for variant, count in running.replicas.items()]
    present = [
        (choice, count)
        for choice, count in replaced
        if choice is not None and choice.fit.precision == current.fit.precision
    ]
    if len(present) < len(replaced):
        # Some are of a previous precision, or of hardware that is not offered any more.
        return _PrecisionChange()
    capacity = sum(count * capacity_of(choice) for choice, count in present)
    # A service that sleeps is compared by its next replica.
    replaced_replicas = present if capacity else [(current, 1)]
    cash = sum(count * cash_of(choice, running.start) for choice, count in replaced_replicas)
    floor = min(min_replicas, sum(count for _, count in replaced_replicas))
    existing = [choice for choice in choices if not choice.offer.needs_repartition]
    cheaper = list[tuple[HardwareChoice, int]]()
    for choice in existing:
        equal_replicas = -(-capacity // capacity_of(choice))
        needed_replicas = max(min_replicas, equal_replicas)
        if (
            choice.fit.precision != current.fit.precision
            and choice.offer.in_layout is not False
            and choice.offer.replicas >= needed_replicas
            and choice.offer.comparison_price.nanos <= current.offer.comparison_price.nanos
            and choice.token_price.nanos < current.token_price.nanos
            and max(floor, equal_replicas) * cash_of(choice, running.start) <= cash
        ):
            cheaper.append((choice, needed_replicas))
    surely = [each for each in cheaper if is_surely_cheaper(each[0], current)]
    used_devices = _with_own_devices(used_devices, present, running)
    for choice, needed_replicas in surely:
        # A worse precision would be left again as soon as the best one has room.
        is_best = choice.fit.precision == surely[0][0].fit.precision
        if is_best and free_replicas(choice.offer, used_devices) >= needed_replicas:
            placed = _placed_decision(choice, existing)
            return _PrecisionChange(replace(placed, replaced_capacity=capacity))
    return _PrecisionChange(unsure=None if surely or not cheaper else cheaper[0][0])


def _with_unsure(
    decision: PlacementDecision, current: HardwareChoice, unsure: HardwareChoice
) -> PlacementDecision:
    """Return the decision that says why a service does not change its precision."""
    message = (
        f"{decision.verdict.message}; 1M tokens would cost {unsure.token_price.formatted(4)} on "
        f"{unsure.variant} instead of {current.token_price.formatted(4)}, which is within the "
        f"error of both predictions ({error_of_both(unsure, current):.0%}), so it stays"
    )
    return replace(decision, verdict=StatusVerdict(decision.verdict.reason, message))


def _type_by_load(
    choices: Sequence[HardwareChoice],
    current_choices: Sequence[HardwareChoice],
    type_by_load: Callable[[Sequence[HardwareChoice]], TypeByLoad] | None,
) -> TypeByLoad:
    """Return what the load says of the type that runs, where its pool has several that fit."""
    if type_by_load is None or not current_choices:
        return _NO_TYPE
    types = [choice for choice in choices if is_type_of(choice, current_choices[0])]
    return type_by_load(types) if len(types) > 1 else _NO_TYPE


def _of_type(
    choices: Sequence[HardwareChoice], of_type: HardwareChoice
) -> Sequence[HardwareChoice]:
    """Return the choices without the other types of a pool, which the load decides on."""
    return [each for each in choices if each is of_type or not is_type_of(each, of_type)]


def _with_type(
    decision: PlacementDecision,
    choices: Sequence[HardwareChoice],
    by_load: TypeByLoad,
    running: RunningReplicas | None,
    used_devices: Mapping[tuple[str, str], int],
    min_replicas: int,
) -> PlacementDecision:
    """Return a decision to stay with what the load says of the type, or a change to another one.

    As many replicas of it as serve the load, or the floor, have room beside all that the service
    runs, and none of another type is left in the pool. Its replicas in other pools stay.
    """
    current = decision.choice
    if current is None or not by_load.message or current.variant not in by_load.worth:
        return decision
    changed = next((choice for choice in choices if choice.variant == by_load.change_to), None)
    replicas = running.replicas if running is not None else {}
    by_name = {choice.variant: choice for choice in choices}
    free = _free_beside(changed, by_name, running, used_devices) if changed is not None else None
    if changed is not None and by_load.under_way:
        wanted = max(min_replicas, by_load.under_way)
        is_back = by_load.left is not None and changed is not current
        is_full = free is not None and free <= 0 < wanted - replicas.get(changed.variant, 0)
        if not (is_back and is_full):
            decision = replace(_on_type(changed, choices, wanted), left_type=by_load.left)
    elif changed is not None and free is not None:
        replaced = replicas.get(current.variant, 0) / by_load.worth[changed.variant]
        needed = max(min_replicas, math.ceil(replaced))
        is_alone = not any(
            by_name[variant] is not current and is_type_of(by_name[variant], current)
            for variant in replicas
        )
        if is_alone and free >= needed:
            decision = _on_type(changed, choices, needed)
    placed = decision.choices[0]
    each_serves = capacity_of(placed) / by_load.worth[placed.variant]
    capacities = {
        variant: round(worth * each_serves)
        for variant, worth in by_load.worth.items()
        if variant != placed.variant
    }
    message = decision.verdict.message.removesuffix(_NO_OTHER)
    verdict = StatusVerdict(PlacementReason.PLACED, f"{message}; {by_load.message}")
    awaits_type = changed is not None and placed is not changed
    return replace(decision, verdict=verdict, type_capacities=capacities, awaits_type=awaits_type)


def _on_type(
    choice: HardwareChoice, choices: Sequence[HardwareChoice], replicas: int
) -> PlacementDecision:
    existing = [each for each in choices if not each.offer.needs_repartition]
    decision = _placed_decision(choice, _of_type(existing, choice))
    return replace(decision, type_replicas=replicas)


def _free_beside(
    choice: HardwareChoice,
    by_name: Mapping[str, HardwareChoice],
    running: RunningReplicas | None,
    used_devices: Mapping[tuple[str, str], int],
) -> int | None:
    """Return how many replicas have room beside all that a service runs; None where that is not
    known."""
    if running is None or not running.replicas.keys() <= by_name.keys():
        return None
    present = [(by_name[variant], count) for variant, count in running.replicas.items()]
    return free_replicas(choice.offer, _with_own_devices(used_devices, present, running))


def _back_on_type(
    decision: PlacementDecision,
    current_choices: Sequence[HardwareChoice],
    running: RunningReplicas | None,
    min_replicas: int,
) -> PlacementDecision:
    """Return a decision that leaves a type for another one of which replicas are left."""
    choice = decision.choice
    if choice is None or running is None or not current_choices:
        return decision
    current, replicas = current_choices[0], running.replicas.get(choice.variant, 0)
    if choice is current or not replicas or not is_type_of(choice, current):
        return decision
    return replace(decision, type_replicas=max(min_replicas, replicas), left_type=current.variant)


def _on_what_is_left(
    decision: PlacementDecision,
    current: str | None,
    current_choices: Sequence[HardwareChoice],
    running: RunningReplicas | None,
    min_replicas: int,
) -> PlacementDecision:
    """Return a decision that ends a change to a type which is not offered any more, with as many
    replicas as the service had before it."""
    if decision.choice is None or running is None or current is None or current_choices:
        return decision
    others = {name for name, count in running.replicas.items() if count and name != current}
    if others != {decision.choice.variant}:
        return decision
    left = running.replicas[decision.choice.variant]
    return replace(decision, type_replicas=max(min_replicas, left))


def is_type_of(choice: HardwareChoice, current: HardwareChoice) -> bool:
    """Return whether a choice differs from another one by its number of whole GPUs at most."""
    offer, hardware = choice.offer, choice.offer.hardware
    return (
        offer.pool == current.offer.pool
        and choice.fit.precision == current.fit.precision
        and hardware.product == current.offer.hardware.product
        and hardware.profile is None
        and current.offer.hardware.profile is None
        and not offer.needs_repartition
        and offer.in_layout is None
    )


def _with_own_devices(
    used_devices: Mapping[tuple[str, str], int],
    present: Sequence[tuple[HardwareChoice, int]],
    running: RunningReplicas,
) -> Mapping[tuple[str, str], int]:
    """Return the devices of others with those that a service holds, or will once its pods are on
    nodes."""
    wanted = Counter[tuple[str, str]]()
    for choice, count in present:
        hardware = choice.offer.hardware
        wanted[choice.offer.pool, hardware.resource] += count * hardware.devices
    return Counter(used_devices) + (wanted | Counter(running.held_devices))


def _is_eligible(spec: InferenceServiceSpec, offer: HardwareOffer, current: str | None) -> bool:
    """Exclude slices to be partitioned where spec.placement.mig forbids it, and shared GPUs.

    Those of the `current` variant are away for the minutes in which their node is partitioned.
    """
    placement = spec.placement
    if offer.needs_repartition and not offer.in_layout and placement.mig != "Auto":
        precisions = (None, *(variant.precision for variant in spec.precision.variants))
        stands_there = current in {offer.variant(precision).name for precision in precisions}
        if not (offer.is_partitioned_now and stands_there):
            return False
    return placement.isolation == "Slice" or offer.hardware.exclusive


def _pools_with_layouts(
    spec: InferenceServiceSpec, allowed: Sequence[PoolView], choices: Sequence[HardwareChoice]
) -> list[str]:
    """Return pools that plan slices for the service; none if it fits on no single device."""
    if spec.placement.mig != "Auto":
        return []
    fitting_pools = {choice.offer.pool for choice in choices if choice.offer.layout_profile}
    return [
        view.pool.name
        for view in allowed
        if view.pool.name in fitting_pools and plans_layouts(view.pool.spec)
    ]


def _place_as_assigned(
    pools: Sequence[str],
    choices: Sequence[HardwareChoice],
    current_choices: Sequence[HardwareChoice],
    assignments: Sequence[SliceAssignment],
) -> PlacementDecision:
    options = [
        (
            assignment.replicas,
            [
                choice
                for choice in choices
                if (choice.offer.pool, choice.offer.layout_profile)
                == (assignment.pool, assignment.profile)
            ],
        )
        for assignment in assignments
    ]
    assigned_choices = [choice for _, each in options for choice in each]
    if not assigned_choices:
        if current_choices:
            return _placed_decision(current_choices[0], choices)
        return _layout_pending(pools, choices)
    unchanged = [choice for choice in assigned_choices if choice in current_choices]
    # As many of the slowest as minReplicas serve no more than what is assigned.
    slowest = min((each[0] for _, each in options if each), key=_by_speed)
    reference = unchanged[0] if unchanged else slowest
    assigned = {
        choice.variant: replicas
        for replicas, each in options
        for choice in ([reference] if reference in each else each)
        if choice.fit.precision == reference.fit.precision
    }
    others = [
        choice for choice in assigned_choices if choice.variant in assigned and choice != reference
    ]
    message = _placed_decision(reference, [reference]).verdict.message.removesuffix(_NO_OTHER)
    return PlacementDecision(
        verdict=StatusVerdict(PlacementReason.PLACED, f"{message}; assigned by the layout plan"),
        choices=(reference, *others),
        assigned=assigned,
    )


def _by_speed(choice: HardwareChoice) -> tuple[float, str]:
    return choice.fit.limits.tokens_per_second, choice.variant


def _layout_pending(pools: Sequence[str], choices: Sequence[HardwareChoice]) -> PlacementDecision:
    command = f"kubectl get acceleratorpool {pools[0]} -o yaml"
    pending = _not_placed(
        PlacementReason.LAYOUT_PENDING,
        f"spec.placement.mig: waiting for a layout plan of {', '.join(pools)}, where "
        f"{counted(len(choices), 'instance type')} would fit; see the condition LayoutReady of "
        f"{command}",
    )
    return replace(pending, awaited=choices[0])


def _placed_decision(
    choice: HardwareChoice, choices: Sequence[HardwareChoice]
) -> PlacementDecision:
    hardware, memory = choice.fit.hardware, choice.fit.memory
    cheapest = choices[0]
    message = (
        f"{hardware.name} of {choice.offer.pool} at {choice.hourly} per hour: weights and reserve "
        f"take {memory.weights_mib + memory.reserve_mib} of {memory.usable_mib} MiB, "
    )
    if memory.kv_tokens:
        message += f"the KV cache holds {counted(memory.kv_tokens, 'token')}"
    else:
        message += "an encoder has no KV cache"
    variant = cheapest.variant
    if choice.variant != variant:
        tie = watts_clause(cheapest, [choice])
        better = f"({tie})" if tie else "is cheaper, but"
        message += f"; {variant} at {cheapest.hourly} {better} was full or added later"
    elif len(choices) > 1:
        message += f"; the cheapest of {len(choices)} that fit, next "
        message += f"{choices[1].variant} at {choices[1].hourly}"
        if tie := watts_clause(choice, choices):
            message += f"; {tie}"
    else:
        message += _NO_OTHER
    if choice.fit.at_best:
        message += (
            f"; it keeps spec.slo only at the fast end of its prediction (up to "
            f"{choice.fit.most_rate - 1:.0%} more tokens, {choice.fit.step.source}), and stays "
            "since it runs"
        )
    verdict = StatusVerdict(PlacementReason.PLACED, message)
    return PlacementDecision(verdict=verdict, choices=(choice,))


def _leaving_decision(
    choice: HardwareChoice, choices: Sequence[HardwareChoice]
) -> PlacementDecision:
    """Return the decision for slices that the layout of their pool does not have."""
    existing = [each for each in choices if not each.offer.needs_repartition]
    placed = _placed_decision(choice, existing)
    keeps_slices = all(each.offer.in_layout is False for each in choices)
    outlook = (
        "the model fits on nothing else, so its slices stay: change that layout, or "
        "spec.placement.pools"
        if keeps_slices
        else "it moves once other hardware that fits has room"
    )
    message = (
        f"{placed.verdict.message}; spec.mig.layout of AcceleratorPool/{choice.offer.pool} has no "
        f"{choice.fit.hardware.name}, and {outlook}"
    )
    verdict = StatusVerdict(PlacementReason.PLACED, message)
    return replace(placed, verdict=verdict, keeps_slices=keeps_slices)


def _not_placed(reason: PlacementReason, message: str) -> PlacementDecision:
    return PlacementDecision(verdict=StatusVerdict(reason, message))
