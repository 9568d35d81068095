"""Which targets of a route a request asks, one after another."""

from hashlib import blake2b
from math import log
from typing import NamedTuple

from tessera.api.model_route import ModelRouteSpec, RouteTarget
from tessera.domain.routes.opening import RequestOpening
from tessera.domain.routes.reasons import RouteReason
from tessera.domain.routes.rules import holds, score

_HASHES = 2.0**64


class TargetOrder(NamedTuple):
    """The targets of a request, the chosen one first."""

    targets: tuple[RouteTarget, ...]
    reason: RouteReason
    """Why the first is chosen."""


def target_order(
    spec: ModelRouteSpec,
    opening: RequestOpening,
    *,
    allow_downgrade: bool = True,
    cheaper_targets: bool = False,
) -> TargetOrder:
    """Return the chosen target, those after it, and those before it, the nearest first.

    Without `allow_downgrade` it is the last one alone, also with `cheaper_targets`, with which the
    first is chosen. Every turn of a conversation has the same order, at every gateway, and a change
    of weights moves as few conversations as it can.
    """
    targets = spec.targets
    if not allow_downgrade:
        return TargetOrder(targets[-1:], RouteReason.NO_DOWNGRADE)
    if cheaper_targets:
        return TargetOrder(targets, RouteReason.CHEAPER_TARGETS)
    weighted = [target for target in targets if target.weight]
    if spec.select == "Weights" and weighted:
        first = targets.index(min(weighted, key=lambda each: _distance(each, opening.session)))
        reason = RouteReason.WEIGHTED
    else:
        first = _first_that_holds(spec, opening)
        is_last = first == len(targets) - 1
        reason = RouteReason.LAST_TARGET if is_last else RouteReason.RULE_MATCHED
    return TargetOrder((*targets[first:], *reversed(targets[:first])), reason)


def _first_that_holds(spec: ModelRouteSpec, opening: RequestOpening) -> int:
    points = 0
    for place, target in enumerate(spec.targets[:-1]):
        condition = target.when
        if condition is None:
            return place
        if condition.max_score is not None:
            points = points or score(opening.text, spec.score)
        if holds(condition, opening, points):
            return place
    return len(spec.targets) - 1


def _distance(target: RouteTarget, session: bytes) -> float:
    """Return a number that is the smallest of all targets as often as its weight says.

    It depends on no other target, so that a conversation moves only to one whose weight rises, or
    away from one whose weight falls.
    """
    name = target.target_name.encode()
    number = int.from_bytes(blake2b(session, key=name, digest_size=8).digest())
    return -log((number + 0.5) / _HASHES) / target.weight
