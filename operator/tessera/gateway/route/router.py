"""The targets of a route that one request asks, one after the other, until one answers."""

from collections import deque
from dataclasses import replace

from tessera.api.model_route import MAX_CALLS, ModelRouteSpec, RouteTarget
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.model.paths import TOKENIZER_PATHS
from tessera.domain.routes.fallback import CANNOT_TAKE, fallback_kind, goes_on
from tessera.domain.routes.order import target_order
from tessera.domain.routes.outside import outside_obstacle
from tessera.domain.routes.reasons import RouteReason
from tessera.gateway.bodies.opening import offers_tools, read_opening
from tessera.gateway.bodies.settings import with_settings
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.identify.senders import Senders, is_true
from tessera.gateway.receive.receiver import read_fields
from tessera.gateway.receive.routed import RoutedTo, skipped_text
from tessera.gateway.refusals import RequestError, context_excess, no_target
from tessera.gateway.resolve.chooser import measured
from tessera.gateway.resolve.models import Models, Resolved

_ALLOW_DOWNGRADE = "x-tessera-allow-downgrade"
# A text with words that almost fit: so many comparisons take as long as a byte of a body.
_COMPARED_PER_BYTE = 64
_REFUSED = frozenset(
    {
        RequestReason.ENGINE_REFUSED,
        RequestReason.PROVIDER_REFUSED,
        RequestReason.CONTENT_FILTERED,
    }
)
# Where all targets have these, a shorter prompt helps, and no other day.
_LASTING = _REFUSED | {RequestReason.CONTEXT_TOO_LONG, RequestReason.MODEL_NOT_FOUND}


class RequestRouter:
    """Chooses targets for the requests of one process."""

    def __init__(self, senders: Senders, models: Models, turns: Turns) -> None:
        """Take the turns of large bodies."""
        self._senders, self._models, self._turns = senders, models, turns

    async def calls(self, resolved: Resolved) -> "RouteCalls":
        """Return the calls of a request for a route, none of which is made yet.

        Raises RequestError with status 400.
        """
        route, received = resolved.model.route, resolved.received
        assert route is not None  # noqa: S101 - only a route has targets
        identified = received.identified
        path, headers = identified.path_item.path, identified.headers
        if path in TOKENIZER_PATHS:
            # What another model would count is of no use, and providers count on no such path.
            own = [target for target in route.targets if target.provider is None]
            targets, reason = (*(own or route.targets)[-1:],), RouteReason.LAST_TARGET
        else:
            # Rules ask for no session.
            tenant = identified.identity.tenant if route.select == "Weights" else None
            opening = await self._turns.take(
                len(received.body), lambda: read_opening(received.fields, headers, tenant)
            )
            allow_downgrade = is_true(headers, _ALLOW_DOWNGRADE, default=True)
            identity = identified.identity
            compared = len(opening.text) * sum(map(len, route.score.words))
            order = await self._turns.take(
                compared // _COMPARED_PER_BYTE,
                lambda: target_order(
                    route,
                    opening,
                    allow_downgrade=allow_downgrade and self._senders.allows_downgrade(identity),
                    cheaper_targets=self._senders.takes_cheaper_targets(identity),
                ),
            )
            targets, reason = order.targets, order.reason
        return RouteCalls(resolved, route, targets, reason, self._models, self._turns)


class RouteCalls:
    """The calls of one request to the targets of its route."""

    def __init__(
        self,
        resolved: Resolved,
        route: ModelRouteSpec,
        targets: tuple[RouteTarget, ...],
        reason: RouteReason,
        models: Models,
        turns: Turns,
    ) -> None:
        self._resolved, self._route, self._reason = resolved, route, reason
        self._models, self._turns = models, turns
        self._chosen = targets[0]
        self._cheaper_targets = reason is RouteReason.CHEAPER_TARGETS
        is_alone = self._cheaper_targets or len(targets) == 1
        waits = is_alone or "Overloaded" not in route.fallback
        self._left = deque((target, waits) for target in targets)
        self._asked = 0
        self._errors: dict[str, RequestError] = {}
        self._skipped: dict[str, str] = {}
        self._may_wait: RouteTarget | None = None
        self._overflowed: OfferedModel | None = None

    async def next(self) -> Resolved | None:
        """Return the request as the next target gets it; None where none is left.

        Raises RequestError where the request itself is at fault.
        """
        while True:
            if not self._left and self._may_wait is not None:
                # All were tried that could answer at once.
                self._left.append((self._may_wait, True))
                self._may_wait = None
            has_body = bool(self._resolved.received.body)
            if not self._left or self._asked >= MAX_CALLS or not has_body:
                return None
            target, waits = self._left.popleft()
            before = self._skipped.pop(target.target_name, None)
            model = self._model_of(target)
            if model is None:
                self._skipped[target.target_name] = RouteReason.TARGET_NOT_FOUND
            elif not model.generates:
                self._skipped[target.target_name] = RequestReason.PATH_NOT_SERVED
            else:
                try:
                    call = await self._with(target, model, before, waits=waits)
                    obstacle = await self._obstacle(call)
                    if obstacle is None:
                        return call
                    self._drop(call)
                    self._skipped[target.target_name] = obstacle
                    if obstacle is RequestReason.CONTEXT_TOO_LONG:
                        self._errors[target.target_name] = _too_long(call)
                except RequestError as error:
                    # Its settings, which this path cannot say.
                    if error.reason not in CANNOT_TAKE:
                        raise
                    self._skip(target.target_name, error)

    def failed(self, call: Resolved, error: RequestError, *, was_asked: bool) -> bool:
        """Note that a target gave no answer; return whether the request goes on."""
        routed = call.received.routed
        assert routed is not None  # noqa: S101 - every call has a target
        kind = fallback_kind(error.reason)
        fallback = self._route.fallback
        if not goes_on(error.reason, fallback, cheaper_targets=self._cheaper_targets):
            return False
        self._asked += was_asked
        if kind == "Overloaded" and self._overflowed is None:
            self._overflowed = call.model
        self._skip(routed.target, error)
        self._drop(call)
        if error.reason is RequestReason.NO_READY_REPLICA:
            may_answer = call.model.may_sleep and not routed.waits
        elif error.reason is RequestReason.BUDGET_EXCEEDED:
            # With fewer tokens, when others give back what they reserved, or more is lent.
            may_answer = not routed.gives_less
        else:
            may_answer = kind == "Overloaded" and not routed.waits
        before = self._may_wait
        is_first = before is None or (before.provider is not None and call.model.outside is None)
        if may_answer and is_first:
            # Until more is lent for a provider, a service may give fewer tokens.
            self._may_wait = self._target(routed.target)
        return True

    def refusal(self) -> RequestError:
        """Return the error of a request that no target answers.

        What all refuse is the fault of the request, in the words of the last.
        """
        self._resolved.received.skipped_targets = skipped_text(self._skipped.items())
        errors = list(self._errors.values())
        too_long = [each for each in errors if each.reason is RequestReason.CONTEXT_TOO_LONG]
        if too_long and _LASTING.issuperset(each.reason for each in errors):
            return too_long[-1]
        if errors and _REFUSED.issuperset(self._skipped.values()):
            return errors[-1]
        return no_target(self._resolved.model.service, self._skipped, errors)

    async def _with(
        self, target: RouteTarget, model: OfferedModel, before: str | None, *, waits: bool
    ) -> Resolved:
        """Return the request as a target gets it; `before` is why it gave no answer before."""
        received = self._resolved.received
        if received.model in model.adapters:
            # It is the name of the route, which gives no right to an adapter of others.
            model = replace(model, adapters=())
        routed = RoutedTo(
            route=self._resolved.model.service,
            target=target.target_name,
            reason=self._reason if target is self._chosen else RouteReason.FALLBACK,
            skipped=tuple(self._skipped.items()),
            waits=waits,
            # Without money it came to no queue.
            is_repeated=before not in (None, RequestReason.BUDGET_EXCEEDED),
            gives_less=before is not None,
            timeouts=target.timeouts,
            overflowed=self._overflowed,
        )
        fields, body, unlisted = received.fields, received.body, received.unlisted
        if target.set.model_fields_set:
            item = received.identified.path_item
            body = await self._turns.take(
                len(body), lambda: with_settings(item.path, fields, received.body, target.set)
            )
            fields, unlisted = await read_fields(item, body, self._turns)
            if not received.identified.holding.take_room(self._copied_bytes(body)):
                # It is for this target alone.
                received.drop_body()
        call = replace(
            received, fields=fields, body=body, unlisted=unlisted, routed=routed, origin=received
        )
        return Resolved(received=call, model=model)

    def _model_of(self, target: RouteTarget) -> OfferedModel | None:
        identity = self._resolved.received.identified.identity
        if target.provider is not None:
            return self._models.outside_target(
                identity, target.provider.name, target.provider.model
            )
        service = target.service_ref(self._resolved.model.service.namespace)
        return None if service is None else self._models.target(identity, service)

    async def _obstacle(self, call: Resolved) -> RequestReason | RouteReason | None:
        """Return why a model of a provider cannot take a request; None where it can, or is none."""
        received, outside = call.received, call.model.outside
        if outside is None:
            return None
        size, _ = await measured(received, call.model, self._turns)
        call.size = size
        identified = received.identified
        return outside_obstacle(
            outside,
            path=identified.path_item.path,
            input_tokens=size.estimate(None),
            has_tools=offers_tools(received.fields),
            has_media=size.media_tokens > 0,
            residency=self._models.residency(identified.identity),
        )

    def _drop(self, call: Resolved) -> None:
        """Hold nothing of the body of a call that is not made, or gave no answer."""
        self._resolved.received.identified.holding.free(self._copied_bytes(call.received.body))

    def _copied_bytes(self, body: bytes) -> int:
        """Return how much of a body is held beside the one that came."""
        original = self._resolved.received.body
        return len(body) if original and body is not original else 0

    def _skip(self, target: str, error: RequestError) -> None:
        # It lives as long as the answer of the next target.
        error.drop_frames()
        self._skipped[target], self._errors[target] = error.reason, error

    def _target(self, name: str) -> RouteTarget:
        return next(each for each in self._route.targets if each.target_name == name)


def _too_long(call: Resolved) -> RequestError:
    """Return the error of a prompt that the model of a provider does not take, unasked."""
    outside, size = call.model.outside, call.size
    assert outside is not None and size is not None  # noqa: S101, PT018 - both were looked at
    return RequestError(
        RequestReason.CONTEXT_TOO_LONG,
        context_excess(
            # An answer has one token at least.
            size.estimate(None) + 1,
            outside.model.max_context_tokens,
            f"ModelProvider/{outside.provider.name}",
        ),
    )
