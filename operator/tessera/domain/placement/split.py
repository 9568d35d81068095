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
from tessera.domain.incremental import FOREVER
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
    exchange,
    price_text,
    weight_of,
)

MAX_REST = timedelta(hours=1)


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
        return self.is_overdue or self.memory.rest_until is not None

    @property
    def is_resting(self) -> bool:
        rest_until = self.memory.rest_until
        return self.is_overdue or (rest_until is not None and self.at < rest_until)

    @property
    def most(self) -> int:
        """Return the replicas that it can have, on nodes that may come too."""
        if self.pods.assigned is not None:
            return self.pods.assigned
        if self.is_resting:
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
    wanted: int,
    variants: Sequence[VariantPods],
    *,
    at: datetime,
    floor: int = 0,
    memory: Iterable[VariantMemory] = (),
) -> ReplicaSplit:
    """Split the capacity of `wanted` replicas of the first variant, which is the reference.

    The capacity of ready replicas never falls below it by a change: a replica of another variant
    is ready before one stops. At least the capacity of `floor` replicas is not on spot nodes, if
    there is room. A single variant gets all of them, whatever room it has.
    """
    reference = variants[0]
    if len(variants) == 1:
        return ReplicaSplit(replicas={reference.variant: wanted})
    unit = capacity_of(reference.choice)
    remembered = {each.variant: each for each in memory}
    options = [
        _Option(pods=pods, memory=_current_memory(pods, remembered.get(pods.variant), at), at=at)
        for pods in variants
    ]
    need = _Need(wanted * unit, min(wanted, floor) * unit)
    order = sorted(options, key=lambda option: by_cost(option.pods.choice, option.pods.start))
    counts = _remaining(order, need)
    _add_missing(order, counts, need)
    waiting = _add_waiting(order, options[0], counts, need)
    moves = _Moves() if waiting else _possible_moves(order, counts, need)
    bridge = _bridge(order, counts, need)
    best = moves.best
    if best is not None and not any(bridge.values()):  # one move at a time
        counts[best.source] -= best.stopped
        counts[best.destination] += best.started
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


@dataclass(frozen=True, slots=True)
class _Need:
    """Capacity that is needed."""

    total: int
    firm: int
    """The part that no spot node may have."""


def _sums(order: Sequence[_Option], counts: _Counts) -> _Need:
    """Return the capacity of replicas."""
    capacities = [(option, counts[option.variant] * option.capacity) for option in order]
    return _Need(
        sum(capacity for _, capacity in capacities),
        sum(capacity for option, capacity in capacities if option.is_firm),
    )


def _remaining(order: Sequence[_Option], need: _Need) -> _Counts:
    """Return what is needed of the pods on nodes; the most expensive go first."""
    counts = {option.variant: min(option.pods.bound, option.most) for option in order}
    for option in reversed(order):
        sums = _sums(order, counts)
        spare = sums.total - need.total
        if option.is_firm:
            spare = min(spare, sums.firm - need.firm)
        counts[option.variant] -= min(counts[option.variant], max(0, spare) // option.capacity)
    return counts


def _add_missing(order: Sequence[_Option], counts: _Counts, need: _Need) -> None:
    """Add what is missing: on free devices, on nodes that may come, and where none came before."""
    proven = [option for option in order if not option.has_failed]
    limits = [
        [(option, option.most_now) for option in proven],
        [(option, option.most) for option in proven],
        [(option, option.most) for option in order],
    ]
    for limited in limits:
        for firm in (True, False):
            sums = _sums(order, counts)
            missing = need.firm - sums.firm if firm else need.total - sums.total
            rooms = [
                (option, max(0, most - counts[option.variant]))
                for option, most in limited
                if option.is_firm or not firm
            ]
            for option, added in _cover(rooms, missing):
                counts[option.variant] += added


def _cover(rooms: Sequence[tuple[_Option, int]], missing: int) -> Sequence[tuple[_Option, int]]:
    """Return the replicas that have the missing capacity, at the least cost that a search over
    filling, nearly filling and skipping each variant finds; all of them where that is too little.

    The variants come in the order of cost per capacity.
    """
    if missing <= 0:
        return ()
    if sum(option.capacity * room for option, room in rooms) <= missing:
        return rooms
    rooms = [(option, room) for option, room in rooms if room]
    best_cost: int | None = None
    best: tuple[int, ...] = ()
    stack: list[tuple[int, int, tuple[int, ...]]] = [(missing, 0, ())]
    while stack:
        missing, cost, counts = stack.pop()
        if missing <= 0:
            if best_cost is None or cost < best_cost:
                best_cost, best = cost, counts
            continue
        if len(counts) == len(rooms):
            continue
        option, room = rooms[len(counts)]
        # No further one costs less per capacity.
        if best_cost is not None:
            least = missing * option.weight
            if least >= (best_cost - cost) * option.capacity:
                continue
        within = min(room, missing // option.capacity)
        beyond = min(room, -(-missing // option.capacity))
        stack.extend(
            (missing - count * option.capacity, cost + count * option.weight, (*counts, count))
            for count in sorted({0, within, beyond})
        )
    return [(option, count) for (option, _), count in zip(rooms, best, strict=False)]


def _add_waiting(
    order: Sequence[_Option], reference: _Option, counts: _Counts, need: _Need
) -> _Counts:
    """Add what no variant has room for, and return it: it waits where it is, else as reference."""
    waiting: _Counts = {}
    for option in (*order, reference):
        missing = need.total - _sums(order, counts).total
        if missing <= 0:
            break
        added = -(-missing // option.capacity)
        if option is not reference or option.variant not in waiting:
            pending = option.pods.bound + option.pods.pending - counts[option.variant]
            added = min(added, max(0, pending))
        waiting[option.variant] = waiting.get(option.variant, 0) + added
        counts[option.variant] += added
    return {variant: count for variant, count in waiting.items() if count}


def _bridge(order: Sequence[_Option], counts: _Counts, need: _Need) -> _Counts:
    """Return the ready replicas that stay until those that replace them are ready."""
    bridge = {option.variant: 0 for option in order}
    ready = {option.variant: min(option.pods.ready, counts[option.variant]) for option in order}
    existing = {option.variant: option.pods.ready for option in order}
    required = min(need.total, _sums(order, existing).total)
    for option in order:
        missing = required - _sums(order, ready).total
        if missing <= 0:
            break
        stays = min(option.pods.ready - ready[option.variant], -(-missing // option.capacity))
        bridge[option.variant] = stays
        ready[option.variant] += stays
    return bridge


class _Move(NamedTuple):
    """Replicas that start on one variant, and those that they replace."""

    source: str
    stopped: int
    destination: str
    started: int


@dataclass(slots=True)
class _Moves:
    """Moves that would save cost."""

    since: dict[str, datetime] = field(default_factory=dict)
    """Since when, by the variant that they lead to."""
    best: _Move | None = None
    """The first that pays now."""
    next_at: datetime = FOREVER
    """When the next one pays."""


def _possible_moves(order: Sequence[_Option], counts: _Counts, need: _Need) -> _Moves:
    """Return the moves to cheaper variants, and the first that pays.

    While a replica starts both are paid. How long the room stays is not known; the best guess is
    as long again as it has been there. So a move pays once it would have saved its own cost.
    """
    moves, sums = _Moves(), _sums(order, counts)
    for index, to in enumerate(order):
        if to.pods.assigned is not None:
            continue  # the layout plan says what a move saves
        room = to.most - counts[to.variant]
        for source in reversed(order[index + 1 :]):
            stopped, started = exchange(
                source.capacity, counts[source.variant], to.capacity, sums.total - need.total
            )
            lost = stopped * source.capacity if source.is_firm else 0
            firm = sums.firm - lost + (started * to.capacity if to.is_firm else 0)
            saving = stopped * source.cash - started * to.cash
            if (
                stopped > counts[source.variant]
                or started > room
                or firm < min(need.firm, sums.firm)
                or saving <= 0
            ):
                continue
            since = moves.since.setdefault(to.variant, to.memory.room_since or to.at)
            both = stopped * source.cash + started * to.cash
            pays_at = _after(since, _start_of(to, counts, started), Fraction(both, saving))
            if pays_at > to.at:
                moves.next_at = min(moves.next_at, pays_at)
            elif moves.best is None:
                moves.best = _Move(source.variant, stopped, to.variant, started)
    return moves


def _start_of(option: _Option, counts: _Counts, added: int) -> timedelta:
    """Return the time until further replicas are ready."""
    exists = counts[option.variant] + added <= option.most_now
    return option.pods.start if exists else option.pods.start + option.pods.node_start


def _after(at: datetime, span: timedelta, factor: Fraction) -> datetime:
    """Return the time a multiple of a span later, or FOREVER."""
    seconds = float(span.total_seconds() * factor)
    return FOREVER if seconds >= (FOREVER - at).total_seconds() else at + timedelta(0, seconds)


def _current_memory(pods: VariantPods, memory: VariantMemory | None, at: datetime) -> VariantMemory:
    """Return the memory without a rest that ended: by more devices or long ago."""
    if memory is None:
        return VariantMemory(variant=pods.variant)
    if memory.rest_until is None or (
        pods.bound + pods.free <= memory.rest_devices and at < memory.rest_until + MAX_REST
    ):
        return memory
    return VariantMemory(variant=pods.variant, room_since=memory.room_since)


def _next_memory(
    option: _Option, replicas: Mapping[str, int], moves: _Moves
) -> VariantMemory | None:
    pods, memory = option.pods, option.memory
    memory = replace(memory, room_since=moves.since.get(option.variant))
    is_withdrawn = option.is_overdue and replicas[option.variant] < pods.bound + pods.pending
    if is_withdrawn and not (memory.rest_until and option.at < memory.rest_until):
        rest = max(BINDING_TIME, pods.node_start)
        if memory.rest_from is not None and memory.rest_until is not None:
            rest = max(rest, 2 * (memory.rest_until - memory.rest_from))
        memory = replace(
            memory,
            rest_from=option.at,
            rest_until=option.at + min(rest, MAX_REST),
            rest_devices=pods.bound + pods.free,
        )
    return memory if memory.room_since or memory.rest_until else None


def _until(
    options: Sequence[_Option], memory: Sequence[VariantMemory | None], moves: _Moves
) -> datetime:
    rests = [each.rest_until for each in memory if each and each.rest_until]
    moments = [
        *(option.due for option in options if option.due),
        *rests,
        *(rest + MAX_REST for rest in rests),
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
        elif move is not None and variant == move.destination:
            reason = VariantReason.MOVED_TO_CHEAPER
            message = f"costs less than {move.source} and has room, so {_started(option, added)}; "
            message += f"it replaces {counted(move.stopped, 'replica')} of {move.source} once ready"
        elif waiting.get(variant):
            reason = VariantReason.INSUFFICIENT_CAPACITY
            message = f"no variant has room, so {counted(added, 'replica')} wait here for devices"
        elif full:
            reason = VariantReason.CHEAPER_FULL
            message = f"no room on {', '.join(full)} at less cost, so {_started(option, added)}"
        else:
            reason = VariantReason.LEAST_COST
            message = f"costs least for what is missing, so {_started(option, added)}"
        yield VariantChange(variant=variant, added=added, reason=reason, message=message)


def _started(option: _Option, added: int) -> str:
    """Return that replicas start, with their price."""
    price = price_text(option.pods.choice, option.pods.start)
    return f"{counted(added, 'replica')} more on {option.variant} at {price}"


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
