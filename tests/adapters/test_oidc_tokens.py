"""Tokens of an OIDC issuer, which publishes its keys over HTTP."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tessera.adapters.oidc_tokens import (
    InvalidTokenError,
    IssuerError,
    OidcTokens,
    unverified_issuer,
)
from tessera.domain.gateway.oidc import OidcIssuer
from world.testing import eventually

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    def __init__(self) -> None:
        self.url = ""
        self.fetches = 0
        self.status = 200
        self.answers = asyncio.Event()
        self.answers.set()
        self.keys: list[dict[str, Any]] = [
            {**json.loads(RSAAlgorithm.to_jwk(RSA.public_key())), "kid": "rsa"},
            {"kty": "from the future", "kid": "new"},
            {**json.loads(ECAlgorithm.to_jwk(EC.public_key())), "kid": "ec"},
        ]
        self.seconds = 1000.0

    async def discovery(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def serve_keys(self, _: web.Request) -> web.Response:
        self.fetches += 1
        await self.answers.wait()
        return web.json_response({"keys": self.keys}, status=self.status)

    def tokens(self, **fields: Any) -> OidcTokens:
        issuer = OidcIssuer(issuer=self.url, audience="tessera", **fields)
        return OidcTokens(issuer, lambda: self.seconds)

    def token(
        self, key: Any = RSA, algorithm: str = "RS256", kid: str = "rsa", **claims: Any
    ) -> str:
        payload = {"iss": self.url, "aud": "tessera", "sub": "u", "exp": time.time() + 60, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", issuer.discovery)
    app.router.add_get("/keys", issuer.serve_keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    issuer.url = f"http://{host}:{port}"
    yield issuer
    await runner.cleanup()


async def test_tokens_of_the_issuer_are_verified_with_one_fetch_of_its_keys(issuer: Issuer) -> None:
    tokens = issuer.tokens()
    assert (await tokens.verify(issuer.token()))["sub"] == "u"
    assert (await tokens.verify(issuer.token(EC, "ES256", "ec")))["sub"] == "u"
    assert issuer.fetches == 1
    assert unverified_issuer(issuer.token()) == issuer.url


@pytest.mark.parametrize(
    "fields",
    [
        {"key": OTHER_RSA},
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://id.example.org"},
        {"exp": 1},
        {"exp": None},
        {"nbf": 10**12},
        {"algorithm": "RS512"},
        {"key": "x" * 64, "algorithm": "HS256"},
        {"key": None, "algorithm": "none"},
        {"key": EC, "algorithm": "ES256"},
        {"kid": "unknown"},
    ],
)
async def test_other_tokens_are_refused(issuer: Issuer, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidTokenError):
        await issuer.tokens().verify(issuer.token(**fields))


@pytest.mark.parametrize("token", ["", "a.b.c", "a.b", "...", "e30.e30.", "é.b.c", "[" * 10_000])
async def test_what_is_no_token_is_refused(issuer: Issuer, token: str) -> None:
    assert unverified_issuer(token) is None
    with pytest.raises(InvalidTokenError):
        await issuer.tokens().verify(token)


async def test_a_new_key_is_found_and_unknown_ones_ask_at_most_twice_a_minute(
    issuer: Issuer,
) -> None:
    tokens = issuer.tokens()
    await tokens.verify(issuer.token())
    issuer.keys.append({**json.loads(RSAAlgorithm.to_jwk(OTHER_RSA.public_key())), "kid": "two"})
    for _ in range(10):
        with pytest.raises(InvalidTokenError):
            await tokens.verify(issuer.token(OTHER_RSA, kid="two"))
    assert issuer.fetches == 1
    issuer.seconds += 30
    assert await tokens.verify(issuer.token(OTHER_RSA, kid="two"))
    assert issuer.fetches == 2


async def test_a_known_key_does_not_wait_while_an_unknown_one_is_asked_for(issuer: Issuer) -> None:
    tokens = issuer.tokens()
    await tokens.verify(issuer.token())
    issuer.seconds += 30
    issuer.answers.clear()
    unknown = asyncio.create_task(tokens.verify(issuer.token(OTHER_RSA, kid="two")))

    async def keys_are_asked_for() -> None:
        assert issuer.fetches == 2

    await eventually(keys_are_asked_for)
    async with asyncio.timeout(4):
        assert await tokens.verify(issuer.token())
    assert not unknown.done()
    issuer.answers.set()
    with pytest.raises(InvalidTokenError):
        await unknown


async def test_known_keys_go_on_for_a_day_without_their_issuer(issuer: Issuer) -> None:
    tokens = issuer.tokens()
    await tokens.verify(issuer.token())
    issuer.status = 503
    issuer.seconds += 86_399
    assert await tokens.verify(issuer.token())
    issuer.seconds += 60
    with pytest.raises(IssuerError):
        await tokens.verify(issuer.token())
