"""What a client reads whose request is refused or fails: status, code, headers and message.

Errors have OpenAI's shape, and Anthropic's for clients of its protocol.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.charge.gateway_charges import ChargeRefusal
from tessera.domain.charge.scopes import ChargeLimit, is_outside
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel, OutsideModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.charges import charged_name, next_price
from tessera.domain.limits.fair_queue import QueueRefusal
from tessera.domain.limits.gateway_limits import Allowance, LimitRefusal
from tessera.domain.limits.scopes import ScopeKind
from tessera.domain.money import NANO

Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"
_INVALID, _FAILED = "invalid_request_error", "server_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_NO_MONEY = "insufficient_quota"
# Lines with the names of events in which clients of these protocols look for a failure.
MESSAGES_FAILURE, RESPONSES_FAILURE = b"event: error\n", b"event: response.failed\n"
_MESSAGES_TYPES = {**_TYPES, 404: "not_found_error", 413: "request_too_large"}
_MESSAGES_FAILED = {503: "overloaded_error"}
_MAX_NAME_IN_MESSAGE = 100
_MAX_OFFERED = 20
# Clients send them to the path of chats, with a body of another path.
_FIELDS_OF_PATHS = {"input": "/v1/responses", "instructions": "/v1/responses"}
_MAX_HOSTS = 5
# Until running requests may have left some of what they reserved.
_RESERVED_SECONDS = 30.0


class _Refusal(NamedTuple):
    status: int
    message: str = "{}"
    """With places for details, and one for the seconds of `retry-after`."""
    retry_seconds: float | None = None
    """The header `retry-after`, unless the request that is refused tells better."""
    code: str | None = None
    """The reason in snake case by default."""
    headers: Headers = ()


def _unknown_sender(message: str) -> _Refusal:
    bearer = ((b"www-authenticate", b"Bearer"),)
    return _Refusal(401, message, code="invalid_api_key", headers=bearer)


_LAST = ((b"connection", b"close"),)
_OVER_LIMIT = _Refusal(
    429, "{0}, remaining {2}{1}; retry in {retry} s.", code="rate_limit_exceeded"
)
_NEVER_FITS = _Refusal(400, "{0}{1}. It never fits: shorten the prompt, or ask for a higher limit.")
_QUEUE_FULL = "The queue of InferenceService/{} is full; retry in {retry} s."

REFUSALS: Mapping[RequestReason, _Refusal] = {
    RequestReason.UNKNOWN_PATH: _Refusal(404, "Unknown request URL: {} {}.", code="unknown_url"),
    RequestReason.METHOD_NOT_ALLOWED: _Refusal(405, "{}: only {} is taken."),
    RequestReason.INVALID_REQUEST: _Refusal(400),
    RequestReason.UNSUPPORTED_ENCODING: _Refusal(415, "Content-Encoding: only identity is taken."),
    RequestReason.BODY_TOO_LARGE: _Refusal(413, "The body has more than {}.", headers=_LAST),
    RequestReason.BODY_TIMEOUT: _Refusal(408, "The body took more than {} s.", headers=_LAST),
    RequestReason.HELD_BYTES_EXCEEDED: _Refusal(
        429,
        "Requests hold too much memory of the gateway: limit {}, {} of one tenant, and this "
        "request was the largest of its key; retry in {retry} s with smaller requests or fewer at "
        "a time.",
        retry_seconds=1,
    ),
    RequestReason.HEADERS_TOO_LARGE: _Refusal(
        431, "the headers, trailers and extensions of chunks have more than {} or {}"
    ),
    RequestReason.HEADERS_TIMEOUT: _Refusal(408, "the headers took more than {} s"),
    RequestReason.CLIENT_GONE: _Refusal(499, "The client went away."),
    RequestReason.MISSING_KEY: _unknown_sender(
        "Send an API key in the header `Authorization: Bearer <key>`."
    ),
    RequestReason.AMBIGUOUS_KEY: _unknown_sender(
        "The request has two keys: send one `Authorization: Bearer <key>` or one `x-api-key`."
    ),
    RequestReason.INVALID_KEY: _unknown_sender("The API key is unknown or was revoked."),
    RequestReason.EXPIRED_KEY: _unknown_sender("The API key has expired: ask for a new one."),
    RequestReason.INVALID_TOKEN: _unknown_sender(
        "The token has expired, or is not meant for this gateway."
    ),
    RequestReason.UNKNOWN_TENANT: _unknown_sender(
        "The key or token is valid, but its tenant does not exist: no TenantBudget has its name or "
        "namespace."
    ),
    RequestReason.TOKENS_NOT_VERIFIED: _Refusal(
        503, "Keys and tokens cannot be verified now; retry in {retry} seconds.", retry_seconds=5
    ),
    RequestReason.MODEL_NOT_FOUND: _Refusal(
        404, "The model `{}` does not exist or this key may not use it; {}"
    ),
    RequestReason.NO_TARGET: _Refusal(404, "No target of ModelRoute/{} can answer: {}{}."),
    RequestReason.PATH_NOT_SERVED: _Refusal(
        404, "The model `{}` {} and does not answer on {}; send the request to {}."
    ),
    RequestReason.TOO_MANY_REQUESTS: _OVER_LIMIT,
    RequestReason.TOO_MANY_INPUT_TOKENS: _OVER_LIMIT,
    RequestReason.TOO_MANY_OUTPUT_TOKENS: _OVER_LIMIT,
    RequestReason.TOO_MANY_TOKENS: _OVER_LIMIT,
    RequestReason.TOO_MANY_CONCURRENT_REQUESTS: _OVER_LIMIT,
    # Coding clients look for this code or for this beginning, and shorten their conversation.
    RequestReason.CONTEXT_TOO_LONG: _Refusal(
        400, "prompt is too long{}. Shorten it.", code="context_length_exceeded"
    ),
    RequestReason.REQUEST_TOO_LARGE: _NEVER_FITS,
    RequestReason.TOO_MANY_CHOICES: _Refusal(
        400, "{0}{1} for a token of each choice. Ask for fewer choices or prompts at a time."
    ),
    RequestReason.LIMITS_UNAVAILABLE: _Refusal(
        503,
        "The limits of this key cannot be checked now; retry in {retry} second.",
        retry_seconds=1,
    ),
    RequestReason.USAGE_NOT_RECORDED: _Refusal(
        503,
        "The gateway cannot record usage now: its database does not answer. Try again.",
        retry_seconds=5,
    ),
    # SDKs repeat what is refused by 429, unless they are told not to.
    RequestReason.BUDGET_EXCEEDED: _Refusal(
        429,
        "TenantBudget/{} limit {}: {} for the {}, {} left{}, needed {}; retry in {retry} s, or ask "
        "for a higher limit.",
        headers=((b"x-should-retry", b"false"),),
    ),
    RequestReason.BUDGET_UNAVAILABLE: _Refusal(
        503,
        "What is left of TenantBudget/{} is not known now: the database of the gateway does not "
        "answer; retry in {retry} s.",
        retry_seconds=5,
    ),
    RequestReason.PRICE_MISSING: _Refusal(
        403,
        "TenantBudget/{} limits {}.",
    ),
    RequestReason.NO_READY_REPLICA: _Refusal(
        503, "InferenceService/{} has no ready replica; retry in {retry} s.", retry_seconds=5
    ),
    RequestReason.SERVICE_STOPPED: _Refusal(
        503,
        "InferenceService/{} is stopped: spec.replicas is 0. It answers again once spec.replicas "
        "is raised or removed.",
    ),
    # The service does not fail, so it is no error of a server.
    RequestReason.SERVICE_ASLEEP: _Refusal(
        403,
        "InferenceService/{} sleeps, and requests of TenantBudget/{} do not wake it: its owner can "
        "set spec.access.wake to All.",
    ),
    RequestReason.BUDGET_EXHAUSTED: _Refusal(
        503,
        "InferenceService/{} has no replica, and {} grants it none, so no request starts one. Its "
        "owner reads why in status.tenant.startRefusal.",
    ),
    RequestReason.QUEUE_FULL: _Refusal(503, _QUEUE_FULL),
    RequestReason.TENANT_QUEUE_FULL: _Refusal(429, _QUEUE_FULL),
    RequestReason.DEADLINE_UNREACHABLE: _Refusal(
        503, "InferenceService/{} would answer too late; retry in {retry} s."
    ),
    RequestReason.QUEUE_TIMEOUT: _Refusal(
        503,
        "No replica of InferenceService/{} had room for {} s; retry in {retry} s.",
        retry_seconds=5,
    ),
    RequestReason.SHED: _Refusal(
        429,
        "InferenceService/{} has no room to spare for a sheddable request; retry in {retry} s.",
        retry_seconds=5,
    ),
    RequestReason.SHEDDABLE_TOO_LONG: _Refusal(
        400,
        "InferenceService/{} reads {} tokens in {} s, and others wait for a sheddable request for "
        "{} s at most: shorten the prompt, or send it without x-tessera-sheddable and with a key "
        "that is not sheddable.",
    ),
    RequestReason.ENGINE_UNREACHABLE: _Refusal(502, "The replica {} cannot be reached: {}."),
    RequestReason.ENGINE_BUSY: _Refusal(
        503, "All replicas of the model have full queues; retry in {retry} second.", retry_seconds=1
    ),
    RequestReason.ENGINE_DRAINING: _Refusal(
        503, "The replica {} terminates and gave the request up.", retry_seconds=1
    ),
    RequestReason.ENGINE_REFUSED: _Refusal(400),
    RequestReason.ENGINE_FAILED: _Refusal(502),
    RequestReason.PROVIDER_UNREACHABLE: _Refusal(502, "ModelProvider/{} cannot be reached: {}."),
    RequestReason.PROVIDER_BUSY: _Refusal(
        503, "ModelProvider/{} takes no more requests now; retry in {retry} s.", retry_seconds=1
    ),
    RequestReason.PROVIDER_FAILED: _Refusal(502, "ModelProvider/{} failed: {}."),
    RequestReason.PROVIDER_TIMEOUT: _Refusal(504, "ModelProvider/{} took too long: {}."),
    RequestReason.PROVIDER_REFUSED: _Refusal(400, "ModelProvider/{} refused the request: {}."),
    RequestReason.PROVIDER_KEY_REFUSED: _Refusal(
        502, "ModelProvider/{} does not take the key of the installation: {}."
    ),
    RequestReason.PROVIDER_MODEL_NOT_FOUND: _Refusal(
        502, "ModelProvider/{} does not have the model for the key of the installation: {}."
    ),
    RequestReason.CONTENT_FILTERED: _Refusal(
        400,
        "The content filter of ModelProvider/{} refused the request.",
        code="content_filter",
    ),
    RequestReason.TARGET_TIMEOUT: _Refusal(504, "The target {} took too long."),
    RequestReason.ENGINE_TIMEOUT: _Refusal(504, "The replica {} sent nothing for too long."),
    RequestReason.INVALID_RESPONSE: _Refusal(502, "The replica {} sent an invalid response: {}."),
    RequestReason.RESPONSE_TOO_LARGE: _Refusal(
        502, "The answer is too large for the gateway: {}. Ask for less at a time."
    ),
    RequestReason.STREAM_BROKEN: _Refusal(502, "The replica {} broke off its answer: {}."),
    RequestReason.GATEWAY_DRAINING: _Refusal(
        503, "The gateway terminates before the answer was complete.", retry_seconds=1
    ),
}


# Of these a client reads which limit, and what is left of it, whatever it has asked.
MONEY_REASONS = frozenset(
    {
        RequestReason.BUDGET_EXCEEDED,
        RequestReason.BUDGET_UNAVAILABLE,
        RequestReason.PRICE_MISSING,
    }
)


class RequestError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        reason: RequestReason,
        *details: object,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: float | None = None,
        headers: Headers = (),
    ) -> None:
        """Take the details of the reason's message, and what differs from its row."""
        refusal = REFUSALS[reason]
        seconds = refusal.retry_seconds if retry_seconds is None else retry_seconds
        retry = None if seconds is None else max(1, math.ceil(seconds))
        self.reason = reason
        self.message = refusal.message.format(*details, retry=retry)
        super().__init__(self.message)
        self.status = status or refusal.status
        self.param = param
        self.code = code or refusal.code or _snake_case(reason)
        retry_after = () if retry is None else ((b"retry-after", b"%d" % retry),)
        self.headers = (*retry_after, *refusal.headers, *headers)
        self.retry_seconds = retry
        """What `retry-after` says; None without it."""
        self.sender: Identity | None = None
        """Of a request that is refused before its model is known; None where he is not known."""
        self.missing: int | None = None
        """Nano-units that were missing, of one for which no more money will be there."""

    def drop_frames(self) -> None:
        """Refer to no frame and no cause, so that what their locals refer to is freed."""
        self.__traceback__ = self.__cause__ = self.__context__ = None

    def body(self, failure: bytes = b"") -> bytes:
        """Return the JSON body; the line of its failures says which protocol a client speaks."""
        kind = _TYPES.get(self.status) or (_INVALID if self.status < 500 else _FAILED)
        if failure == MESSAGES_FAILURE:
            return msgspec.json.encode({"type": "error", "error": self._error(self._messages_type)})
        no_money = self.reason is RequestReason.BUDGET_EXCEEDED
        return msgspec.json.encode({"error": self._error(_NO_MONEY if no_money else kind)})

    def event(self, failure: bytes = b"") -> bytes:
        """Return the error as an event of a stream that has begun, perhaps with a line before."""
        body = self.body(failure)
        if failure == RESPONSES_FAILURE:
            # Clients of OpenAI read the field `error`, and Codex that of a response that failed.
            error = {"code": self.code, "message": self.message}
            response = {"object": "response", "status": "failed", "error": error}
            event = {"type": "response.failed", "response": response}
            body = b"%b,%b" % (msgspec.json.encode(event)[:-1], body[1:])
        return b"%bdata: %b\n\n" % (failure, body)

    def _error(self, kind: str) -> Mapping[str, str | None]:
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    @property
    def _messages_type(self) -> str:
        """Return the type of the error in the words of Anthropic."""
        if self.reason is RequestReason.BUDGET_EXCEEDED:
            return "billing_error"
        if self.status >= 500:
            return _MESSAGES_FAILED.get(self.status, "api_error")
        return _MESSAGES_TYPES.get(self.status, _INVALID)


def invalid_request(
    message: str, param: str | None = None, code: str | None = None
) -> RequestError:
    """Return the error of a request that no engine would accept."""
    return RequestError(RequestReason.INVALID_REQUEST, message, param=param, code=code)


def path_not_served(name: str, path: str, model: OfferedModel) -> RequestError:
    """Return the error of a request on a path that the engines of a model do not have."""
    kind = "generates text" if model.generates else "generates no text"
    return RequestError(
        RequestReason.PATH_NOT_SERVED,
        name[:_MAX_NAME_IN_MESSAGE],
        kind,
        path,
        " or ".join(filter(None, (", ".join(model.paths[:-1]), model.paths[-1]))),
    )


def unlisted_field(name: str) -> RequestError:
    """Return the error of a field that passes only to engines of the sender's tenant alone."""
    if name in _FIELDS_OF_PATHS:
        path = _FIELDS_OF_PATHS[name]
        return invalid_request(f"{name} is a field of {path}. Send the request there.", name)
    return invalid_request(
        f"{name}: several tenants may use this model, and this field does not pass to its engines. "
        "Remove it, or use a model that is your tenant's alone.",
        name,
    )


def too_many_texts(texts: int, most: int, most_bytes: int) -> RequestError:
    """Return the error of a request whose embeddings would not fit into one answer."""
    return invalid_request(
        f"input: the embeddings of {texts} texts take more than {counted(most_bytes, 'byte')}. "
        f"Send at most {counted(most, 'text')} in one request, or ask for fewer dimensions.",
        "input",
        code="response_too_large",
    )


def foreign_media(name: str, url: str, model: OfferedModel) -> RequestError:
    """Return the error of an image or a clip on a host that its service does not list."""
    hosts = ", ".join(model.media_domains[:_MAX_HOSTS]) or "no host"
    return invalid_request(
        f"{name}: {url[:_MAX_NAME_IN_MESSAGE]} is no `data:` URL, and InferenceService/"
        f"{model.service} fetches media from {hosts} alone. Send the bytes as a `data:` URL, or "
        "have its owner add the host to spec.engine.allowedMediaDomains.",
        name,
    )


def unknown_model(name: str, nearest: Sequence[str], offered: Sequence[str]) -> RequestError:
    """Return the error of a name that stands for no model that the sender may use."""
    if nearest:
        hint = f"did you mean {' or '.join(f'`{each}`' for each in nearest)}?"
    elif offered:
        hint = f"this key may use {', '.join(offered[:_MAX_OFFERED])}."
    else:
        hint = "this key may use no model."
    return RequestError(
        RequestReason.MODEL_NOT_FOUND, name[:_MAX_NAME_IN_MESSAGE], hint, param="model"
    )


def no_target(
    route: Ref, skipped: Mapping[str, str], errors: Iterable[RequestError]
) -> RequestError:
    """Return the error of a request that no target of its route answers.

    `skipped` has why not, by target. A client that may try again learns when: with the target that
    has room first. Where that is a matter of money, it reads what it would without a route.
    """
    # One that may answer later is better news than one that never will.
    best = min(errors, key=_repeats_last, default=None)
    if best is not None and best.reason in MONEY_REASONS:
        return best
    retry = best.retry_seconds if best is not None else None
    return RequestError(
        RequestReason.NO_TARGET,
        route,
        ", ".join(f"{target}: {reason}" for target, reason in skipped.items()),
        "" if retry is None else f"; retry in {retry} s",
        status=best.status if best is not None else None,
        retry_seconds=retry,
    )


def _repeats_last(error: RequestError) -> tuple[bool, float, bool]:
    is_too_long = error.reason is RequestReason.CONTEXT_TOO_LONG
    return error.retry_seconds is None, error.retry_seconds or 0.0, is_too_long


def context_excess(needed: int | None, limit: int | None, place: str) -> str:
    """Return by how much a prompt is too long, in Anthropic's words, where that is known."""
    if needed is None or limit is None:
        return f" for {place}"
    return f": {counted(needed, 'token')} > {limit} maximum of {place}"


def over_limit(refusal: LimitRefusal) -> RequestError:
    """Return the error of a request that a limit refuses."""
    if refusal.reason is RequestReason.CONTEXT_TOO_LONG:
        excess = context_excess(refusal.needed, refusal.limit, "prompt and answer")
        return RequestError(refusal.reason, excess)
    if refusal.exceeded is not None and refusal.exceeded.scope is ScopeKind.DEFAULT:
        limit = f"Tenant/{refusal.exceeded.name}: default limit {refusal.exceeded.phrase}"
    elif refusal.exceeded is not None:
        limit = f"{refusal.exceeded.scope}/{refusal.exceeded.name}: limit {refusal.exceeded.phrase}"
    elif refusal.reason is RequestReason.TOO_MANY_CHOICES:
        limit = f"The request: limit {counted(refusal.limit, 'output token')}"
    else:
        limit = f"The request: limit {counted(refusal.limit, 'token')} of prompt and answer"
    return RequestError(
        refusal.reason,
        limit,
        f", needed {refusal.needed}" if refusal.needed > 1 else "",
        refusal.remaining,
        retry_seconds=refusal.retry_after_seconds,
        headers=allowance_headers(refusal.requests, refusal.tokens),
    )


def over_budget(refusal: ChargeRefusal, *, needed: int, at: float) -> RequestError:
    """Return the error of a request for which too little money is left, at a Unix time."""
    limit, kept_for = refusal.scope.limit, ""
    retry_seconds = _RESERVED_SECONDS if refusal.is_reserved else refusal.end - at
    if refusal.throttled_seconds:
        kept_for = ", which are spread over the rest of it"
        retry_seconds = refusal.throttled_seconds
    elif refusal.is_reserved:
        kept_for = ", which running requests have reserved"
    elif is_outside(refusal.scope.key):
        # It lends on within seconds, where more may be lent.
        kept_for, retry_seconds = " of what the operator lent", _RESERVED_SECONDS
    error = RequestError(
        RequestReason.BUDGET_EXCEEDED,
        limit.budget,
        limit.name,
        f"{amount_text(limit.amount_at(at))} {limit.currency}",
        limit.window.lower(),
        f"{amount_text(refusal.left)} {limit.currency}",
        kept_for,
        amount_text(needed),
        retry_seconds=retry_seconds,
    )
    if not (refusal.is_reserved or refusal.throttled_seconds):
        error.missing = needed - refusal.left
    return error


def no_price(
    limit: ChargeLimit, directory: Directory, model: OfferedModel, name: str, *, at: float
) -> RequestError:
    """Return the error of a request under a limit of charges for a model without a price.

    A price that begins after `at`, in Unix seconds, is named.
    """
    coming = next_price(directory, limit.budget, model, name, at)
    if coming is not None:
        price, start = coming
        begin = datetime.fromtimestamp(math.ceil(start), UTC)
        return RequestError(
            RequestReason.PRICE_MISSING,
            limit.budget,
            f"charges (limit {limit.name}), and the price of the model "
            f"`{name[:_MAX_NAME_IN_MESSAGE]}` in PriceList/{price.price_list.partition('@')[0]} "
            f"begins at {begin:%Y-%m-%dT%H:%M:%SZ}",
            retry_seconds=start - at,
        )
    return RequestError(
        RequestReason.PRICE_MISSING,
        limit.budget,
        f"charges (limit {limit.name}), and no PriceList has a price of the model "
        f"`{name[:_MAX_NAME_IN_MESSAGE]}` for it: add an entry with models: "
        f"[{charged_name(model, name)}] and tenants: [{limit.budget}] to a PriceList with currency "
        f"{limit.currency}",
    )


def foreign_cost(limit: ChargeLimit, outside: OutsideModel) -> RequestError:
    """Return the error of a call of a provider that bills in another currency than its limit."""
    currency = outside.cost.currency
    return RequestError(
        RequestReason.PRICE_MISSING,
        limit.budget,
        f"cost in {limit.currency}, and ModelProvider/{outside.provider.name} bills in {currency}: "
        f"write the cost of its models in {limit.currency}, with spec.currency: {limit.currency}",
    )


def amount_text(nanos: int) -> str:
    """Return nano-units of a currency in units, exactly."""
    units, rest = divmod(nanos, NANO)
    return f"{units}.{rest:09}".rstrip("0").rstrip(".")


def unfunded(model: OfferedModel) -> RequestError:
    """Return the error of a request that would have to start a replica."""
    return RequestError(RequestReason.BUDGET_EXHAUSTED, model.service, model.unfunded_by)


def queue_full(model: OfferedModel, refusal: QueueRefusal) -> RequestError:
    """Return the error of a request that may not wait."""
    seconds = refusal.retry_after_seconds
    return RequestError(refusal.reason, model.service, retry_seconds=seconds)


def allowance_headers(requests: Allowance | None, tokens: Allowance | None) -> Headers:
    """Return the scarcest limit of requests and that of tokens, for answers and refusals."""
    return [
        header
        for what, allowance in ((b"requests", requests), (b"tokens", tokens))
        if allowance is not None
        for header in (
            (b"x-ratelimit-limit-" + what, b"%d" % allowance.limit),
            (b"x-ratelimit-remaining-" + what, b"%d" % allowance.remaining),
            (b"x-ratelimit-reset-" + what, b"%.3fs" % allowance.reset_seconds),
        )
    ]


def _snake_case(reason: str) -> str:
    return "".join(
        f"_{letter.lower()}" if letter.isupper() else letter for letter in reason
    ).removeprefix("_")
