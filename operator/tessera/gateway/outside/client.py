"""HTTPS to outside providers: how long and how much they may answer, and which are left alone."""

import asyncio
import io
import re
import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import msgspec
from typing_extensions import override

from tessera.adapters.clock import CLOCK, Clock
from tessera.api.text import counted
from tessera.domain.gateway.directory import OfferedProvider
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.routes.ejection import PATIENCE_SECONDS, Ejection, ejected_seconds
from tessera.domain.routes.fallback import fallback_kind
from tessera.domain.routes.shares import Shares
from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tessera.gateway.outside.addresses import AddressRefusedError, AddressRules
from tessera.gateway.outside.answers import is_filter_error
from tessera.gateway.outside.keys import ProviderKeys
from tessera.gateway.outside.usage import Meters
from tessera.gateway.refusals import RequestError

JSON, STREAM = "application/json", "text/event-stream"
# What a call ends with that its sender gave up.
CANCELLED = "Cancelled"
_KEEP_ALIVE_SECONDS = 15.0
_MAX_RETRY_SECONDS = 60.0
_MAX_ERROR_BYTES, _ERROR_SECONDS = 2**16, 5.0
_RETRY_AFTER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_KEY_STATUSES = frozenset({401, 402, 403})
# At these no work was done; the last one is Anthropic's for too many requests of all customers.
_REPEATABLE_STATUSES = frozenset({429, 503, 529})
_REFUSED_ADDRESS = "its address is not public, nor in gateway.providers.allowedRanges"
# Words of errors that are passed on; whatever else they say may have prompts and keys.
_CODES = {
    *("context_length_exceeded", "insufficient_quota", "invalid_request_error", "model_not_found"),
    *("not_found_error", "request_too_large", "unsupported_parameter", "unsupported_value"),
}


class OutsideError(RequestError):
    """A provider gave no answer, or not all of it. Its text has no word of the provider's."""

    def __init__(
        self,
        reason: RequestReason,
        *details: object,
        retry_after_seconds: float | None = None,
        may_repeat: bool = False,
        was_sent: bool = True,
        is_refusal: bool = False,
    ) -> None:
        super().__init__(reason, *details, retry_seconds=retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds
        self.may_repeat = may_repeat
        """It did no work, and may do it a moment later: it may be asked once more."""
        self.was_sent = was_sent
        """It may have got the request."""
        self.is_refusal = is_refusal
        """It said that it gives no answer, which costs nothing."""


@dataclass(slots=True)
class ProviderState:
    """The calls of one provider."""

    shares: Shares = field(default_factory=Shares)
    ejections: dict[str, Ejection] = field(default_factory=lambda: defaultdict(Ejection))
    """By the tenant whose calls failed or were refused."""
    ended: Counter[str] = field(default_factory=Counter)
    """By the reason of their error, which is empty for an answer."""
    meters: Meters = field(default_factory=Meters)


class OutsideAnswer:
    """The answer of a provider, which has begun."""

    def __init__(
        self, provider: OfferedProvider, response: aiohttp.ClientResponse, ends_at: float
    ) -> None:
        self.is_stream = response.content_type == STREAM
        """It is a stream of events; else one value of JSON."""
        self._provider, self._content, self._ends_at = provider.name, response.content, ends_at
        self._seconds = provider.spec.timeouts.first_byte.total_seconds()
        self._gap_seconds = provider.spec.timeouts.gap.total_seconds()

    async def whole(self, limit: int = MAX_RESPONSE_BYTES) -> bytes:
        """Return all of it; raises OutsideError."""
        return b"".join([part async for part in self.parts(limit)])

    async def parts(self, limit: int = MAX_RESPONSE_BYTES) -> AsyncGenerator[bytes]:
        """Yield what comes, and hold the provider back while that is not taken.

        Raises OutsideError, also where there are more bytes than the limit.
        """
        monotonic, size = asyncio.get_running_loop().time, 0
        while True:
            try:
                async with asyncio.timeout_at(min(monotonic() + self._seconds, self._ends_at)):
                    part = await self._content.readany()
            except TimeoutError:
                is_late = monotonic() >= self._ends_at
                detail = "its answer had no end" if is_late else f"nothing for {self._seconds:g} s"
                raise self._error(RequestReason.PROVIDER_TIMEOUT, detail) from None
            except (aiohttp.ClientError, OSError):
                detail = "it broke off its answer"
                raise self._error(RequestReason.PROVIDER_FAILED, detail) from None
            if not part:
                return
            size += len(part)
            if size > limit:
                detail = f"its answer has more than {counted(limit, 'byte')}"
                raise self._error(RequestReason.PROVIDER_FAILED, detail)
            self._seconds = self._gap_seconds
            yield part
            # Nothing may come for long.
            del part

    def _error(self, reason: RequestReason, detail: str) -> OutsideError:
        return OutsideError(reason, self._provider, detail)


@dataclass(slots=True)
class _Call:
    """A request until its answer begins."""

    deadline: asyncio.Timeout
    first_byte_seconds: float
    ends_at: float
    on_sent: Callable[[], None]
    was_sent: bool = False

    def sent(self) -> None:
        """Wait for the first byte from now on, rather than for a connection."""
        self.was_sent = True
        self.on_sent()
        now = asyncio.get_running_loop().time()
        self.deadline.reschedule(min(now + self.first_byte_seconds, self.ends_at))


class OutsideClient:
    """Asks providers: each within its places, and none that fails again and again."""

    def __init__(
        self,
        keys: ProviderKeys | None = None,
        allowed_ranges: Collection[IPv4Network | IPv6Network] = (),
        clock: Clock = CLOCK,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Take ranges of addresses that providers may have though they are not public."""
        self._keys, self._rules = keys or ProviderKeys(), AddressRules(allowed_ranges)
        self._tls, self._monotonic = tls, clock.monotonic
        self._session: aiohttp.ClientSession | None = None
        self.states: dict[str, ProviderState] = {}
        """Of each provider that was asked."""
        self.gateways = 1
        """Those that share the places of providers."""

    def ejected_seconds(self, provider: str, tenant: str | None = None) -> float:
        """Return for how long a provider is asked nothing for a tenant, or for any; 0 if it is."""
        state = self.states.get(provider)
        if state is None:
            return 0.0
        return ejected_seconds(state.ejections, tenant, self._monotonic())

    def check(self, provider: str, tenant: str) -> None:
        """Raise OutsideError while a provider is asked nothing for a tenant."""
        if seconds := self.ejected_seconds(provider, tenant):
            raise self._busy(provider, seconds)

    def is_wanted(self, provider: str, tenant: str) -> bool:
        """Return whether others than a tenant found no place at a provider just now."""
        state = self.states.get(provider)
        return state is not None and state.shares.is_wanted(tenant, self._monotonic())

    def retain(self, providers: Collection[str]) -> None:
        """Forget all providers but these."""
        for name in self.states.keys() - set(providers):
            del self.states[name]

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def ask(
        self,
        provider: OfferedProvider,
        path: str,
        body: bytes,
        *,
        tenant: str,
        on_sent: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[OutsideAnswer]:
        """Send a request, and give its answer once that began; it ends with the block.

        From `on_sent` on the provider may have it. Raises OutsideError; a RequestError of the block
        counts as the provider's, by its reason.
        """
        with self._place(provider, tenant):
            seconds = provider.spec.timeouts.total.total_seconds()
            ends_at = asyncio.get_running_loop().time() + seconds
            response = await self._post(provider, path, body, ends_at, on_sent)
            # Its stream may last for long.
            del body
            try:
                answer = OutsideAnswer(provider, response, ends_at)
                if response.status != HTTPStatus.OK:
                    raise await _status_error(provider.name, response, answer)
                encoding = response.headers.get("Content-Encoding", "identity")
                if response.content_type not in (JSON, STREAM) or encoding != "identity":
                    detail = "its answer is neither JSON nor a stream of events"
                    raise OutsideError(RequestReason.PROVIDER_FAILED, provider.name, detail)
                yield answer
            finally:
                # A connection that is only released would go on with an answer that is left.
                response.close()

    @contextmanager
    def _place(self, provider: OfferedProvider, tenant: str) -> Iterator[None]:
        """Take a place at a provider, and learn from what becomes of the call."""
        self.check(provider.name, tenant)
        state = self.states.setdefault(provider.name, ProviderState())
        now = self._monotonic()
        places = max(1, provider.spec.max_concurrent_requests // self.gateways)
        if not state.shares.take(tenant, places, provider.weights, now):
            raise self._busy(provider.name)
        ejections = state.ejections
        ejections[tenant] = ejections[tenant].asked(now)
        outcome: str = CANCELLED
        try:
            yield
            outcome = ""
            ejections[tenant] = ejections[tenant].answered(self._monotonic())
        except RequestError as error:
            outcome = error.reason
            ejections[tenant] = _after_error(ejections[tenant], error, self._monotonic())
            raise
        finally:
            state.shares.give_back(tenant)
            state.ended[outcome] += 1

    def _busy(self, provider: str, seconds: float | None = None) -> OutsideError:
        """Return the error of a call that is not made, and count it."""
        reason = RequestReason.PROVIDER_BUSY
        self.states[provider].ended[reason] += 1
        return OutsideError(reason, provider, retry_after_seconds=seconds, was_sent=False)

    async def _post(
        self,
        provider: OfferedProvider,
        path: str,
        body: bytes,
        ends_at: float,
        on_sent: Callable[[], None],
    ) -> aiohttp.ClientResponse:
        """Return a response whose head came; raises OutsideError."""
        key = self._keys.of(provider)
        if key is None:
            reason, detail = RequestReason.PROVIDER_KEY_REFUSED, "its Secret has none"
            raise OutsideError(reason, provider.name, detail, was_sent=False)
        host = urlsplit(provider.spec.base_url).hostname or ""
        if provider.spec.proxy_url is not None and not self._rules.allow_host(host):
            reason = RequestReason.PROVIDER_UNREACHABLE
            raise OutsideError(reason, provider.name, _REFUSED_ADDRESS, was_sent=False)
        if self._session is None:
            self._session = _open_session(self._rules, self._tls)
        times = provider.spec.timeouts
        now = asyncio.get_running_loop().time()
        deadline = asyncio.timeout_at(min(now + times.connect.total_seconds(), ends_at))
        call = _Call(deadline, times.first_byte.total_seconds(), ends_at, on_sent)
        try:
            async with deadline:
                return await self._session.post(
                    provider.spec.base_url + path.removeprefix("/v1"),
                    # It is sent in parts: the loop waits for no large body.
                    data=io.BytesIO(body),
                    headers=_headers(provider, path, key),
                    allow_redirects=False,
                    proxy=provider.spec.proxy_url,
                    trace_request_ctx=call,
                )
        # Errors of the library know the headers of the request, and so the key.
        except TimeoutError:
            reason, detail = RequestReason.PROVIDER_UNREACHABLE, "no connection in time"
            if call.was_sent:
                reason, detail = RequestReason.PROVIDER_TIMEOUT, "its answer did not begin"
            raise OutsideError(reason, provider.name, detail, was_sent=call.was_sent) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _connection_error(provider.name, error, was_sent=call.was_sent) from None


class _Connector(aiohttp.TCPConnector):
    """Connections, of which one that got bytes after its answer carries no other request."""

    @override
    async def _get(
        self, key: aiohttp.client_reqrep.ConnectionKey, traces: list[aiohttp.tracing.Trace]
    ) -> aiohttp.connector.Connection | None:
        # The library looks for such bytes when a connection becomes free, and not once it was.
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                break
            connection.close()
        return connection


def _open_session(rules: AddressRules, tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Return connections that carry nothing from one request to the next, and read no variables."""
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_note_sent)
    return aiohttp.ClientSession(
        connector=_Connector(
            ssl=tls or ssl.create_default_context(),
            socket_factory=rules.open_socket,
            # The places of providers are the limit.
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        trust_env=False,
        trace_configs=[trace],
    )


async def _note_sent(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceRequestHeadersSentParams
) -> None:
    context.trace_request_ctx.sent()


def _headers(provider: OfferedProvider, path: str, key: str) -> Mapping[str, str]:
    name = provider.spec.key_header
    headers = {
        "Content-Type": JSON,
        "Accept": f"{JSON}, {STREAM}",
        "Accept-Encoding": "identity",
        "User-Agent": "tessera",
        name: f"Bearer {key}" if name == "Authorization" else key,
    }
    if path.startswith("/v1/messages"):
        headers["anthropic-version"] = "2023-06-01"
    return headers


def _after_error(ejection: Ejection, error: RequestError, now: float) -> Ejection:
    """Return what follows an error; a provider that refuses a request works."""
    if error.reason is RequestReason.PROVIDER_BUSY:
        return ejection.refused(now, error.retry_seconds or 0)
    has_failed = fallback_kind(error.reason) in ("ServerError", "Timeout")
    return ejection.failed(now) if has_failed else ejection.answered(now)


async def _status_error(
    provider: str, response: aiohttp.ClientResponse, answer: OutsideAnswer
) -> OutsideError:
    """Return the error of a response that is no success."""
    status, seconds = response.status, _retry_seconds(response)
    detail = f"status {status}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        reason = RequestReason.PROVIDER_BUSY
    elif not 400 <= status < 500:
        reason = RequestReason.PROVIDER_FAILED
    elif is_filter_error(body := await _error_body(answer)):
        # With a status of 403 too, which is no fault of the key then.
        reason = RequestReason.CONTENT_FILTERED
    elif status in _KEY_STATUSES:
        reason = RequestReason.PROVIDER_KEY_REFUSED
    else:
        reason = RequestReason.PROVIDER_REFUSED
        detail += _known_code(body)
    return OutsideError(
        reason,
        provider,
        detail,
        retry_after_seconds=seconds or None,
        may_repeat=status in _REPEATABLE_STATUSES and seconds <= PATIENCE_SECONDS,
        is_refusal=True,
    )


def _retry_seconds(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _MAX_RETRY_SECONDS) if _RETRY_AFTER.fullmatch(text) else 0.0


class _RefusalDetail(msgspec.Struct, gc=False):
    code: str | int | None = None
    type: str | None = None


class _RefusalBody(msgspec.Struct, gc=False):
    error: _RefusalDetail


_error_decoder = msgspec.json.Decoder(_RefusalBody)


async def _error_body(answer: OutsideAnswer) -> bytes:
    try:
        async with asyncio.timeout(_ERROR_SECONDS):
            return await answer.whole(_MAX_ERROR_BYTES)
    except (OutsideError, TimeoutError):
        return b""


def _known_code(body: bytes) -> str:
    """Return the word of an error as the end of a list, if it is one that is known."""
    try:
        error = _error_decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return next((f", {word}" for word in (error.code, error.type) if word in _CODES), "")


def _connection_error(provider: str, error: Exception, *, was_sent: bool) -> OutsideError:
    """Return the error of a connection that was refused or lost, in words without addresses."""
    if was_sent:
        is_http = not isinstance(error, aiohttp.ClientResponseError)
        detail = "it closed the connection" if is_http else "its answer is no HTTP"
        return OutsideError(RequestReason.PROVIDER_FAILED, provider, detail)
    cause = getattr(error, "os_error", error)
    match error:
        case aiohttp.ClientConnectorCertificateError():
            words = getattr(error.certificate_error, "verify_message", "")
            detail = f"its certificate is not accepted: {words}"
        case aiohttp.ClientHttpProxyError():
            detail = f"its proxy answered with status {error.status}"
        case aiohttp.ClientConnectorDNSError():
            detail = "its name is not known"
        case _ if isinstance(cause, AddressRefusedError):
            detail = _REFUSED_ADDRESS
        case _:
            detail = type(cause).__name__
    is_refused = isinstance(cause, ConnectionRefusedError)
    reason = RequestReason.PROVIDER_UNREACHABLE
    return OutsideError(reason, provider, detail, may_repeat=is_refused, was_sent=False)
