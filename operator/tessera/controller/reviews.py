"""The port of admission, at which any pod may ask: the API server comes without credentials."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import kopf
from pydantic_core import from_json

from tessera.controller.certificates import CertificateRotator
from tessera.controller.https_server import Endpoint, HttpsServer

log = logging.getLogger("tessera")

# An object has at most 1.5 MiB in etcd; the largest of tests have a tenth.
MAX_REVIEW_BYTES = 2**20
# Reviews that are read at a time: an installation of many objects sends some tens.
MAX_REVIEW_CONNECTIONS = 64
# The API server waits for 30 s at most.
_MAX_SECONDS = 30.0


class NoMemos:
    """Takes the place of kopf's memos of objects, which no handler reads.

    Kopf has a memo for each UID for ever, and any pod may name as many UIDs as it likes.
    """

    async def recall_memo(self, _body: Any, *, memobase: Any = None, **_: Any) -> Any:
        """Return the memo that all objects share."""
        return memobase


class AdmissionServer:
    """Has kopf's handlers judge reviews, once there is a certificate."""

    def __init__(self, rotator: CertificateRotator, host: str, port: int) -> None:
        self._rotator = rotator
        self._address = host, port

    async def __call__(self, fn: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        await self._rotator.ready.wait()
        judge: kopf.WebhookFn = partial(cast("Any", fn), memories=NoMemos())
        serve_reviews(self._address, judge, tls=lambda: self._rotator.context)
        yield kopf.WebhookClientConfig()
        await asyncio.Event().wait()


def serve_reviews(
    address: tuple[str, int], judge: kopf.WebhookFn, *, tls: Callable[[], ssl.SSLContext]
) -> HttpsServer:
    """Answer reviews until the process ends; kopf judges them in the running loop.

    One review at a time is read and judged, and all of them take at most half of the time.
    """
    loop, turn = asyncio.get_running_loop(), asyncio.Lock()

    async def review(body: bytes) -> bytes:
        async with turn:
            began = time.thread_time()
            try:
                response = await judge(from_json(body))
            finally:
                await asyncio.sleep(time.thread_time() - began)
        return json.dumps(response).encode()

    def answer(body: bytes) -> tuple[HTTPStatus, bytes]:
        judged = asyncio.run_coroutine_threadsafe(review(body), loop)
        try:
            return HTTPStatus.OK, judged.result(_MAX_SECONDS)
        except Exception:
            # The API server goes on without it, and each cycle runs the same checks.
            judged.cancel()
            log.debug("a review failed", exc_info=True)
            return HTTPStatus.BAD_REQUEST, b""

    endpoint = Endpoint(
        method="POST",
        path="",
        answer=answer,
        max_body_bytes=MAX_REVIEW_BYTES,
        content_type="application/json",
    )
    most = MAX_REVIEW_CONNECTIONS
    server = HttpsServer(address, endpoint, tls=tls, check=None, seconds=_MAX_SECONDS, most=most)
    server.start()
    return server
