"""Why a request was refused, failed, or ended early: the word in its error, record and metrics."""

from enum import StrEnum


class RequestReason(StrEnum):
    """Closed set of what can happen to a request at the gateway."""

    # What was sent.
    UNKNOWN_PATH = "UnknownPath"
    METHOD_NOT_ALLOWED = "MethodNotAllowed"
    INVALID_REQUEST = "InvalidRequest"
    UNSUPPORTED_ENCODING = "UnsupportedEncoding"
    BODY_TOO_LARGE = "BodyTooLarge"
    BODY_TIMEOUT = "BodyTimeout"
    HELD_BYTES_EXCEEDED = "HeldBytesExceeded"
    HEADERS_TOO_LARGE = "HeadersTooLarge"
    HEADERS_TIMEOUT = "HeadersTimeout"
    CLIENT_GONE = "ClientGone"

    # Who sent it.
    MISSING_KEY = "MissingKey"
    """It has no `Authorization: Bearer`, nor `x-api-key`."""
    AMBIGUOUS_KEY = "AmbiguousKey"
    """It has two keys or tokens, so that a proxy may have checked another one."""
    INVALID_KEY = "InvalidKey"
    """Its key is unknown or revoked."""
    EXPIRED_KEY = "ExpiredKey"
    INVALID_TOKEN = "InvalidToken"  # noqa: S105 - no password
    """Its token has a wrong signature, issuer or audience, or is expired."""
    UNKNOWN_TENANT = "UnknownTenant"
    """Its key or token belongs to no tenant: no TenantBudget has the name or namespace."""
    TOKENS_NOT_VERIFIED = "TokensNotVerified"
    """Its key or token cannot be verified now: the gateway has just started, or the API server or
    the issuer does not answer."""
    MODEL_NOT_FOUND = "ModelNotFound"
    NO_TARGET = "NoTarget"
    """No target of the route can answer it; the message has the reason of each."""
    PATH_NOT_SERVED = "PathNotServed"
    """The model does not answer on this path, as one of embeddings not on that of chats."""

    # Limits.
    TOO_MANY_REQUESTS = "TooManyRequests"
    TOO_MANY_INPUT_TOKENS = "TooManyInputTokens"
    TOO_MANY_OUTPUT_TOKENS = "TooManyOutputTokens"
    TOO_MANY_TOKENS = "TooManyTokens"
    TOO_MANY_CONCURRENT_REQUESTS = "TooManyConcurrentRequests"
    CONTEXT_TOO_LONG = "ContextTooLong"
    """The prompt leaves no room for an answer within `max_context_tokens`, or within what the model
    of a provider takes."""
    REQUEST_TOO_LARGE = "RequestTooLarge"
    """It needs more than the whole limit, so it never fits."""
    TOO_MANY_CHOICES = "TooManyChoices"
    """It asks for more answers than `max_output_tokens` has tokens."""
    LIMITS_UNAVAILABLE = "LimitsUnavailable"
    USAGE_NOT_RECORDED = "UsageNotRecorded"

    # Money.
    BUDGET_EXCEEDED = "BudgetExceeded"
    """A limit of charges has too little left for it, or for more of its stream."""
    BUDGET_UNAVAILABLE = "BudgetUnavailable"
    """What is left of a limit of charges is not known now, since the store does not answer."""
    PRICE_MISSING = "PriceMissing"
    """A limit of charges holds for it, and no PriceList has a price of its model."""

    # Replicas and their queue.
    NO_READY_REPLICA = "NoReadyReplica"
    SERVICE_STOPPED = "ServiceStopped"
    SERVICE_ASLEEP = "ServiceAsleep"
    """It has no replica, and requests of this tenant start none: `spec.access.wake`."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """It has no replica, and its TenantBudget grants none, so no request starts one."""
    QUEUE_FULL = "QueueFull"
    TENANT_QUEUE_FULL = "TenantQueueFull"
    DEADLINE_UNREACHABLE = "DeadlineUnreachable"
    """It would wait longer than its deadline allows, so it is refused at once."""
    QUEUE_TIMEOUT = "QueueTimeout"
    SHED = "Shed"
    """It is sheddable, and no replica had room that others leave."""
    SHEDDABLE_TOO_LONG = "SheddableTooLong"
    """It is sheddable, and others would wait too long while its prompt is read."""

    # Engines.
    ENGINE_UNREACHABLE = "EngineUnreachable"
    ENGINE_BUSY = "EngineBusy"
    ENGINE_DRAINING = "EngineDraining"
    ENGINE_REFUSED = "EngineRefused"
    ENGINE_FAILED = "EngineFailed"
    ENGINE_TIMEOUT = "EngineTimeout"
    INVALID_RESPONSE = "InvalidResponse"
    RESPONSE_TOO_LARGE = "ResponseTooLarge"
    STREAM_BROKEN = "StreamBroken"

    # Outside providers.
    PROVIDER_UNREACHABLE = "ProviderUnreachable"
    PROVIDER_BUSY = "ProviderBusy"
    """It takes no more requests now, or no place at it is free."""
    PROVIDER_FAILED = "ProviderFailed"
    PROVIDER_TIMEOUT = "ProviderTimeout"
    PROVIDER_REFUSED = "ProviderRefused"
    PROVIDER_KEY_REFUSED = "ProviderKeyRefused"
    """It does not take the key of its Secret, or that has none, or its account has no credit."""
    PROVIDER_MODEL_NOT_FOUND = "ProviderModelNotFound"
    """It has no such model, no longer, or not for the key of its Secret."""
    CONTENT_FILTERED = "ContentFiltered"
    """Its content filter refused the request, or the answer before its first byte."""

    TARGET_TIMEOUT = "TargetTimeout"
    """The target of its route took longer than `timeouts` allows."""

    # The gateway itself.
    GATEWAY_DRAINING = "GatewayDraining"
    GATEWAY_KILLED = "GatewayKilled"
    INTERNAL_ERROR = "InternalError"
