"""Who may use the servers of the operator: the API server reviews the bearer tokens."""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from http import HTTPStatus

from tessera.adapters.kube.access_review import review_access, token_user
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.oidc_tokens import unverified_subject
from tessera.adapters.review_turns import ReviewsBusyError, ReviewTurns
from tessera.api.gateway_demand import DEMAND_AUDIENCE
from tessera.ports import ClusterError

log = logging.getLogger("tessera")

METRICS_PATH = "/metrics"
_FRESH_SECONDS = 60.0
# While the API server does not answer, a token that was allowed so long ago still is: metrics are
# needed most then.
_STALE_SECONDS = 600.0
# Of an address, after a token of it was refused; of so many addresses it is remembered.
_REFUSAL_PAUSE_SECONDS, _MAX_REFUSED = 0.25, 1024
_REVIEW_SECONDS = 5.0
_MAX_TOKENS = 16
# Reviews of unknown tokens at a time, of which an address has one, and those of an address that
# wait; known ones have places of their own.
UNKNOWN_PLACES, MAX_WAITING_READERS = 4, 4
_KNOWN = ""
_NO_VERDICT = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class TokenAccess:
    """Reviews bearer tokens for threads, and remembers which ones were allowed.

    Tokens that are unknown take turns by their addresses, so none waits for the many of another.
    """

    def __init__(
        self,
        review: Callable[[str, str], HTTPStatus],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        refused: Callable[[HTTPStatus], None] = lambda _: None,
    ) -> None:
        """Take `review`, which gets a token and its address, or no address of a known token.

        It returns SERVICE_UNAVAILABLE when there is no answer. `refused` counts refusals.
        """
        self._review, self._monotonic, self._refused = review, monotonic, refused
        self._lock = threading.Lock()
        self._allowed_at: dict[bytes, float] = {}
        """By the hash of a token; the most recent last."""
        self._renewing = set[bytes]()
        self._refused_at: dict[str, float] = {}
        """By address; the most recent last."""

    def check(self, token: str, address: str) -> HTTPStatus:
        """Return OK, or the status that refuses the request from an address."""
        status = self._check(token, address)
        if status is not HTTPStatus.OK:
            self._refused(status)
        return status

    def _check(self, token: str, address: str) -> HTTPStatus:
        key, now = hashlib.sha256(token.encode()).digest(), self._monotonic()
        with self._lock:
            age = now - self._allowed_at.get(key, float("-inf"))
            is_known = age < _STALE_SECONDS
            if age < _FRESH_SECONDS or (is_known and key in self._renewing):
                return HTTPStatus.OK
            if is_known:
                self._renewing.add(key)
            elif now - self._refused_at.get(address, float("-inf")) < _REFUSAL_PAUSE_SECONDS:
                return HTTPStatus.TOO_MANY_REQUESTS
        status = HTTPStatus.SERVICE_UNAVAILABLE
        try:
            status = self._review(token, _KNOWN if is_known else address)
        finally:
            with self._lock:
                self._renewing.discard(key)
                self._remember(key, address, status, now)
        return HTTPStatus.OK if is_known and status in _NO_VERDICT else status

    def _remember(self, key: bytes, address: str, status: HTTPStatus, now: float) -> None:
        if status is HTTPStatus.OK:
            self._allowed_at.pop(key, None)
            self._allowed_at[key] = now
            if len(self._allowed_at) > _MAX_TOKENS:
                del self._allowed_at[next(iter(self._allowed_at))]
        elif status not in _NO_VERDICT:
            self._allowed_at.pop(key, None)
            self._refused_at.pop(address, None)
            self._refused_at[address] = now
            if len(self._refused_at) > _MAX_REFUSED:
                del self._refused_at[next(iter(self._refused_at))]


def metrics_access(
    cluster: KubeCluster, loop: asyncio.AbstractEventLoop, refused: Callable[[HTTPStatus], None]
) -> TokenAccess:
    """Return who may read the metrics: holders of a token with `get` on the path."""

    async def review(token: str) -> HTTPStatus:
        return await review_access(cluster, token, METRICS_PATH)

    return _access(review, "metrics", loop, refused)


def gateway_access(
    cluster: KubeCluster,
    loop: asyncio.AbstractEventLoop,
    account: str,
    refused: Callable[[HTTPStatus], None],
) -> TokenAccess:
    """Return who may report demand: a ServiceAccount, by a token made for the operator.

    `account` is its user name, `system:serviceaccount:<namespace>:<name>`. A token that does not
    even claim to be of it has no review, so that none delays those that do.
    """

    async def review(token: str) -> HTTPStatus:
        claimed = unverified_subject(token)
        if claimed != account:
            return HTTPStatus.UNAUTHORIZED if claimed is None else HTTPStatus.FORBIDDEN
        user = await token_user(cluster, token, DEMAND_AUDIENCE)
        if user is None:
            return HTTPStatus.UNAUTHORIZED
        return HTTPStatus.OK if user == account else HTTPStatus.FORBIDDEN

    return _access(review, "demand", loop, refused)


def _access(
    ask: Callable[[str], Awaitable[HTTPStatus]],
    subject: str,
    loop: asyncio.AbstractEventLoop,
    refused: Callable[[HTTPStatus], None],
) -> TokenAccess:
    """Return the access that asks the API server, by the client that lives in the loop."""
    last_problem = ""
    known = ReviewTurns(UNKNOWN_PLACES, _MAX_TOKENS)
    unknown = ReviewTurns(UNKNOWN_PLACES, MAX_WAITING_READERS, most_at_once=1)

    async def ask_in_turn(token: str, address: str) -> HTTPStatus:
        turns = known if address == _KNOWN else unknown
        try:
            async with turns.place(address):
                return await ask(token)
        except ReviewsBusyError:
            return HTTPStatus.TOO_MANY_REQUESTS

    def review(token: str, address: str) -> HTTPStatus:
        nonlocal last_problem
        answer = asyncio.run_coroutine_threadsafe(ask_in_turn(token, address), loop)
        try:
            status = answer.result(_REVIEW_SECONDS)
        except (ClusterError, TimeoutError, CancelledError) as error:
            answer.cancel()
            problem = str(error) or f"no review within {_REVIEW_SECONDS:g} s"
            if problem != last_problem:
                log.warning("%s: tokens cannot be reviewed: %s", subject, problem)
            last_problem = problem
            return HTTPStatus.SERVICE_UNAVAILABLE
        last_problem = ""
        return status

    return TokenAccess(review, refused=refused)
