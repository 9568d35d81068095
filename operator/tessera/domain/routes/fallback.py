"""Which refusals and failures of a target send a request to the next one."""

from collections.abc import Iterable, Mapping

from tessera.api.model_route import FallbackKind
from tessera.domain.gateway.reasons import RequestReason

_REASONS: Mapping[FallbackKind, tuple[RequestReason, ...]] = {
    "Context": (RequestReason.CONTEXT_TOO_LONG, RequestReason.REQUEST_TOO_LARGE),
    "RateLimited": (
        RequestReason.TOO_MANY_REQUESTS,
        RequestReason.TOO_MANY_INPUT_TOKENS,
        RequestReason.TOO_MANY_OUTPUT_TOKENS,
        RequestReason.TOO_MANY_TOKENS,
        RequestReason.TOO_MANY_CONCURRENT_REQUESTS,
        RequestReason.ENGINE_BUSY,
        RequestReason.PROVIDER_BUSY,
    ),
    "Overloaded": (
        RequestReason.QUEUE_FULL,
        RequestReason.TENANT_QUEUE_FULL,
        RequestReason.DEADLINE_UNREACHABLE,
        RequestReason.QUEUE_TIMEOUT,
        RequestReason.SHED,
        RequestReason.SHEDDABLE_TOO_LONG,
    ),
    "ServerError": (
        RequestReason.NO_READY_REPLICA,
        RequestReason.SERVICE_STOPPED,
        RequestReason.SERVICE_ASLEEP,
        RequestReason.BUDGET_EXHAUSTED,
        RequestReason.ENGINE_UNREACHABLE,
        RequestReason.ENGINE_DRAINING,
        RequestReason.ENGINE_FAILED,
        RequestReason.INVALID_RESPONSE,
        RequestReason.STREAM_BROKEN,
        RequestReason.PROVIDER_UNREACHABLE,
        RequestReason.PROVIDER_FAILED,
        RequestReason.PROVIDER_KEY_REFUSED,
    ),
    "Timeout": (
        RequestReason.ENGINE_TIMEOUT,
        RequestReason.TARGET_TIMEOUT,
        RequestReason.PROVIDER_TIMEOUT,
    ),
    "ContentFilter": (RequestReason.CONTENT_FILTERED,),
}
_KINDS = {reason: kind for kind, reasons in _REASONS.items() for reason in reasons}

# The target cannot take such a request, or the money does not reach for it as far as is known,
# whatever `fallback` says: what is lent for a provider is not what pays for a service. A request
# that is invalid for one target, for what is in its body, may be valid for another.
CANNOT_TAKE = frozenset(
    {
        RequestReason.PATH_NOT_SERVED,
        RequestReason.MODEL_NOT_FOUND,
        RequestReason.PRICE_MISSING,
        RequestReason.BUDGET_EXCEEDED,
        RequestReason.BUDGET_UNAVAILABLE,
        RequestReason.INVALID_REQUEST,
        RequestReason.ENGINE_REFUSED,
        RequestReason.PROVIDER_REFUSED,
        RequestReason.PROVIDER_MODEL_NOT_FOUND,
    }
)


# Beside these, why the cheapest target gives no answer to who gets no other that could.
_HAS_NO_ROOM = frozenset(
    {
        RequestReason.CONTEXT_TOO_LONG,
        RequestReason.REQUEST_TOO_LARGE,
        RequestReason.SERVICE_STOPPED,
        RequestReason.SERVICE_ASLEEP,
        RequestReason.BUDGET_EXHAUSTED,
    }
)


def fallback_kind(reason: RequestReason) -> FallbackKind | None:
    """Return the word of `spec.fallback` that sends a request to the next target; None where it
    has none.
    """
    return _KINDS.get(reason)


def goes_on(
    reason: RequestReason, fallback: Iterable[FallbackKind], *, cheaper_targets: bool
) -> bool:
    """Return whether a request that a target did not answer goes to the next one.

    With `cheaper_targets` a dearer one gets only what the cheaper ones cannot take at any time.
    """
    if cheaper_targets:
        return reason in CANNOT_TAKE or reason in _HAS_NO_ROOM
    return reason in CANNOT_TAKE or fallback_kind(reason) in {*fallback}
