"""Tokens that no key is: reviewed by the API server, a few at a time."""

import asyncio

import jwt
import pytest

from tessera.domain.gateway.directory import Directory, Identity, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.requests.token_verifier import TokenVerifier
from tessera.ports import ClusterError

DIRECTORY = Directory(tenants={"team-a": TenantLimits(name="team-a", namespaces=("team-a",))})
TOKEN = jwt.encode({"iss": "https://kubernetes.default.svc"}, "x" * 32, algorithm="HS256")


class ApiServer:
    def __init__(self, user: str | None = "system:serviceaccount:team-a:ci") -> None:
        self.user = user
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def review(self, token: str) -> str | None:
        assert token == TOKEN
        self.asked += 1
        await self.open.wait()
        return self.user


async def test_a_service_account_is_identified() -> None:
    identity = Identity(tenant="team-a", user="system:serviceaccount:team-a:ci")
    verdict = await TokenVerifier(ApiServer().review, {}).verify(TOKEN, DIRECTORY)
    assert verdict == identity


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (None, RequestReason.INVALID_TOKEN),
        ("system:serviceaccount:team-z:ci", RequestReason.UNKNOWN_TENANT),
        ("kubernetes-admin", RequestReason.UNKNOWN_TENANT),
    ],
)
async def test_others_are_refused(user: str | None, reason: RequestReason) -> None:
    verdict = await TokenVerifier(ApiServer(user).review, {}).verify(TOKEN, DIRECTORY)
    assert verdict is reason


async def test_what_is_no_token_is_not_reviewed() -> None:
    server = ApiServer()
    verdict = await TokenVerifier(server.review, {}).verify("a.b.c", DIRECTORY)
    assert (verdict, server.asked) == (RequestReason.INVALID_TOKEN, 0)


async def test_without_reviews_no_service_account_is_accepted() -> None:
    verdict = await TokenVerifier(None, {}).verify(TOKEN, DIRECTORY)
    assert verdict is RequestReason.INVALID_TOKEN


async def test_a_flood_of_tokens_reaches_the_api_server_four_at_a_time() -> None:
    server = ApiServer()
    server.open.clear()
    verifier = TokenVerifier(server.review, {})
    flood = [asyncio.create_task(verifier.verify(TOKEN, DIRECTORY)) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    refused = [task.result() for task in flood if task.done()]
    assert (server.asked, refused) == (4, [RequestReason.TOKENS_NOT_VERIFIED] * 36)
    server.open.set()
    verdicts = await asyncio.gather(*flood)
    assert sum(isinstance(verdict, Identity) for verdict in verdicts) == 64


async def test_a_silent_api_server_is_not_a_refusal() -> None:
    async def review(_: str) -> str | None:
        raise ClusterError("no response")

    verdict = await TokenVerifier(review, {}).verify(TOKEN, DIRECTORY)
    assert verdict is RequestReason.TOKENS_NOT_VERIFIED
