"""The port of a gateway pod for batch runners: what rows used is settled, and more is reserved."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import ValidationError

from tessera.adapters.review_turns import ReviewsBusyError, ReviewTurns
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.domain.charges.batch_rows import BatchAnswer, BatchMessage, BatchOutcome
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.oidc import service_account_identity
from tessera.domain.limits.charges import batch_model, charge_scopes, price_for
from tessera.gateway.identify.reviewed_users import reviewed_user
from tessera.gateway.refusals import no_price
from tessera.gateway.store.batches import BatchStore, BatchTerms
from tessera.gateway.store.database import StoreError
from tessera.ports import ClusterError

# A full message of blocks has about half of it.
MAX_MESSAGE_BYTES = 2**20
_PLACES, _MAX_WAITING = 4, 64
_RUNNER = re.compile(rf"system:serviceaccount:([^:]+):{BATCH_ACCOUNT}")


class BatchApi:
    """`POST /batches/charges` for runners, by the tokens of their ServiceAccounts."""

    def __init__(
        self,
        store: BatchStore,
        review: Callable[[str], Awaitable[str | None]],
        directory: Callable[[], Directory | None],
    ) -> None:
        """Take `review`, which returns whose token it is, or raises ClusterError."""
        self._store, self._review, self._directory = store, review, directory
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
