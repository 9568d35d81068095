"""The port of admission, at which any pod may ask: what it answers, and what it holds."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from http.client import HTTPSConnection
from typing import Any

import kopf
import pytest
from kopf._cogs.structs.references import Insights, Resource
from kopf._core.engines.admission import serve_admission_request
from kopf._core.engines.indexing import OperatorIndexers

from tessera.api.meta import GROUP, VERSION
from tessera.controller.admission import validators
from tessera.controller.https_server import HttpsServer
from tessera.controller.reviews import (
    MAX_REVIEW_BYTES,
    MAX_REVIEW_CONNECTIONS,
    NoMemos,
    serve_reviews,
)
from tests.builders import NOW
from tests.controller.test_admission import a_body, a_store
from tests.controller.test_metrics import a_context, client_context


def a_judge() -> kopf.WebhookFn:
    """Return what kopf has a server of reviews call."""
    registry, insights = kopf.OperatorRegistry(), Insights()
    for plural, handler in validators(a_store(), lambda: NOW).items():
        kopf.on.validate(GROUP, VERSION, plural, id=plural, registry=registry)(handler)
        insights.webhook_resources.add(Resource(GROUP, VERSION, plural))
    judge: Any = serve_admission_request
    return partial(
        judge,
        settings=kopf.OperatorSettings(),
        memories=NoMemos(),
        memobase=kopf.Memo(),
        registry=registry,
        insights=insights,
        indices=OperatorIndexers().indices,
    )


@asynccontextmanager
async def a_server() -> AsyncIterator[HttpsServer]:
    server = serve_reviews(("127.0.0.1", 0), a_judge(), tls=lambda: a_context("first"))
    try:
        yield server
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


def a_review(operation: str = "CREATE", **fields: Any) -> bytes:
    resource = {"group": "tessera.dev", "version": "v1alpha1", "resource": "inferenceservices"}
    request = {"uid": "1", "resource": resource, "operation": operation, "userInfo": {}, **fields}
    return json.dumps({"kind": "AdmissionReview", "request": request}).encode()


def post(server: HttpsServer, body: bytes) -> tuple[int, Any]:
    connection = HTTPSConnection(
        "127.0.0.1",
        server.server_port,
        timeout=60,
        context=client_context(),
        # The address of the API server.
        source_address=("127.0.0.2", 0),
    )
    connection.request("POST", "/inferenceservices?timeout=5s", body)
    with connection.getresponse() as response:
        text = response.read()
        return response.status, json.loads(text)["response"] if text else None


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE"])
async def test_a_review_says_what_admission_decides(operation: str) -> None:
    good, bad = a_body(), a_body(engine={"extraArgs": ["--port=1"]})
    unknown = a_body(placement={"pools": ["away"]})
    async with a_server() as server:
        ask = {"oldObject": good} if operation == "UPDATE" else {}
        for body, is_allowed, word in (
            (good, True, ""),
            (unknown, True, "AcceleratorPool/away"),
            (bad, False, "remove --port"),
        ):
            review = a_review(operation, object=body, **ask)
            status, response = await asyncio.to_thread(post, server, review)
            assert (status, response["uid"], response["allowed"]) == (200, "1", is_allowed)
            said = [*response.get("warnings", ()), response.get("status", {}).get("message", "")]
            assert word in " ".join(said)


@pytest.mark.parametrize(
    "body", [b"{", b"{}", a_review(), a_review(object={}), a_review(object={"metadata": []})]
)
async def test_what_is_no_review_ends_nothing(body: bytes) -> None:
    async with a_server() as server:
        status, response = await asyncio.to_thread(post, server, body)
        assert (status, response) == (400, None) or not response["allowed"]
        status, _ = await asyncio.to_thread(post, server, a_review(object=a_body()))
        assert status == 200


async def test_what_any_pod_sends_has_a_bound_and_keeps_the_api_server_not_out() -> None:
    def half_a_review(server: HttpsServer) -> socket.socket:
        client = client_context().wrap_socket(
            socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
        )
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_REVIEW_BYTES}\r\n\r\n"
        client.sendall(head.encode() + b"{")
        return client

    async with a_server() as server:
        with ExitStack() as stack:
            for _ in range(MAX_REVIEW_CONNECTIONS + 16):
                client = await asyncio.to_thread(half_a_review, server)
                stack.enter_context(client)
            assert len(server._open) <= MAX_REVIEW_CONNECTIONS
            status, _ = await asyncio.to_thread(post, server, a_review(object=a_body()))
            assert status == 200
        large = a_review(object=a_body()) + b" " * MAX_REVIEW_BYTES
        assert await asyncio.to_thread(post, server, large) == (413, None)
