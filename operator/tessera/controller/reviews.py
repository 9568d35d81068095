"""The server of admission, which any pod may reach: the API server asks without credentials."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import kopf
from pydantic import BaseModel, Field, ValidationError
from pydantic.alias_generators import to_camel

from tessera.controller.https_server import Endpoint, HttpsServer

log = logging.getLogger("tessera")

# An object has at most 1.5 MiB in etcd; the largest of tests have a tenth.
MAX_REVIEW_BYTES = 2**20
# Reviews that are read at a time: an installation of many objects sends some tens.
MAX_REVIEW_CONNECTIONS = 64
# The API server waits for 30 s at most.
_MAX_SECONDS = 30.0


class _Resource(BaseModel):
    resource: str


class _Request(BaseModel, alias_generator=to_camel):
    """What of an AdmissionReview decides."""

    uid: str = Field(max_length=128)
    resource: _Resource
    operation: str
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None


class _Review(BaseModel):
    request: _Request


async def _judged(handlers: Mapping[str, Any], request: _Request) -> dict[str, Any]:
    warnings = list[str]()
    response: dict[str, Any] = {"uid": request.uid, "allowed": True}
    try:
        await handlers[request.resource.resource](
            body=request.object or request.old_object or {},
            old=request.old_object,
            operation=request.operation,
            warnings=warnings,
        )
    except kopf.AdmissionError as error:
        response |= {"allowed": False, "status": {"code": error.code, "message": str(error)}}
    return response | ({"warnings": warnings} if warnings else {})


def serve_reviews(
    address: tuple[str, int],
    handlers: Mapping[str, Any],
    loop: asyncio.AbstractEventLoop,
    *,
    tls: Callable[[], ssl.SSLContext],
) -> HttpsServer:
    """Answer reviews until the process ends; `handlers` judge in the loop, by the plural.

    One review at a time is read and judged, and all take at most half of the time: whoever asks.
    """
    turn = asyncio.Lock()

    async def review(body: bytes) -> bytes:
        async with turn:
            began = time.thread_time()
            try:
                response = await _judged(handlers, _Review.model_validate_json(body).request)
            finally:
                await asyncio.sleep(time.thread_time() - began)
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        return json.dumps(review | {"response": response}).encode()

    def answer(body: bytes) -> tuple[HTTPStatus, bytes]:
        judged = asyncio.run_coroutine_threadsafe(review(body), loop)
        try:
            return HTTPStatus.OK, judged.result(_MAX_SECONDS)
        except ValidationError:
            return HTTPStatus.BAD_REQUEST, b""
        except Exception:
            # The API server goes on without it, and each cycle runs the same checks.
            judged.cancel()
            log.debug("a review failed", exc_info=True)
            return HTTPStatus.INTERNAL_SERVER_ERROR, b""

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
