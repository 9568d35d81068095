"""Explanation of a route: who answers which requests, and what that saves."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from tessera.api.meta import find_condition
from tessera.api.model_route import MAX_SCORE, ModelRouteSpec
from tessera.api.route_reasons import TargetState
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.reporting.decision import Decision, Numbers
from tessera.domain.routes.savings import RouteUse, blends, less_text

_WITHOUT_REPLICA = frozenset(
    {TargetState.NO_READY_REPLICA, TargetState.SERVICE_ASLEEP, TargetState.SERVICE_STOPPED}
)


def explain_route(route: ObservedRoute, uses: Sequence[RouteUse]) -> tuple[Decision, ...]:
    """Return the decisions about a route, with what it did in the last hour in each currency."""
    decisions = [_accepted(route, uses)]
    if route.spec is not None:
        decisions.append(_selection(route.spec, route))
        decisions += [_saving(route.spec, use) for use in uses if use.currency is not None]
    return tuple(decisions)


def _accepted(route: ObservedRoute, uses: Sequence[RouteUse]) -> Decision:
    condition = find_condition(route.status.conditions, "Accepted")
    return Decision(
        topic="accepted",
        reason=condition.reason if condition else "",
        message=condition.message if condition else "the operator has not reconciled it yet",
        since=condition.last_transition_time if condition else None,
        numbers=tuple(_targets(route, uses)),
    )


def _targets(route: ObservedRoute, uses: Sequence[RouteUse]) -> Iterator[tuple[str, str]]:
    for target in route.status.targets:
        words = [f"{target.service or target.provider}: {target.reason}"]
        if uses and (share := uses[0].share_of(target.name)) is not None:
            words.append(f"{share:.1%} of the requests")
        for use in uses:
            if (price := use.price_of(target.name)) is not None:
                words.append(f"{price:.4f} {use.currency} a million tokens")
        yield target.name, ", ".join(words)
    if uses and (share := uses[0].fallback_share) is not None:
        yield "fallback", f"{share:.1%} of the requests"


def _selection(spec: ModelRouteSpec, route: ObservedRoute) -> Decision:
    """Say who is asked first, without what `when` says besides scores."""
    skipped = {
        target.name: target.reason
        for target in route.status.targets
        if target.reason != TargetState.AVAILABLE
    }
    if spec.select == "Weights":
        message = "a hash of each conversation falls to a target by its weight"
        total = max(1, sum(target.weight for target in spec.targets))
        numbers: Numbers = tuple(
            (
                target.target_name,
                f"{target.weight / total:.0%} of the conversations"
                f"{_instead(spec, target.target_name, skipped)}",
            )
            for target in spec.targets
        )
    else:
        message = (
            "the first target whose `when` holds; by the score alone, which is 1 and a point for "
            "each signal, it is"
        )
        numbers = tuple(
            (score, f"{name}{_instead(spec, name, skipped)}") for score, name in _by_score(spec)
        )
    return Decision(topic="selection", reason=spec.select, message=message, numbers=numbers)


def _instead(spec: ModelRouteSpec, name: str, skipped: Mapping[str, str]) -> str:
    """Say who answers in place of a target that is skipped; nothing of one that can answer."""
    if name not in skipped:
        return ""
    if skipped[name] in _WITHOUT_REPLICA and "ServerError" not in spec.fallback:
        return f" ({skipped[name]})"
    names = [target.target_name for target in spec.targets]
    place = names.index(name)
    others = [*names[place + 1 :], *reversed(names[:place])]
    other = next((target for target in others if target not in skipped), None)
    return f", skipped ({skipped[name]}): {'no target' if other is None else other} answers"


def _by_score(spec: ModelRouteSpec) -> Iterator[tuple[str, str]]:
    def target(points: int) -> str:
        return next(
            each.target_name
            for each in spec.targets
            if each.when is None or each.when.max_score is None or points <= each.when.max_score
        )

    for name, group in groupby(range(1, MAX_SCORE + 1), target):
        first, *others = group
        yield f"score {first}{f' to {others[-1]}' if others else ''}", name


def _saving(spec: ModelRouteSpec, use: RouteUse) -> Decision:
    """Say what it saved, and what other shares of its first target would, at its prices."""
    first, last = spec.targets[0].target_name, spec.targets[-1].target_name
    blended, at_last, saved = use.per_million, use.last_per_million, use.saved
    if blended is None or at_last is None or saved is None:
        message = "no answer of the last hour has a price"
        return Decision(topic="saving", reason="NotKnown", message=message)
    small = use.price_of(first)
    numbers: Numbers = ()
    if small is not None and first != last:
        numbers = tuple(
            (
                f"{row.share:.0%} at {first}",
                f"{row.price:.4f} {use.currency}, {less_text(row.saved)}",
            )
            for row in blends(small, at_last)
        )
    cost = use.cost_of_saving
    wasted = "" if cost is None else f"; calls without an answer took {cost:.1%} of the saving"
    return Decision(
        topic="saving",
        reason="Saves" if saved > 0 else "SavesNothing",
        message=f"in the last hour a million tokens cost {blended:.4f} {use.currency}, "
        f"{less_text(saved)} than {at_last:.4f} for the same at {last}, the last target{wasted}",
        numbers=numbers,
    )
