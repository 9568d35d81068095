"""Who may use the servers of the operator: the API server reviews the bearer tokens."""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from http import HTTPStatus

from tessera.adapters.kube.access_review import review_access, token_user
from tessera.adapters.kube.client import KubeCluster
from tessera.api.gateway_demand import DEMAND_AUDIENCE
from tessera.ports import ClusterError

log = logging.getLogger("tessera")

METRICS_PATH = "/metrics"
_FRESH_SECONDS = 60.0
# While the API server does not answer, a token that was allowed so long ago still is: metrics are
# needed most then.
_STALE_SECONDS = 600.0
# Unknown tokens are reviewed one at a time, and none so soon after a refusal.
_REFUSAL_PAUSE_SECONDS = 0.25
_REVIEW_SECONDS = 5.0
_MAX_TOKENS = 16


class TokenAccess:
    """Reviews bearer tokens for threads, and remembers which ones were allowed."""

    def __init__(
        self, review: Callable[[str], HTTPStatus], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Take `review`, which returns SERVICE_UNAVAILABLE when there is no answer."""
        self._review = review
        self._monotonic = monotonic
        self._reviewing = threading.Lock()
        self._allowed_at: dict[bytes, float] = {}
        """By the hash of a token; the most recent last. Written while `_reviewing` is held."""
        self._refused_at = float("-inf")

    def check(self, token: str) -> HTTPStatus:
        """Return OK, or the status that refuses the request."""
        key, now = hashlib.sha256(token.encode()).digest(), self._monotonic()
        age = now - self._allowed_at.get(key, float("-inf"))
        if age < _FRESH_SECONDS:
            return HTTPStatus.OK
        is_known = age < _STALE_SECONDS
        status = HTTPStatus.TOO_MANY_REQUESTS
        is_due = is_known or now - self._refused_at >= _REFUSAL_PAUSE_SECONDS
        if is_due and self._reviewing.acquire(blocking=False):
            try:
                status = self._review(token)
                self._remember(key, status, now)
            finally:
                self._reviewing.release()
        has_no_verdict = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        return HTTPStatus.OK if is_known and has_no_verdict else status

    def _remember(self, key: bytes, status: HTTPStatus, now: float) -> None:
        if status is HTTPStatus.OK:
            self._allowed_at.pop(key, None)
            self._allowed_at[key] = now
            if len(self._allowed_at) > _MAX_TOKENS:
                del self._allowed_at[next(iter(self._allowed_at))]
        elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._allowed_at.pop(key, None)
            self._refused_at = now


def metrics_access(cluster: KubeCluster, loop: asyncio.AbstractEventLoop) -> TokenAccess:
    """Return who may read the metrics: holders of a token with `get` on the path."""
    return _access(lambda token: review_access(cluster, token, METRICS_PATH), "metrics", loop)


def gateway_access(
    cluster: KubeCluster, loop: asyncio.AbstractEventLoop, account: str
) -> TokenAccess:
    """Return who may report demand: a ServiceAccount, by a token made for the operator.

    `account` is its user name, `system:serviceaccount:<namespace>:<name>`.
    """

    async def review(token: str) -> HTTPStatus:
        user = await token_user(cluster, token, DEMAND_AUDIENCE)
        if user is None:
            return HTTPStatus.UNAUTHORIZED
        return HTTPStatus.OK if user == account else HTTPStatus.FORBIDDEN

    return _access(review, "demand", loop)


def _access(
    ask: Callable[[str], Coroutine[None, None, HTTPStatus]],
    subject: str,
    loop: asyncio.AbstractEventLoop,
) -> TokenAccess:
    """Return the access that asks the API server, by the client that lives in the loop."""
    last_problem = ""

    def review(token: str) -> HTTPStatus:
        nonlocal last_problem
        answer = asyncio.run_coroutine_threadsafe(ask(token), loop)
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

    return TokenAccess(review)
