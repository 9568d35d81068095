"""Which refusals and failures of a target send a request to the next one."""

from typing import get_args

import pytest

from tessera.api.model_route import FallbackKind
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.routes.fallback import CANNOT_TAKE, fallback_kind, goes_on

# What no other target changes: what was sent, who sent it, the tenant's own state, the gateway's.
ENDS = {
    "UnknownPath MethodNotAllowed UnsupportedEncoding BodyTooLarge BodyTimeout HeldBytesExceeded",
    "HeadersTooLarge HeadersTimeout ClientGone MissingKey AmbiguousKey InvalidKey ExpiredKey",
    "InvalidToken UnknownTenant TokensNotVerified TooManyChoices LimitsUnavailable",
    "UsageNotRecorded ResponseTooLarge",
    "GatewayDraining GatewayKilled InternalError NoTarget",
}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (RequestReason.CONTEXT_TOO_LONG, "Context"),
        (RequestReason.TOO_MANY_OUTPUT_TOKENS, "RateLimited"),
        (RequestReason.ENGINE_BUSY, "RateLimited"),
        (RequestReason.DEADLINE_UNREACHABLE, "Overloaded"),
        (RequestReason.SERVICE_ASLEEP, "ServerError"),
        (RequestReason.ENGINE_FAILED, "ServerError"),
        (RequestReason.ENGINE_TIMEOUT, "Timeout"),
        (RequestReason.CLIENT_GONE, None),
        (RequestReason.BUDGET_EXCEEDED, None),
    ],
)
def test_kind_of_a_reason(reason: RequestReason, kind: FallbackKind | None) -> None:
    assert fallback_kind(reason) == kind


def test_every_reason_has_a_kind_or_skips_the_target_or_ends_the_request() -> None:
    with_kind = {reason for reason in RequestReason if fallback_kind(reason) is not None}
    ends = {RequestReason(word) for line in ENDS for word in line.split()}
    assert not with_kind & CANNOT_TAKE
    assert not ends & (with_kind | CANNOT_TAKE)
    assert with_kind | CANNOT_TAKE | ends == set(RequestReason)


def test_every_kind_has_a_reason() -> None:
    assert {fallback_kind(reason) for reason in RequestReason} == {*get_args(FallbackKind), None}


def test_a_request_goes_on_by_the_words_of_its_route_or_where_a_target_cannot_take_it() -> None:
    for reason in RequestReason:
        kind = fallback_kind(reason)
        listed = () if kind is None else (kind,)
        others = [each for each in get_args(FallbackKind) if each != kind]
        is_taken = reason not in CANNOT_TAKE
        assert goes_on(reason, listed, cheaper_targets=False) == (bool(listed) or not is_taken)
        assert goes_on(reason, others, cheaper_targets=False) == (not is_taken)


def test_a_dearer_target_gets_what_the_cheapest_can_never_take_and_no_failure() -> None:
    goes = {reason for reason in RequestReason if goes_on(reason, (), cheaper_targets=True)}
    assert goes == CANNOT_TAKE | {
        RequestReason.CONTEXT_TOO_LONG,
        RequestReason.REQUEST_TOO_LARGE,
        RequestReason.SERVICE_STOPPED,
        RequestReason.SERVICE_ASLEEP,
        RequestReason.BUDGET_EXHAUSTED,
    }
    every = get_args(FallbackKind)
    assert not goes_on(RequestReason.ENGINE_FAILED, every, cheaper_targets=True)
