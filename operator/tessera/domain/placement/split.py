"""Wanted capacity as replicas of each variant: reserved first, others above it, and back.

What runs stays, except where a move pays. Missing capacity goes first to free devices, at least
cost, then to nodes that may come. Nodes of tier Reserved are paid anyway, so a replica on them
costs nothing more. See docs/decisions/order-of-tiers.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import NamedTuple

from tessera.api.reasons import VariantReason
from tessera.api.text import counted
from tessera.domain.hardware.power import replica_watts
from tessera.domain.incremental import FOREVER
from tessera.domain.placement.candidates import watts_clause
from tessera.domain.placement.cover import CoverOption, Need, least_cover, sum_of
from tessera.domain.placement.split_state import (
    BINDING_TIME,
    ReplicaSplit,
    VariantChange,
    VariantMemory,
    VariantPods,
)
from tessera.domain.placement.variant_cost import (
    by_cost,
    capacity_of,
    cash_of,
    price_text,
    weight_of,
)

MAX_BACKOFF = timedelta(hours=1)
# The watts of any replicas together are less.
_WATT_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """A variant while replicas are split."""

    pods: VariantPods
    memory: VariantMemory
    at: datetime
    capacity: int = field(init=False)
    """In thousandths of a token per second, so that sums are exact."""
    cash: int = field(init=False)
    """Nano-units per hour that a replica costs beyond what is paid anyway."""
    weight: int = field(init=False)
    """What order and cover compare: by what is paid only while used, then by all that is billed."""
    due: datetime | None = field(init=False)
    """When its pending pods are withdrawn."""

    def __post_init__(self) -> None:
        pods, choice, due = self.pods, self.pods.choice, None
        # Slices of a layout plan that are not there yet will come.
        if pods.pending and pods.assigned is None:
            wait = max(BINDING_TIME, pods.node_start if pods.pending > pods.free else BINDING_TIME)
            due = (pods.pending_since or self.at) + wait
        object.__setattr__(self, "capacity", capacity_of(choice))
        object.__setattr__(self, "cash", cash_of(choice, pods.start))
        object.__setattr__(self, "weight", weight_of(choice, pods.start))
        object.__setattr__(self, "due", due)

    @property
    def variant(self) -> str:
        return self.pods.variant

    @property
    def is_firm(self) -> bool:
        """Return whether its nodes are not reclaimed."""
        return self.pods.choice.offer.tier != "Spot"

    @property
    def is_overdue(self) -> bool:
        return self.due is not None and self.due <= self.at

    @property
    def has_failed(self) -> bool:
        """Return whether pods found no node here, and nothing says that they would now."""
        return self.is_overdue or self.memory.backoff_until is not None

    @property
    def is_backing_off(self) -> bool:
        backoff_until = self.memory.backoff_until
        return self.is_overdue or (backoff_until is not None and self.at < backoff_until)

    @property
    def most(self) -> int:
        """Return the replicas that it can have, on nodes that may come too."""
        if self.pods.assigned is not None:
            return self.pods.assigned
        if self.is_backing_off:
            return self.pods.bound
        return self.pods.bound + self.pods.free + self.pods.growth

    @property
    def most_now(self) -> int:
        """Return the replicas that existing nodes hold."""
        if self.pods.assigned is not None:
            return self.pods.assigned
        return min(self.most, self.pods.bound + self.pods.free)


# Replicas by variant while they are split.
_Counts = dict[str, int]


def split_replicas(
    need: Need,
    variants: Sequence[VariantPods],
    *,
    at: datetime,
    memory: Iterable[VariantMemory] = (),
) -> ReplicaSplit:
    """Split what is needed over variants; what none has room for waits as the first one.

    What is ready never falls below the need by a change: a replica of another variant is ready
    before one stops. A single variant gets all replicas, whatever room it has.
    """
    reference = variants[0]
    if len(variants) == 1:
        return ReplicaSplit(replicas={reference.variant: _replicas_alone(reference, need)})
    remembered = {each.variant: each for each in memory}
    options = [
        _Option(pods=pods, memory=_current_memory(pods, remembered.get(pods.variant), at), at=at)
        for pods in variants
    ]
    order = sorted(options, key=lambda option: by_cost(option.pods.choice, option.pods.start))
    counts = _remaining(order, need)
    _add_missing(order, counts, need)
    waiting = _add_waiting(order, options[0], counts, need)
    moves = _Moves() if waiting else _possible_moves(order, counts, need)
    bridge = _bridge(order, counts, need)
    best = moves.best
    if best is not None and not any(bridge.values()):  # one move at a time
        for variant, stopped in best.stopped.items():
            counts[variant] -= stopped
        for variant, started in best.started.items():
            counts[variant] += started
        bridge = _bridge(order, counts, need)
    replicas = {each.variant: counts[each.variant] + bridge[each.variant] for each in options}
    new_memory = [_next_memory(option, replicas, moves) for option in options]
    return ReplicaSplit(
        replicas=replicas,
        bridging=bridge,
        memory=tuple(sorted((each for each in new_memory if each), key=lambda each: each.variant)),
        changes=tuple(_changes(order, replicas, waiting, best)),
        until=_until(options, new_memory, moves),
    )


def _replicas_alone(pods: VariantPods, need: Need) -> int:
    """Return the replicas of a variant that alone cover a need."""
    replicas = max(need.pods, -(-need.capacity // capacity_of(pods.choice)))
    return replicas if need.most_pods is None else min(replicas, need.most_pods)


def _cover(
    order: Sequence[_Option], need: Need, counts: _Counts, watts: Mapping[str, int] | None = None
) -> _Counts:
    """Return what of so many replicas of each variant covers a need at least cost.

    Of covers of the same cost it is the one of the fewest `watts` of replicas, if these are given.
    """
    options = [
        CoverOption(
            (option.weight << _WATT_BITS) + (watts[option.variant] if watts else 0),
            option.capacity,
            option.is_firm,
            counts[option.variant],
        )
        for option in order
    ]
    covered = least_cover(options, need)
    return {option.variant: count for option, count in zip(order, covered, strict=True)}


def _total(order: Sequence[_Option], counts: _Counts) -> Need:
    """Return what so many replicas have."""
    return sum_of((option.capacity, option.is_firm, counts[option.variant]) for option in order)


def _remaining(order: Sequence[_Option], need: Need) -> _Counts:
    """Return what is needed of the pods on nodes, at least cost.

    Those that are paid anyway stay beside one that is not.
    """
    bound = {option.variant: min(option.pods.bound, option.most) for option in order}
    counts = _cover(order, need, bound)
    if any(option.cash and counts[option.variant] for option in order):
        spare = need.beside(_total(order, counts)).most_pods
        for option in order:
            if not option.cash:
                stays = bound[option.variant] - counts[option.variant]
                stays = stays if spare is None else min(stays, spare)
                counts[option.variant] += stays
                spare = None if spare is None else spare - stays
    return counts


def _watts(order: Sequence[_Option]) -> Mapping[str, int] | None:
    """Return what a replica of each variant draws at most; None where that is not known of all."""
    watts = {each.variant: replica_watts(each.pods.choice.offer.hardware) for each in order}
    known = {variant: round(drawn) for variant, drawn in watts.items() if drawn is not None}
    return known if len(known) == len(watts) else None


def _add_missing(order: Sequence[_Option], counts: _Counts, need: Need) -> None:
    """Add what is missing: on free devices, on nodes that may come, and where none came before."""
    watts = _watts(order)
    proven = [option for option in order if not option.has_failed]
    limits = [
        {option.variant: option.most_now for option in proven},
        {option.variant: option.most for option in proven},
        {option.variant: option.most for option in order},
    ]
    for limit in limits:
        rooms = {
            option.variant: max(0, limit.get(option.variant, 0) - counts[option.variant])
            for option in order
        }
        missing = need.beside(_total(order, counts))
        for variant, added in _cover(order, missing, rooms, watts).items():
            counts[variant] += added


def _add_waiting(
    order: Sequence[_Option], reference: _Option, counts: _Counts, need: Need
) -> _Counts:
    """Add what no variant has room for, and return it.

    It waits for devices that replicas of previous variants have, else where it is, else as the
    first variant.
    """
    waiting: _Counts = {}

    def add(option: _Option, most: int | None) -> None:
        missing = need.beside(_total(order, counts))
        added = max(-(-missing.capacity // option.capacity), missing.pods)
        for limit in (missing.most_pods, most):
            added = added if limit is None else min(added, max(0, limit))
        if added > 0:
            waiting[option.variant] = waiting.get(option.variant, 0) + added
            counts[option.variant] += added

    for option in order:
        add(option, option.pods.yielded)
    for option in order:
        add(option, option.pods.bound + option.pods.pending - counts[option.variant])
    add(reference, None)
    return waiting


def _bridge(order: Sequence[_Option], counts: _Counts, need: Need) -> _Counts:
    """Return the ready replicas that stay until those that replace them are ready.

    So does one that a rollout replaces, or each of its steps would give up a ready one.
    """
    existing = {option.variant: option.pods.ready + option.pods.replaced for option in order}
    ready = {variant: min(number, counts[variant]) for variant, number in existing.items()}
    required = need.within(_total(order, existing))
    missing = required.beside(_total(order, ready))
    others = {variant: number - ready[variant] for variant, number in existing.items()}
    return _cover(order, missing, others)


class _Move(NamedTuple):
    """Replicas that start, and those that they replace, by variant."""

    stopped: Mapping[str, int]
    started: Mapping[str, int]
    carries_more: bool = False
    """It does not save: as many replicas as there may be serve too little."""


@dataclass(slots=True)
class _Moves:
    """Moves that would save cost."""

    since: dict[str, datetime] = field(default_factory=dict)
    """Since when, by the variant that they lead to."""
    best: _Move | None = None
    """The first one, if it pays now."""
    next_at: datetime = FOREVER
    """When the next one pays."""


def _possible_moves(order: Sequence[_Option], counts: _Counts, need: Need) -> _Moves:
    """Return the moves to what would cost least, and the first one if it pays.

    While a replica starts both are paid. How long the room stays is not known; the best guess is
    as long again as it has been there. So a move pays once it would have saved its own cost.
    """
    moves, have = _Moves(), _total(order, counts)
    cheapest = _cheapest(order, counts, need)
    started = _beyond(cheapest, counts)
    carries_more = need.capacity > have.capacity < _total(order, cheapest).capacity
    saving = _cash(order, counts) - _cash(order, cheapest)
    if not started or (saving <= 0 and not carries_more):
        return moves
    by_name = {option.variant: option for option in order}
    for variant in started:
        option = by_name[variant]
        moves.since[variant] = option.memory.room_since or option.at
    move = _Move(_beyond(counts, cheapest), started)
    if carries_more:
        moves.best = move._replace(carries_more=True)
        return moves
    move = _smallest_move(order, counts, need, move)
    first, last = _cash(order, move.stopped), _cash(order, move.started)
    start = max(
        _start_of(by_name[variant], counts, added) for variant, added in move.started.items()
    )
    since = max(moves.since[variant] for variant in move.started)
    pays_at = _after(since, start, Fraction(first + last, first - last))
    if pays_at > order[0].at:
        moves.next_at = pays_at
    else:
        moves.best = move
    return moves


def _cheapest(order: Sequence[_Option], counts: _Counts, need: Need) -> _Counts:
    """Return the replicas that cover a need at least cash, started where that is less alone."""
    stays = [
        CoverOption(option.cash << 1, option.capacity, option.is_firm, counts[option.variant])
        for option in order
    ]
    starts = [
        CoverOption(
            (option.cash << 1) + 1, option.capacity, option.is_firm, _room_for_move(option, counts)
        )
        for option in order
    ]
    covered = least_cover([*stays, *starts], need)
    return {
        option.variant: covered[index] + covered[index + len(order)]
        for index, option in enumerate(order)
    }


def _room_for_move(option: _Option, counts: _Counts) -> int:
    """Return how many more replicas may come to a variant; a layout plan says what it gets."""
    if option.pods.assigned is not None:
        return 0
    return max(0, option.most - counts[option.variant])


def _smallest_move(order: Sequence[_Option], counts: _Counts, need: Need, whole: _Move) -> _Move:
    """Return the part of a move with the fewest replicas that saves, the dearest ones first."""
    for source in sorted(order, key=lambda option: (-option.cash, option.variant)):
        for stopped in range(1, whole.stopped.get(source.variant, 0) + 1):
            left = {**counts, source.variant: counts[source.variant] - stopped}
            missing = need.beside(_total(order, left))
            rooms = {option.variant: whole.started.get(option.variant, 0) for option in order}
            started = _cover(order, missing, rooms)
            added = {variant: left[variant] + started[variant] for variant in left}
            saves = stopped * source.cash > _cash(order, started)
            if any(started.values()) and saves and need.beside(_total(order, added)).is_met:
                return _Move({source.variant: stopped}, _beyond(started, {}))
    return whole


def _beyond(counts: Mapping[str, int], others: Mapping[str, int]) -> _Counts:
    """Return by how much counts exceed others, where they do."""
    beyond = {variant: count - others.get(variant, 0) for variant, count in counts.items()}
    return {variant: count for variant, count in beyond.items() if count > 0}


def _cash(order: Sequence[_Option], counts: Mapping[str, int]) -> int:
    """Return what replicas cost per hour beyond what is paid anyway."""
    return sum(option.cash * counts.get(option.variant, 0) for option in order)


def _start_of(option: _Option, counts: _Counts, added: int) -> timedelta:
    """Return the time until further replicas are ready."""
    exists = counts[option.variant] + added <= option.most_now
    return option.pods.start if exists else option.pods.start + option.pods.node_start


def _after(at: datetime, span: timedelta, factor: Fraction) -> datetime:
    """Return the time a multiple of a span later, or FOREVER."""
    seconds = float(span.total_seconds() * factor)
    return FOREVER if seconds >= (FOREVER - at).total_seconds() else at + timedelta(0, seconds)


def _current_memory(pods: VariantPods, memory: VariantMemory | None, at: datetime) -> VariantMemory:
    """Return the memory without a backoff that ended: by more devices or long ago."""
    if memory is None:
        return VariantMemory(variant=pods.variant)
    if memory.backoff_until is None or (
        pods.bound + pods.free <= memory.backoff_devices and at < memory.backoff_until + MAX_BACKOFF
    ):
        return memory
    return VariantMemory(variant=pods.variant, room_since=memory.room_since)


def _next_memory(
    option: _Option, replicas: Mapping[str, int], moves: _Moves
) -> VariantMemory | None:
    pods, memory = option.pods, option.memory
    memory = replace(memory, room_since=moves.since.get(option.variant))
    is_withdrawn = option.is_overdue and replicas[option.variant] < pods.bound + pods.pending
    if is_withdrawn and not (memory.backoff_until and option.at < memory.backoff_until):
        backoff = max(BINDING_TIME, pods.node_start)
        if memory.backoff_from is not None and memory.backoff_until is not None:
            backoff = max(backoff, 2 * (memory.backoff_until - memory.backoff_from))
        memory = replace(
            memory,
            backoff_from=option.at,
            backoff_until=option.at + min(backoff, MAX_BACKOFF),
            backoff_devices=pods.bound + pods.free,
        )
    return memory if memory.room_since or memory.backoff_until else None


def _until(
    options: Sequence[_Option], memory: Sequence[VariantMemory | None], moves: _Moves
) -> datetime:
    backoffs = [each.backoff_until for each in memory if each and each.backoff_until]
    moments = [
        *(option.due for option in options if option.due),
        *backoffs,
        *(until + MAX_BACKOFF for until in backoffs),
        moves.next_at,
    ]
    return min((moment for moment in moments if moment > options[0].at), default=FOREVER)


def _changes(
    order: Sequence[_Option],
    replicas: Mapping[str, int],
    waiting: Mapping[str, int],
    move: _Move | None,
) -> Iterator[VariantChange]:
    """Yield why a variant gets more or fewer replicas than it has pods."""
    for index, option in enumerate(order):
        pods, variant = option.pods, option.variant
        added = replicas[variant] - pods.bound - pods.pending
        if not added:
            continue
        full = [
            each.variant
            for each in order[:index]
            if each.has_failed or replicas[each.variant] >= each.most_now
        ]
        if added < 0:
            reason, message = _removal(option, -added)
        elif move is not None and variant in move.started and move.carries_more:
            reason = VariantReason.MOVED_TO_LARGER
            message = f"spec.scaling.maxReplicas of {' and '.join(move.stopped)} serve too little, "
            message += f"so {_started(option, added)}; once ready it replaces {_stopped(move)}"
        elif move is not None and variant in move.started:
            reason = VariantReason.MOVED_TO_CHEAPER
            message = f"costs less than {' and '.join(move.stopped)} and has room, so "
            message += f"{_started(option, added)}; once ready it replaces {_stopped(move)}"
        elif waiting.get(variant):
            reason = VariantReason.INSUFFICIENT_CAPACITY
            message = f"no variant has room, so {counted(added, 'replica')} wait here for devices"
        elif full:
            reason = VariantReason.CHEAPER_FULL
            message = f"no room on {', '.join(full)} at less cost, so {_started(option, added)}"
        else:
            reason = VariantReason.LEAST_COST
            message = f"costs least for what is missing, so {_started(option, added)}"
            tied = [
                each.pods.choice
                for each in order
                if each.weight == option.weight and replicas[each.variant] < each.most_now
            ]
            if tie := watts_clause(pods.choice, tied):
                message += f"; {tie}"
        yield VariantChange(variant=variant, added=added, reason=reason, message=message)


def _started(option: _Option, added: int) -> str:
    """Return that replicas start, with their price."""
    price = price_text(option.pods.choice, option.pods.start)
    return f"{counted(added, 'replica')} more on {option.variant} at {price}"


def _stopped(move: _Move) -> str:
    """Return which replicas a move replaces."""
    return " and ".join(
        f"{counted(stopped, 'replica')} of {variant}" for variant, stopped in move.stopped.items()
    )


def _removal(option: _Option, removed: int) -> tuple[VariantReason, str]:
    """Return why a variant gets fewer replicas."""
    text = f"{option.variant} has {counted(removed, 'replica')} fewer"
    text = f"{text} at {price_text(option.pods.choice, option.pods.start)}"
    if option.is_overdue:
        since = option.pods.pending_since or option.at
        seconds = round((option.at - since).total_seconds())
        message = f"no node took its replica for {seconds} s, so {text}, which other variants run"
        return VariantReason.PENDING_TIMEOUT, message
    return VariantReason.SURPLUS, f"others cover what is wanted at less cost, so {text}"
