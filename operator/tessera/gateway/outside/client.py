"""HTTPS to outside providers: how long and how much they may answer, and which are left alone."""

import asyncio
import io
import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
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
from tessera.gateway.outside.errors import (
    MAX_ERROR_BYTES,
    ErrorKind,
    ProviderError,
    header_retry_seconds,
    read_error,
)
from tessera.gateway.outside.keys import ProviderKeys
from tessera.gateway.outside.usage import Meters
from tessera.gateway.refusals import RequestError, context_excess

JSON, STREAM = "application/json", "text/event-stream"
# What a call ends with that its sender gave up.
CANCELLED = "Cancelled"
_KEEP_ALIVE_SECONDS = 15.0
_ERROR_SECONDS = 5.0
_NO_AUTHORITIES = (
    "the field spec.secret.caKey of its Secret has no PEM certificates that can be read, within "
    "256 KiB"
)
_REFUSED_ADDRESS = "its address is not public, nor in gateway.providers.allowedRanges"
_REASONS: Mapping[ErrorKind, RequestReason] = {
    ErrorKind.CONTEXT: RequestReason.CONTEXT_TOO_LONG,
    ErrorKind.FILTER: RequestReason.CONTENT_FILTERED,
    ErrorKind.NO_CREDIT: RequestReason.PROVIDER_KEY_REFUSED,
    ErrorKind.BAD_KEY: RequestReason.PROVIDER_KEY_REFUSED,
    ErrorKind.KEY_PERMISSION: RequestReason.PROVIDER_KEY_REFUSED,
    ErrorKind.MODEL: RequestReason.PROVIDER_MODEL_NOT_FOUND,
    ErrorKind.OVERLOADED: RequestReason.PROVIDER_BUSY,
    ErrorKind.RATE: RequestReason.PROVIDER_BUSY,
    ErrorKind.REFUSED: RequestReason.PROVIDER_REFUSED,
    ErrorKind.FAILED: RequestReason.PROVIDER_FAILED,
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
        parameters: Sequence[str] = (),
    ) -> None:
        super().__init__(reason, *details, retry_seconds=retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds
        self.may_repeat = may_repeat
        """It did no work, and may do it a moment later: it may be asked once more."""
        self.was_sent = was_sent
        """It may have got the request."""
        self.is_refusal = is_refusal
        """It said that it gives no answer, which costs nothing."""
        self.is_forbidden = False
        """Whether it refuses its key or what this tenant asked for is not known."""
        self.parameters = parameters
        """What may be names of fields that it does not take, for the eyes of who sent them."""

    def name_parameter(self, name: str | None) -> None:
        """Tell the client which field of its own the provider does not take as it is, if any."""
        if name is not None:
            self.param = name
            self.message = f"{self.message.removesuffix('.')}, which is about `{name}`."


@dataclass(slots=True)
class ProviderState:
    """The calls of one provider."""

    shares: Shares = field(default_factory=Shares)
    ejections: dict[str, Ejection] = field(default_factory=lambda: defaultdict(Ejection))
    """By the tenant whose calls failed or were refused."""
    key: Ejection = field(default_factory=Ejection)
    """What came of the last calls by its key, which is that of all tenants."""
    ended: Counter[str] = field(default_factory=Counter)
    """By the reason of their error, which is empty for an answer."""
    meters: Meters = field(default_factory=Meters)

    def ejected_seconds(self, tenant: str | None, now: float) -> float:
        """Return for how long it is asked nothing for a tenant, or for any; 0 if it is."""
        return max(self.key.seconds(now), ejected_seconds(self.ejections, tenant, now))

    def asked(self, tenant: str, now: float) -> None:
        """Note a call."""
        self.ejections[tenant] = self.ejections[tenant].asked(now)
        self.key = self.key.asked(now)

    def answered(self, tenant: str, now: float) -> None:
        """Note an answer, or a refusal of what was asked, at which it works."""
        self.ejections[tenant] = self.ejections[tenant].answered(now)
        self.key = self.key.answered(now)

    def finished(self, tenant: str, asked_at: float) -> None:
        """Note that a call has ended in any way: others no longer wait for it."""
        self.ejections[tenant] = self.ejections[tenant].finished(asked_at)
        self.key = self.key.finished(asked_at)

    def failed(self, tenant: str, error: RequestError, now: float) -> None:
        """Note an error."""
        ejection = self.ejections[tenant]
        if isinstance(error, OutsideError) and error.is_forbidden:
            self.ejections[tenant] = ejection.failed(now)
        elif error.reason is RequestReason.PROVIDER_KEY_REFUSED:
            self.key = self.key.failed(now)
        elif error.reason is RequestReason.PROVIDER_BUSY:
            self.ejections[tenant] = ejection.refused(now, error.retry_seconds or 0)
        elif fallback_kind(error.reason) in ("ServerError", "Timeout"):
            self.ejections[tenant] = ejection.failed(now)
        else:
            self.answered(tenant, now)


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
        self._tls, self._monotonic, self._utc = tls, clock.monotonic, clock.utc
        self._session: aiohttp.ClientSession | None = None
        self.states: dict[str, ProviderState] = {}
        """Of each provider that was asked."""
        self.gateways = 1
        """Those that share the places of providers."""

    def ejected_seconds(self, provider: str, tenant: str | None = None) -> float:
        """Return for how long a provider is asked nothing for a tenant, or for any; 0 if it is."""
        state = self.states.get(provider)
        return 0.0 if state is None else state.ejected_seconds(tenant, self._monotonic())

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
                    raise await _status_error(provider.name, response, answer, self._utc())
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
        state.asked(tenant, now)
        outcome: str = CANCELLED
        try:
            yield
            outcome = ""
            state.answered(tenant, self._monotonic())
        except RequestError as error:
            outcome = error.reason
            state.failed(tenant, error, self._monotonic())
            raise
        finally:
            state.finished(tenant, now)
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
        if (tls := self._keys.tls(provider)) is None:
            reason, detail = RequestReason.PROVIDER_UNREACHABLE, _NO_AUTHORITIES
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
                    # Connections are used again by those alone who trust the same authorities.
                    ssl=tls,
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


async def _status_error(
    provider: str, response: aiohttp.ClientResponse, answer: OutsideAnswer, now: datetime
) -> OutsideError:
    """Return the error of a response that is no success."""
    read = read_error(await _error_body(answer), response.status)
    error = reported_error(provider, read, header_retry_seconds(response.headers, now))
    error.is_refusal = True
    return error


def reported_error(provider: str, error: ProviderError, retry_seconds: float = 0.0) -> OutsideError:
    """Return the error of a call that a provider answered with one; it has no word of its text.

    `retry_seconds` is what the head of the response asks for.
    """
    detail = f"status {error.status}" if error.status else "it reported an error"
    if error.kind is ErrorKind.NO_CREDIT:
        detail += ", no credit is left"
    reason, details = _REASONS[error.kind], [provider, detail]
    if reason is RequestReason.CONTEXT_TOO_LONG:
        details = [context_excess(error.needed, error.limit, f"ModelProvider/{provider}")]
    seconds = retry_seconds or error.retry_seconds
    is_away = error.kind is ErrorKind.FAILED and error.status == HTTPStatus.SERVICE_UNAVAILABLE
    outside_error = OutsideError(
        reason,
        *details,
        retry_after_seconds=seconds or None,
        # It did no work at these.
        may_repeat=(is_away or reason is RequestReason.PROVIDER_BUSY)
        and seconds <= PATIENCE_SECONDS,
        # What failed may have been worked on.
        is_refusal=error.kind is not ErrorKind.FAILED,
        parameters=error.parameters if error.kind is ErrorKind.REFUSED else (),
    )
    # Some have no more than a status of 403 for a key that they do not take.
    outside_error.is_forbidden = error.kind is ErrorKind.KEY_PERMISSION or (
        error.kind is ErrorKind.REFUSED and error.status == HTTPStatus.FORBIDDEN
    )
    return outside_error


async def _error_body(answer: OutsideAnswer) -> bytes:
    try:
        async with asyncio.timeout(_ERROR_SECONDS):
            return await answer.whole(MAX_ERROR_BYTES)
    except (OutsideError, TimeoutError):
        return b""


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
