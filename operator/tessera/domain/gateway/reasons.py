"""Why a request was refused, failed, or ended early: the word in its error, record and metrics."""

from enum import StrEnum


class RequestReason(StrEnum):
    """Closed set of what can happen to a request at the gateway besides a refusal by a limit."""

    COMPLETED = "Completed"
    CLIENT_GONE = "ClientGone"
    UNKNOWN_ROUTE = "UnknownRoute"
    METHOD_NOT_ALLOWED = "MethodNotAllowed"
    INVALID_REQUEST = "InvalidRequest"
    UNSUPPORTED_ENCODING = "UnsupportedEncoding"
    BODY_TOO_LARGE = "BodyTooLarge"
    BODY_TIMEOUT = "BodyTimeout"
    HEADERS_TOO_LARGE = "HeadersTooLarge"
    HEADERS_TIMEOUT = "HeadersTimeout"
    MODEL_NOT_FOUND = "ModelNotFound"
    NO_READY_REPLICA = "NoReadyReplica"
    LIMITS_UNAVAILABLE = "LimitsUnavailable"
    USAGE_NOT_RECORDED = "UsageNotRecorded"
    QUEUE_TIMEOUT = "QueueTimeout"
    GATEWAY_DRAINING = "GatewayDraining"
    GATEWAY_KILLED = "GatewayKilled"
    ENGINE_UNREACHABLE = "EngineUnreachable"
    ENGINE_BUSY = "EngineBusy"
    ENGINE_DRAINING = "EngineDraining"
    ENGINE_REFUSED = "EngineRefused"
    ENGINE_FAILED = "EngineFailed"
    ENGINE_TIMEOUT = "EngineTimeout"
    INVALID_RESPONSE = "InvalidResponse"
    STREAM_BROKEN = "StreamBroken"
    INTERNAL_ERROR = "InternalError"
