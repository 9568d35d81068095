"""The metrics port of a gateway, as commands read it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import aiohttp

from tessera.cli.cluster import Reader, open_reader
from tessera.cli.errors import CommandError
from tessera.domain.names import USAGE_READER
from tessera.settings import CommandSettings

_TOKEN_SECONDS = 600
_TIMEOUT = aiohttp.ClientTimeout(total=90)
_PORT_FORWARD_HINT = (
    "kubectl -n {namespace} port-forward deploy/tessera-gateway 8080, "
    "then --gateway http://127.0.0.1:8080"
)


def read_gateway(
    arguments: SimpleNamespace, path: str, query: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return what the gateway of the arguments or settings answers; raises CommandError."""
    return _ask(arguments, path, lambda reader, names, url: get(reader, names, url, query))


def post_gateway(
    arguments: SimpleNamespace, path: str, body: Mapping[str, Any], account: str
) -> Mapping[str, Any]:
    """Send a body to the gateway as a ServiceAccount and return what it answers."""
    return _ask(arguments, path, lambda reader, names, url: post(reader, names, url, body, account))


def _ask(
    arguments: SimpleNamespace,
    path: str,
    send: Callable[[Reader, str, str], Awaitable[Mapping[str, Any]]],
) -> Mapping[str, Any]:
    settings = CommandSettings()
    hint = _PORT_FORWARD_HINT.format(namespace=settings.namespace)
    url = arguments.gateway or settings.gateway_url
    if not url:
        raise CommandError(
            "no address of the gateway's metrics port: pass --gateway URL or set "
            f"TESSERA_GATEWAY_URL; from outside the cluster: {hint}"
        )

    async def read() -> Mapping[str, Any]:
        async with open_reader(arguments) as reader:
            return await send(reader, settings.namespace, f"{url.rstrip('/')}{path}")

    try:
        return asyncio.run(read())
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise CommandError(f"{url}: {error or type(error).__name__}; try {hint}") from error


async def get(
    reader: Reader, namespace: str, url: str, query: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return the answer of the gateway at a URL; raises CommandError, ClientError, OSError."""
    token = await _token(reader, namespace, USAGE_READER)
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=_headers(token)) as session:
        return await _answer(url, session.get(url, params=query))


async def post(
    reader: Reader, namespace: str, url: str, body: Mapping[str, Any], account: str
) -> Mapping[str, Any]:
    """Return the answer to a body at a URL, which only a ServiceAccount may send."""
    token = await _token(reader, namespace, account)
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=_headers(token)) as session:
        return await _answer(url, session.post(url, json=body))


def _headers(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def _answer(
    url: str, request: AbstractAsyncContextManager[aiohttp.ClientResponse]
) -> Mapping[str, Any]:
    async with request as response:
        body: Mapping[str, Any] = await response.json()
        if response.status != HTTPStatus.OK:
            raise CommandError(f"{url}: {response.status}: {body['error']}")
        return body


async def _token(reader: Reader, namespace: str, account: str) -> str:
    """Return a token of an account, which is of no use for anything but this port."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    spec = {"audiences": [USAGE_READER], "expirationSeconds": _TOKEN_SECONDS}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    status, answer = await reader.send("POST", path, body=body)
    if status == HTTPStatus.NOT_FOUND:
        raise CommandError(
            f"ServiceAccount/{account} is not in namespace {namespace}: set TESSERA_NAMESPACE "
            "to the gateway's namespace, and install the chart with gateway.enabled"
        )
    if status != HTTPStatus.CREATED:
        raise CommandError(
            f"no token of ServiceAccount/{account} in namespace {namespace}: API server "
            f"returned {status}: {answer.get('message', '')}"
        )
    token: str = answer["status"]["token"]
    return token
