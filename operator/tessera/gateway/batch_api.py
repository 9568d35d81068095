"""The port of a gateway pod for batch runners: what rows used is settled, and more is reserved."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import ValidationError

from tessera.adapters.review_turns import ReviewsBusyError, ReviewTurns
from tessera.domain.batch.charged import ChargedBatch, charged_batch
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.domain.charges.batch_rows import BatchAnswer, BatchMessage, BatchOutcome
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.oidc import service_account_identity
from tessera.domain.limits.charges import batch_model, charge_scopes, price_for
from tessera.domain.observed.batches import Batch
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
# How long what was read of a batch holds, and how long its runner pays for rows after its deletion.
_FRESH_SECONDS, _LAST_SECONDS = 10.0, 600.0
_RUNNER = re.compile(rf"system:serviceaccount:([^:]+):{BATCH_ACCOUNT}")


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
        """Raise HTTPError for a message that is not of a batch, or of one with too many."""
        key, now = (namespace, message.batch, message.uid), self._monotonic()
        known = self._known.get(key)
        if known is not None and not known.takes_message(now):
            raise web.HTTPTooManyRequests(text=f"{MAX_MESSAGES} messages a minute of a batch")
        is_fresh = known is not None and now - known.read_at < _FRESH_SECONDS
        if known is None or not is_fresh or message.attempt > known.batch.attempt:
            known = await self._refreshed(key)
        if known is None:
            text = f"no BatchInference {namespace}/{message.batch} with UID {message.uid} runs"
            raise web.HTTPNotFound(text=text)
        if (fault := known.batch.fault(message)) is not None:
            raise web.HTTPBadRequest(text=f"message: {fault}")

    async def _refreshed(self, key: tuple[str, str, str]) -> _KnownBatch | None:
        namespace, name, uid = key
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._turns.place(namespace):
                batch = await self._read(namespace, name)
        except (ClusterError, ReviewsBusyError, TimeoutError) as error:
            if key in self._known:
                return self._known[key]
            raise web.HTTPServiceUnavailable(text="batches cannot be read now") from error
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
    """`POST /batches/charges` for runners, by the tokens of their ServiceAccounts."""

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
        self._turns = ReviewTurns(_PLACES, _MAX_WAITING)

    def application(self) -> web.Application:
        """Return the application to serve."""
        app = web.Application(client_max_size=MAX_MESSAGE_BYTES)
        app.router.add_post("/batches/charges", self._exchange)
        return app

    async def _exchange(self, request: web.Request) -> web.Response:
        user, namespace = await self._runner(request)
        try:
            message = BatchMessage.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors()[0]
            fault = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise web.HTTPBadRequest(text=f"message: {fault}") from error
        await self._batches.check(namespace, message)
        if (directory := self._directory()) is None:
            raise web.HTTPServiceUnavailable(text="the gateway does not know the budgets yet")
        answer = _terms(directory, user, namespace, message)
        try:
            if isinstance(answer, BatchTerms):
                # Whether its runner waits for the answer or not.
                answer = await asyncio.shield(self._store.exchange(answer, message))
        except StoreError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        return web.json_response(text=answer.model_dump_json(by_alias=True))

    async def _runner(self, request: web.Request) -> tuple[str, str]:
        """Return the ServiceAccount of a runner, and its namespace."""
        try:
            user = await reviewed_user(request, self._review, self._turns)
        except ValueError as error:
            raise web.HTTPUnauthorized(text=str(error)) from error
        except (ClusterError, ReviewsBusyError, TimeoutError) as error:
            text = "tokens cannot be reviewed now"
            raise web.HTTPServiceUnavailable(text=text) from error
        runner = _RUNNER.fullmatch(user or "")
        if user is None or runner is None:
            raise web.HTTPUnauthorized(text=f"no token of a ServiceAccount {BATCH_ACCOUNT}")
        return user, runner[1]


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
