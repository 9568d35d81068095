"""Tokens that no key is: reviewed by the API server where they are the cluster's own."""

from dataclasses import dataclass

import jwt
import pytest

from tessera.domain.gateway.directory import Directory, Identity, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.identify.token_reviews import TokenReviews
from tessera.gateway.identify.token_verifier import TokenVerifier
from tessera.ports import ClusterError

DIRECTORY = Directory(tenants={"team-a": TenantLimits(name="team-a", namespaces=("team-a",))})
ISSUER = "https://kubernetes.default.svc"
ADDRESS = "10.0.0.7"


def a_token(issuer: str = ISSUER, subject: str = "ci") -> str:
    return jwt.encode({"iss": issuer, "sub": subject}, "x" * 32, algorithm="HS256")


TOKEN = a_token()


@dataclass
class ApiServer:
    """Reviews tokens, and has issued one for the gateway."""

    user: str | None = "system:serviceaccount:team-a:ci"
    own_token: str | None = a_token(subject="gateway")
    asked: int = 0

    async def review(self, token: str) -> str | None:
        assert token != self.own_token
        self.asked += 1
        return self.user

    async def token(self) -> str | None:
        return self.own_token

    def verifier(self) -> TokenVerifier:
        return TokenVerifier(TokenReviews(self.review, self.token), {})


async def test_a_service_account_is_identified() -> None:
    identity = Identity(tenant="team-a", user="system:serviceaccount:team-a:ci")
    assert await ApiServer().verifier().verify(TOKEN, DIRECTORY, ADDRESS) == identity


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (None, RequestReason.INVALID_TOKEN),
        ("system:serviceaccount:team-z:ci", RequestReason.UNKNOWN_TENANT),
        ("kubernetes-admin", RequestReason.UNKNOWN_TENANT),
    ],
)
async def test_others_are_refused(user: str | None, reason: RequestReason) -> None:
    assert await ApiServer(user).verifier().verify(TOKEN, DIRECTORY, ADDRESS) is reason


@pytest.mark.parametrize(
    "token", ["a.b.c", a_token("https://id.example.org"), a_token(f"{ISSUER}/"), a_token("")]
)
async def test_what_the_cluster_did_not_issue_is_not_reviewed(token: str) -> None:
    server = ApiServer()
    verdict = await server.verifier().verify(token, DIRECTORY, ADDRESS)
    assert (verdict, server.asked) == (RequestReason.INVALID_TOKEN, 0)


async def test_a_cluster_that_changes_its_issuer_is_followed() -> None:
    server = ApiServer()
    verifier, new = server.verifier(), a_token("https://new.example.org")
    await verifier.verify(TOKEN, DIRECTORY, ADDRESS)
    assert await verifier.verify(new, DIRECTORY, ADDRESS) is RequestReason.INVALID_TOKEN
    server.own_token = a_token("https://new.example.org", "gateway")
    for token in (new, TOKEN):
        assert isinstance(await verifier.verify(token, DIRECTORY, ADDRESS), Identity)


@pytest.mark.parametrize("own_token", [None, "no token of a ServiceAccount"])
async def test_a_gateway_without_a_token_of_its_own_says_so(
    own_token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    server = ApiServer(own_token=own_token)
    verifier = server.verifier()
    for _ in range(2):
        verdict = await verifier.verify(TOKEN, DIRECTORY, ADDRESS)
        assert (verdict, server.asked) == (RequestReason.TOKENS_NOT_VERIFIED, 0)
    assert caplog.text.count("does not run with the token of a ServiceAccount") == 1


async def test_without_reviews_no_service_account_is_accepted() -> None:
    verdict = await TokenVerifier(None, {}).verify(TOKEN, DIRECTORY, ADDRESS)
    assert verdict is RequestReason.INVALID_TOKEN


async def test_a_silent_api_server_is_not_a_refusal() -> None:
    async def review(_: str) -> str | None:
        raise ClusterError("no response")

    verifier = TokenVerifier(TokenReviews(review, ApiServer().token), {})
    assert await verifier.verify(TOKEN, DIRECTORY, ADDRESS) is RequestReason.TOKENS_NOT_VERIFIED


def an_evaluation_token() -> str:
    claims = {"iss": ISSUER, "sub": "gate", "aud": ["tessera-gate"]}
    return jwt.encode(claims, "x" * 32, algorithm="HS256")


@pytest.mark.parametrize(
    ("user", "verdict"),
    [
        (
            "system:serviceaccount:team-a:tessera-gate",
            Identity(
                tenant="team-a",
                user="system:serviceaccount:team-a:tessera-gate",
                evaluates="team-a",
            ),
        ),
        ("system:serviceaccount:team-a:ci", RequestReason.INVALID_TOKEN),
        ("system:serviceaccount:team-z:tessera-gate", RequestReason.UNKNOWN_TENANT),
        (None, RequestReason.INVALID_TOKEN),
    ],
)
async def test_the_token_of_a_gate_is_no_other_account_s(user: str | None, verdict: object) -> None:
    server, gates = ApiServer(), ApiServer(user)
    reviews = TokenReviews(gates.review, gates.token)
    verifier = TokenVerifier(TokenReviews(server.review, server.token), {}, reviews)
    assert await verifier.verify(an_evaluation_token(), DIRECTORY, ADDRESS) == verdict
    assert (gates.asked, server.asked) == (1, 0)


async def test_a_token_for_another_audience_asks_for_no_version() -> None:
    server = ApiServer("system:serviceaccount:team-a:tessera-gate")
    reviews = TokenReviews(server.review, server.token)
    verdict = await TokenVerifier(reviews, {}, reviews).verify(TOKEN, DIRECTORY, ADDRESS)
    assert isinstance(verdict, Identity)
    assert verdict.evaluates is None
