"""Hardware that is free now, for a service whose own kind of hardware is not."""

from collections.abc import Collection, Mapping, Sequence

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.hardware.pools import HardwareOffer, PoolView, admits, discover
from tessera.domain.incremental import reused
from tessera.domain.observed.snapshot import ObservedService, Pod, Snapshot
from tessera.domain.placement.candidates import (
    HardwareChoice,
    by_price,
    fitting_choices,
    fragments_key,
    hardware_candidates,
)
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import PlacementDecision
from tessera.domain.placement.split_state import BINDING_TIME


def replicas_free_now(snapshot: Snapshot, view: PoolView, offer: HardwareOffer) -> int:
    """Return for how many replicas on an offer the ready nodes have free devices."""
    hardware = offer.hardware
    devices = _devices_by_node(view, hardware.resource, snapshot.pods)
    free = sum(left // hardware.devices for left, _ in devices)
    return max(0, min(offer.replicas - offer.startable_replicas, free))


@reused
def fragments_of(views: Sequence[PoolView], pods: Sequence[Pod]) -> Mapping[tuple[str, str], int]:
    """Return how many free devices make no replica of each offer, as their nodes have too few left.

    Those that made none before anything ran are not counted in the offer: where these are the ones
    in use, the number is negative.
    """
    fragments = dict[tuple[str, str], int]()
    for view in views:
        several = [offer for offer in view.offers if offer.hardware.devices > 1]
        for resource in {offer.hardware.resource for offer in several}:
            devices = _devices_by_node(view, resource, pods)
            for offer in several:
                size = offer.hardware.devices
                lost = sum(left % size - every % size for left, every in devices)
                fragments[fragments_key(offer)] = lost
    return fragments


def _devices_by_node(
    view: PoolView, resource: str, pods: Sequence[Pod]
) -> Collection[tuple[int, int]]:
    """Return the free devices of each usable node of a pool, and all that it offers."""
    every = {name: devices.get(resource, 0) for name, devices in view.devices_by_node.items()}
    free = dict(every)
    for pod in pods:
        if pod.node in free and pod.ended is None:
            free[pod.node] -= pod.devices.get(resource, 0)
    return [(max(0, left), every[name]) for name, left in free.items()]


def cheapest_free(
    snapshot: Snapshot, service: ObservedService, chosen: HardwareChoice
) -> HardwareChoice | None:
    """Return the cheapest other hardware that its spec allows, that fits it and is free now."""
    spec = service.spec
    shape = shape_of(spec) if spec is not None else None
    if spec is None or shape is None:
        return None
    offers = [
        offer
        for view in discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
        if admits(view.pool.spec, service.ref.namespace)
        for offer in view.offers
        if _is_allowed(spec, offer)
        and (offer.pool, offer.hardware) != (chosen.offer.pool, chosen.offer.hardware)
        and replicas_free_now(snapshot, view, offer) > 0
    ]
    choices = by_price(fitting_choices(hardware_candidates(spec, shape, offers)))
    return choices[0] if choices else None


def beside_clause(
    spec: InferenceServiceSpec,
    placement: PlacementDecision,
    free: HardwareChoice,
    *,
    is_awaited: bool,
) -> str:
    """Return what free hardware does for replicas that found no node.

    What other services' floors wait for is kept for these.
    """
    if is_awaited:
        return "but kept for replicas within the minReplicas of other services, which wait for it"
    if any(each.variant == free.variant for each in placement.choices):
        seconds = BINDING_TIME.total_seconds()
        return f"and takes replicas for which no node was found for {seconds:.0f} s"
    return why_not_beside(spec, placement, free)


def why_not_beside(
    spec: InferenceServiceSpec, placement: PlacementDecision, other: HardwareChoice
) -> str:
    """Return why a service that runs does not use other hardware that its spec allows, too."""
    reference = placement.choice
    devices = {(each.offer.pool, each.offer.hardware.resource) for each in placement.choices}
    if (other.offer.pool, other.offer.hardware.resource) in devices:
        return "but replicas of a running service have equally many GPUs of a pool"
    if reference is not None and other.fit.precision != reference.fit.precision:
        return "but all replicas of a running service have one precision"
    pools = {each.offer.pool for each in placement.choices}
    if spec.placement.mig == "Auto" and other.offer.pool not in pools:
        return "but layout plans give a service the slices of one pool"
    if placement.unshared is not None and other.variant in placement.unshared:
        return f"but {placement.unshared}"
    if other.offer.pool in pools:
        return "but a pool gives devices of another kind only where the first one has too few"
    return "but without the gateway only replicas of about equal speed serve together"


def _is_allowed(spec: InferenceServiceSpec, offer: HardwareOffer) -> bool:
    placement = spec.placement
    return (
        not offer.needs_repartition
        and offer.tier in placement.tiers
        and (not placement.pools or offer.pool in placement.pools)
        and (placement.isolation == "Slice" or offer.hardware.exclusive)
    )
