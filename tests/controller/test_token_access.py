"""Whose tokens may read the metrics, and how often the API server is asked."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from tessera.adapters.kube.client import KubeCluster
from tessera.controller.token_access import TokenAccess, gateway_access, metrics_access
from tests.adapters.small_server import connected_cluster

OK, UNAUTHORIZED, FORBIDDEN = HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN
GATEWAY = "system:serviceaccount:tessera-system:tessera-gateway"
UNAVAILABLE, TOO_MANY = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS


@dataclass
class Reviews:
    """Answers of the API server, and the tokens that it was asked about."""

    answers: dict[str, HTTPStatus] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    now: float = 1000

    def review(self, token: str) -> HTTPStatus:
        self.tokens.append(token)
        return self.answers.get(token, UNAUTHORIZED)

    def access(self) -> TokenAccess:
        return TokenAccess(self.review, lambda: self.now)


def test_a_reader_is_reviewed_once_a_minute() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    for _ in range(8):
        assert access.check("prometheus") is OK
        reviews.now += 15
    assert len(reviews.tokens) == 2


def test_a_reader_who_loses_the_right_is_refused_within_a_minute() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    assert access.check("prometheus") is OK
    reviews.answers["prometheus"] = FORBIDDEN
    reviews.now += 60
    assert access.check("prometheus") is FORBIDDEN
    reviews.answers["prometheus"] = UNAVAILABLE
    reviews.now += 1
    assert access.check("prometheus") is UNAVAILABLE


def test_a_reader_goes_on_for_ten_minutes_without_the_api_server() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    assert access.check("prometheus") is OK
    reviews.answers["prometheus"] = UNAVAILABLE
    reviews.now += 599
    assert access.check("prometheus") is OK
    reviews.now += 2
    assert access.check("prometheus") is UNAVAILABLE


def test_tokens_without_the_right_cost_few_reviews_and_keep_no_reader_out() -> None:
    reviews = Reviews({"prometheus": OK})
    access = reviews.access()
    assert access.check("prometheus") is OK
    reviews.now += 60
    statuses = []
    for number in range(1000):
        statuses.append(access.check(f"guess-{number}"))
        reviews.now += 0.001
    assert set(statuses) == {UNAUTHORIZED, TOO_MANY}
    assert len(reviews.tokens) <= 6
    assert access.check("prometheus") is OK


def test_few_readers_are_remembered() -> None:
    reviews = Reviews({f"reader-{number}": OK for number in range(20)})
    access = reviews.access()
    for token in reviews.answers:
        assert access.check(token) is OK
    reviews.tokens.clear()
    assert access.check("reader-19") is OK
    assert access.check("reader-0") is OK
    assert reviews.tokens == ["reader-0"]


def test_a_review_that_lasts_holds_up_no_other_request() -> None:
    asked, answered = threading.Event(), threading.Event()

    def review(_: str) -> HTTPStatus:
        asked.set()
        answered.wait(10)
        return OK

    access = TokenAccess(review)
    thread = threading.Thread(target=access.check, args=("first",))
    thread.start()
    assert asked.wait(10)
    assert access.check("second") is TOO_MANY
    answered.set()
    thread.join(10)
    assert access.check("first") is OK


SCRAPER = {"username": "system:serviceaccount:monitoring:prometheus", "groups": ["scrapers"]}


@asynccontextmanager
async def an_api_server(requests: list[Any]) -> AsyncIterator[KubeCluster]:
    """Yield a cluster in which of the tokens `good` and `known` the first may read."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        requests.append((request.path, body["spec"]))
        if body["kind"] == "TokenReview":
            holder = body["spec"]["token"]
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
            access = metrics_access(cluster, asyncio.get_running_loop())
            assert await asyncio.to_thread(access.check, token) is status
    (_, path_review), *_ = requests[1:]
    assert path_review["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}
    assert path_review["user"] == SCRAPER["username"]
    assert path_review["groups"] == SCRAPER["groups"]


async def test_a_gateway_is_its_account_with_a_token_for_the_operator() -> None:
    requests: list[Any] = []
    async with an_api_server(requests) as cluster:
        for token, status in {
            "gateway": OK,
            "unknown": UNAUTHORIZED,
            "known": UNAUTHORIZED,  # made for another audience
            "stranger": FORBIDDEN,
            "broken": UNAVAILABLE,
        }.items():
            access = gateway_access(cluster, asyncio.get_running_loop(), GATEWAY)
            assert await asyncio.to_thread(access.check, token) is status
    assert requests[0][1]["audiences"] == ["tessera-operator"]
