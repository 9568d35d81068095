"""The port of a gateway pod for batch runners: what rows used is settled, and more is reserved."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from pydantic import ValidationError

from tessera.adapters.review_turns import ReviewsBusyError, ReviewTurns
from tessera.api.text import counted
from tessera.domain.batch.charged import ChargedBatch, charged_batch
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.domain.charge.batch_rows import BatchAnswer, BatchMessage, BatchOutcome
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.oidc import service_account_identity
from tessera.domain.limits.charges import batch_model, charge_scopes, price_for
from tessera.domain.observed.batches import Batch
from tessera.gateway.bodies.turns import Turns
from tessera.gateway.http.responses import Message, Receive, Send
from tessera.gateway.identify.reviewed_users import REVIEW_SECONDS, reviewed_user
from tessera.gateway.refusals import no_price
from tessera.gateway.store.batches import BatchStore, BatchTerms
from tessera.gateway.store.database import StoreError
from tessera.ports import ClusterError

# A full message of blocks has about half of it.
MAX_MESSAGE_BYTES = 2**20
# Messages of one batch that this gateway takes in a minute: a runner sends one a second while it
# waits for money.
MAX_MESSAGES = 60
_PLACES, _MAX_WAITING = 4, 64
# Messages that are read and settled at a time, those of one namespace, and how long one may take
# until all of it has come: the others wait outside, and hold nothing but their connections.
MAX_READ, MAX_READ_OF_NAMESPACE, READ_SECONDS = 16, 2, 10.0
# Bytes of a message that takes turns with others, so that all together have half of the time.
_SMALL_BYTES = 2**12
# How long what was read of a batch holds, and how long its runner pays for rows after its deletion.
_FRESH_SECONDS, _LAST_SECONDS = 10.0, 600.0
_TOKEN = b"authorization"
_RUNNER = re.compile(rf"system:serviceaccount:([^:]+):{BATCH_ACCOUNT}")


class MessageError(Exception):
    """Why a message is refused."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class _KnownBatch:
    """A batch that was there, and how many messages of it may come at once."""

    batch: ChargedBatch
    read_at: float
    """Monotonic seconds."""
    messages: float = MAX_MESSAGES - 1
    counted_at: float = 0.0

    def takes_message(self, now: float) -> bool:
        """Count a message, and return whether it may come."""
        filled = self.messages + (now - self.counted_at) * MAX_MESSAGES / 60
        self.messages, self.counted_at = min(MAX_MESSAGES, filled), now
        if self.messages < 1:
            return False
        self.messages -= 1
        return True


class KnownBatches:
    """The batches whose runners send messages, as the API server has them."""

    def __init__(
        self,
        read: Callable[[str, str], Awaitable[Batch | None]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `read`, which returns the batch of a namespace and a name, or raises ClusterError.

        Namespaces take turns, since a token of a runner may name any batch of its namespace.
        """
        self._read, self._monotonic = read, monotonic
        self._turns = ReviewTurns(_PLACES, _MAX_WAITING)
        self._known: dict[tuple[str, str, str], _KnownBatch] = {}
        """By namespace, name and UID."""

    async def check(self, namespace: str, message: BatchMessage) -> None:
        """Raise MessageError for a message that is not of a batch, or of one with too many."""
        key, now = (namespace, message.batch, message.uid), self._monotonic()
        known = self._known.get(key)
        if known is not None and not known.takes_message(now):
            text = f"{MAX_MESSAGES} messages a minute of a batch"
            raise MessageError(HTTPStatus.TOO_MANY_REQUESTS, text)
        is_fresh = known is not None and now - known.read_at < _FRESH_SECONDS
        if known is None or not is_fresh or message.attempt > known.batch.attempt:
            known = await self._refreshed(key)
        if known is None:
            text = f"no BatchInference {namespace}/{message.batch} with UID {message.uid} runs"
            raise MessageError(HTTPStatus.NOT_FOUND, text)
        if (fault := known.batch.fault(message)) is not None:
            raise MessageError(HTTPStatus.BAD_REQUEST, f"message: {fault}")

    async def _refreshed(self, key: tuple[str, str, str]) -> _KnownBatch | None:
        namespace, name, uid = key
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._turns.place(namespace):
                batch = await self._read(namespace, name)
        except (ClusterError, ReviewsBusyError, TimeoutError) as error:
            if key in self._known:
                return self._known[key]
            text = "batches cannot be read now"
            raise MessageError(HTTPStatus.SERVICE_UNAVAILABLE, text) from error
        now = self._monotonic()
        self._known = {
            each: known
            for each, known in self._known.items()
            if now - known.read_at < _LAST_SECONDS
        }
        charged = None if batch is None or batch.uid != uid else charged_batch(batch)
        if charged is not None:
            known = self._known.setdefault(key, _KnownBatch(charged, now, counted_at=now))
            known.batch, known.read_at = charged, now
        return self._known.get(key)


class BatchApi:
    """`POST /batches/charges` for runners, by the tokens of their ServiceAccounts.

    It is an ASGI application: its connections have the bounds of those of clients.
    """

    draining = False

    def __init__(
        self,
        store: BatchStore,
        review: Callable[[str], Awaitable[str | None]],
        directory: Callable[[], Directory | None],
        batches: KnownBatches,
    ) -> None:
        """Take `review`, which returns whose token it is, or raises ClusterError."""
        self._store, self._review, self._directory = store, review, directory
        self._batches = batches
        self._reviews = ReviewTurns(_PLACES, _MAX_WAITING)
        self._reading = ReviewTurns(MAX_READ, _MAX_WAITING, MAX_READ_OF_NAMESPACE)
        self._turns = Turns(time.thread_time, _SMALL_BYTES)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        status, kind = HTTPStatus.OK, b"application/json"
        try:
            if (scope["method"], scope["path"]) != ("POST", "/batches/charges"):
                raise MessageError(HTTPStatus.NOT_FOUND, "no path of this port")
            text = await self._answer(scope, receive)
        except MessageError as error:
            status, kind, text = error.status, b"text/plain; charset=utf-8", str(error)
        headers = [(b"content-type", kind)]
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    async def _answer(self, scope: Message, receive: Receive) -> str:
        user, namespace = await self._runner(scope)
        try:
            async with self._reading.place(namespace):
                return await self._exchange(user, namespace, await _body(receive))
        except (ReviewsBusyError, TimeoutError) as error:
            text = f"more than {MAX_READ_OF_NAMESPACE} messages of {namespace} at a time, or slow"
            raise MessageError(HTTPStatus.SERVICE_UNAVAILABLE, text) from error

    async def _exchange(self, user: str, namespace: str, body: bytes) -> str:
        try:
            message = await self._turns.take(
                len(body), lambda: BatchMessage.model_validate_json(body)
            )
        except ValidationError as error:
            first = error.errors()[0]
            fault = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise MessageError(HTTPStatus.BAD_REQUEST, f"message: {fault}") from error
        await self._batches.check(namespace, message)
        if (directory := self._directory()) is None:
            text = "the gateway does not know the budgets yet"
            raise MessageError(HTTPStatus.SERVICE_UNAVAILABLE, text)
        answer = _terms(directory, user, namespace, message)
        try:
            if isinstance(answer, BatchTerms):
                # Whether its runner waits for the answer or not.
                answer = await asyncio.shield(self._store.exchange(answer, message))
        except StoreError as error:
            raise MessageError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        return answer.model_dump_json(by_alias=True)

    async def _runner(self, scope: Message) -> tuple[str, str]:
        """Return the ServiceAccount of a runner, and its namespace."""
        fields = [value.decode("latin-1") for name, value in scope["headers"] if name == _TOKEN]
        address = scope["client"][0] if scope["client"] else ""
        try:
            user = await reviewed_user(fields, address, self._review, self._reviews)
        except ValueError as error:
            raise MessageError(HTTPStatus.UNAUTHORIZED, str(error)) from error
        except (ClusterError, ReviewsBusyError, TimeoutError) as error:
            text = "tokens cannot be reviewed now"
            raise MessageError(HTTPStatus.SERVICE_UNAVAILABLE, text) from error
        runner = _RUNNER.fullmatch(user or "")
        if user is None or runner is None:
            text = f"no token of a ServiceAccount {BATCH_ACCOUNT}"
            raise MessageError(HTTPStatus.UNAUTHORIZED, text)
        return user, runner[1]


async def _body(receive: Receive) -> bytes:
    """Return the bytes of a message; raises MessageError and TimeoutError."""
    body, is_more = bytearray(), True
    async with asyncio.timeout(READ_SECONDS):
        while is_more:
            part = await receive()
            if part["type"] == "http.disconnect":
                raise MessageError(HTTPStatus.BAD_REQUEST, "the connection ended")
            body += part["body"]
            is_more = part["more_body"]
            if len(body) > MAX_MESSAGE_BYTES:
                text = f"more than {counted(MAX_MESSAGE_BYTES, 'byte')}"
                raise MessageError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
    return bytes(body)


def _terms(
    directory: Directory, user: str, namespace: str, message: BatchMessage
) -> BatchTerms | BatchAnswer:
    """Return what a batch pays by, or the answer where nothing is charged or nothing can be."""
    unlimited = BatchAnswer(outcome=BatchOutcome.GRANTED, reserved=max(message.need, message.want))
    identity = service_account_identity(user, directory)
    if not isinstance(identity, Identity):
        return unlimited
    tenant = identity.tenant
    model = batch_model(namespace, message.batch, message.model, tenant)
    scopes = charge_scopes(directory, Identity(tenant=tenant), model, message.model)
    at = time.time()
    price = price_for(directory, tenant, model, message.model, at)
    if price is not None:
        return BatchTerms(namespace=namespace, tenant=tenant, price=price, scopes=scopes)
    if not scopes:
        return unlimited
    text = no_price(scopes[0].limit, directory, model, message.model, at=at).message
    return BatchAnswer(outcome=BatchOutcome.EXCEEDED, message=text)
