"""Whose tokens may read the metrics, and how often the API server is asked."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import jwt
from aiohttp import web

from tessera.adapters.kube.client import KubeCluster
from tessera.controller.token_access import TokenAccess, gateway_access, metrics_access
from tests.adapters.small_server import connected_cluster
from world.testing import eventually

OK, UNAUTHORIZED, FORBIDDEN = HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN
GATEWAY = "system:serviceaccount:tessera-system:tessera-gateway"
ADDRESS = "10.0.0.7"
UNAVAILABLE, TOO_MANY = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS


@dataclass
class Reviews:
    """Answers of the API server, and the tokens that it was asked about."""

    answers: dict[str, HTTPStatus] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    now: float = 1000

    def review(self, token: str, _: str) -> HTTPStatus:
        self.tokens.append(token)
        return self.answers.get(token, UNAUTHORIZED)

    def access(self) -> TokenAccess:
        return TokenAccess(self.review, lambda: self.now)


def test_a_reader_is_reviewed_once_a_minute() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    for _ in range(8):
        assert access.check("prometheus", ADDRESS) is OK
        reviews.now += 15
    assert len(reviews.tokens) == 2


def test_a_reader_who_loses_the_right_is_refused_within_a_minute() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    assert access.check("prometheus", ADDRESS) is OK
    reviews.answers["prometheus"] = FORBIDDEN
    reviews.now += 60
    assert access.check("prometheus", ADDRESS) is FORBIDDEN
    reviews.answers["prometheus"] = UNAVAILABLE
    reviews.now += 1
    assert access.check("prometheus", ADDRESS) is UNAVAILABLE


def test_a_reader_goes_on_for_ten_minutes_without_the_api_server() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    assert access.check("prometheus", ADDRESS) is OK
    reviews.answers["prometheus"] = UNAVAILABLE
    reviews.now += 599
    assert access.check("prometheus", ADDRESS) is OK
    reviews.now += 2
    assert access.check("prometheus", ADDRESS) is UNAVAILABLE


def test_tokens_without_the_right_cost_few_reviews_and_keep_no_reader_out() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    assert access.check("prometheus", ADDRESS) is OK
    reviews.now += 60
    statuses = []
    for number in range(1000):
        statuses.append(access.check(f"guess-{number}", "10.9.9.9"))
        reviews.now += 0.001
    assert set(statuses) == {UNAUTHORIZED, TOO_MANY}
    assert len(reviews.tokens) <= 6
    reviews.answers["another"] = OK
    assert access.check("another", ADDRESS) is OK
    assert access.check("prometheus", ADDRESS) is OK


def test_few_readers_are_remembered() -> None:
    reviews = Reviews({f"reader-{number}": OK for number in range(20)})
    access = reviews.access()
    for token in reviews.answers:
        assert access.check(token, ADDRESS) is OK
    reviews.tokens.clear()
    assert access.check("reader-19", ADDRESS) is OK
    assert access.check("reader-0", ADDRESS) is OK
    assert reviews.tokens == ["reader-0"]


def test_refusals_are_counted_and_the_addresses_that_are_remembered_have_a_bound() -> None:
    reviews, refused = Reviews({"reader": OK}), list[HTTPStatus]()
    access = TokenAccess(reviews.review, lambda: reviews.now, refused=refused.append)
    for number in range(3000):
        assert access.check("guess", f"10.0.{number // 250}.{number % 250}") is UNAUTHORIZED
    assert access.check("guess", "10.0.11.249") is TOO_MANY
    assert access.check("reader", "10.0.11.249") is TOO_MANY
    assert access.check("reader", ADDRESS) is OK
    assert len(access._refused_at) <= 1024
    assert refused == [UNAUTHORIZED] * 3000 + [TOO_MANY] * 2


def test_a_known_token_is_renewed_once_and_waits_for_no_review() -> None:
    asked, answered, first = threading.Event(), threading.Event(), list[HTTPStatus]()

    def review(_: str, address: str) -> HTTPStatus:
        if now[0]:
            assert address == ""
            asked.set()
            answered.wait(10)
        return OK

    now = [0.0]
    access = TokenAccess(review, lambda: now[0])
    assert access.check("reader", ADDRESS) is OK
    now[0] = 61.0
    thread = threading.Thread(target=lambda: first.append(access.check("reader", ADDRESS)))
    thread.start()
    assert asked.wait(10)
    assert access.check("reader", ADDRESS) is OK
    answered.set()
    thread.join(10)
    assert first == [OK]


SCRAPER = {"username": "system:serviceaccount:monitoring:prometheus", "groups": ["scrapers"]}


def no_count(_: HTTPStatus) -> None:
    """Count no refusal."""


@asynccontextmanager
async def an_api_server(requests: list[Any]) -> AsyncIterator[KubeCluster]:
    """Yield a cluster in which of the tokens `good` and `known` the first may read."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        requests.append((request.path, body["spec"]))
        if body["kind"] == "TokenReview":
            holder = body["spec"]["token"]
            if holder.count(".") == 2:
                holder = jwt.decode(holder, options={"verify_signature": False})["jti"]
            if holder == "broken":
                return web.json_response({"message": "no right to review"}, status=403)
            status = {
                "authenticated": holder in ("good", "known", "gateway", "stranger"),
                "user": SCRAPER | {"uid": holder},
                "audiences": body["spec"].get("audiences", []) if holder != "known" else [],
            }
            if holder == "gateway":
                status["user"] = {"username": GATEWAY}
        else:
            status = {"allowed": body["spec"]["uid"] == "good"}
        return web.json_response({"status": status}, status=201)

    async with connected_cluster(answer) as cluster:
        yield cluster


async def test_the_api_server_says_who_holds_a_token_and_may_get_the_path() -> None:
    requests: list[Any] = []
    async with an_api_server(requests) as cluster:
        for token, status in {
            "good": OK,
            "unknown": UNAUTHORIZED,
            "known": FORBIDDEN,
            "broken": UNAVAILABLE,
        }.items():
            access = metrics_access(cluster, asyncio.get_running_loop(), no_count)
            assert await asyncio.to_thread(access.check, token, ADDRESS) is status
    (_, path_review), *_ = requests[1:]
    assert path_review["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}
    assert path_review["user"] == SCRAPER["username"]
    assert path_review["groups"] == SCRAPER["groups"]


def a_token(holder: str, subject: str = GATEWAY) -> str:
    return jwt.encode({"sub": subject, "jti": holder}, "x" * 32, algorithm="HS256")


async def test_a_gateway_is_its_account_with_a_token_for_the_operator() -> None:
    requests: list[Any] = []
    async with an_api_server(requests) as cluster:
        for holder, status in {
            "gateway": OK,
            "unknown": UNAUTHORIZED,
            "known": UNAUTHORIZED,  # made for another audience
            "stranger": FORBIDDEN,
            "broken": UNAVAILABLE,
        }.items():
            access = gateway_access(cluster, asyncio.get_running_loop(), GATEWAY, no_count)
            assert await asyncio.to_thread(access.check, a_token(holder), ADDRESS) is status
    assert requests[0][1]["audiences"] == ["tessera-operator"]


async def test_what_claims_to_be_no_gateway_has_no_review() -> None:
    requests: list[Any] = []
    async with an_api_server(requests) as cluster:
        access = gateway_access(cluster, asyncio.get_running_loop(), GATEWAY, no_count)
        other = a_token("gateway", "system:serviceaccount:evil:tessera-gateway")
        for token, status in (("junk", UNAUTHORIZED), ("a.b.c", UNAUTHORIZED), (other, FORBIDDEN)):
            address = f"10.9.9.{len(token) % 250}"
            assert await asyncio.to_thread(access.check, token, address) is status
    assert requests == []


async def test_a_new_gateway_waits_for_one_token_of_each_address_at_most() -> None:
    """However many tokens others send in its name, and however slow their reviews are."""
    asked = list[str]()
    free = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        token = (await request.json())["spec"]["token"]
        holder = jwt.decode(token, options={"verify_signature": False})["jti"]
        asked.append(holder)
        if holder != "honest":
            await free.wait()
        user = {"username": GATEWAY if holder == "honest" else "junk"}
        audiences = ["tessera-operator"]
        status = {"authenticated": True, "user": user, "audiences": audiences}
        return web.json_response({"status": status}, status=201)

    async with connected_cluster(answer) as cluster:
        access = gateway_access(cluster, asyncio.get_running_loop(), GATEWAY, no_count)
        junk = [
            asyncio.create_task(
                asyncio.to_thread(access.check, a_token(f"junk-{number}"), f"10.9.9.{number % 3}")
            )
            for number in range(4)
        ]

        async def are_asked() -> None:
            assert len(asked) == 3, "one of each address"

        await eventually(are_asked)
        assert await asyncio.to_thread(access.check, a_token("honest"), ADDRESS) is OK
        free.set()
        assert set(await asyncio.gather(*junk)) == {FORBIDDEN}
