"""How tokens wait for the API server: known ones for nobody, strangers by their addresses."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import jwt
import pytest

from tessera.adapters.review_turns import MAX_WAITING_OF_ALL, ReviewsBusyError, ReviewTurns
from tessera.domain.gateway.directory import Directory, Identity, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.identify.token_reviews import (
    MAX_WAITING_TOKENS,
    IssuedTokens,
    TokenReviews,
    TokenSender,
)
from tessera.gateway.identify.token_verifier import TokenVerifier
from tessera.gateway.refusals import RequestError

ISSUER = "https://kubernetes.default.svc"
DIRECTORY = Directory(
    tenants={name: TenantLimits(name=name, namespaces=(name,)) for name in ("team-a", "team-b")}
)
HONEST, JUNK = "10.0.0.7", "10.9.9.9"


def a_token(subject: str, issuer: str = ISSUER) -> str:
    return jwt.encode({"iss": issuer, "sub": subject}, "x" * 32, algorithm="HS256")


class ApiServer:
    """Reviews a token whenever a test lets it."""

    def __init__(self) -> None:
        self.reviewing: list[tuple[str, asyncio.Future[None]]] = []
        self.reviewed: list[str] = []
        self.reviews = TokenReviews(self._review, self._own_token)

    async def _review(self, token: str) -> str | None:
        subject = jwt.decode(token, options={"verify_signature": False})["sub"]
        answer = asyncio.get_running_loop().create_future()
        self.reviewing.append((subject, answer))
        await answer
        if subject.startswith("junk"):
            return None
        tenant = "team-b" if subject.startswith("many") else "team-a"
        return f"system:serviceaccount:{tenant}:{subject}"

    async def _own_token(self) -> str:
        return a_token("gateway")

    async def answer(self, count: int) -> None:
        """Answer so many reviews, one after the other."""
        for _ in range(count):
            await settle()
            subject, answer = self.reviewing.pop(0)
            self.reviewed.append(subject)
            answer.set_result(None)
        await settle()

    def ask(self, subject: str, sender: TokenSender) -> asyncio.Task[str | None]:
        return asyncio.create_task(self.reviews.user(a_token(subject), ISSUER, sender))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def outcomes(tasks: Sequence[asyncio.Task[str | None]]) -> Counter[str]:
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return Counter(type(each).__name__ for each in results)


async def test_strangers_reach_the_api_server_two_at_a_time_and_the_rest_of_many_not_at_all() -> (
    None
):
    server = ApiServer()
    flood = [server.ask(f"junk-{number}", JUNK) for number in range(MAX_WAITING_TOKENS + 12)]
    await settle()
    assert [subject for subject, _ in server.reviewing] == ["junk-0", "junk-1"]
    await server.answer(MAX_WAITING_TOKENS + 2)
    assert await outcomes(flood) == Counter(NoneType=MAX_WAITING_TOKENS + 2, ReviewsBusyError=10)


async def test_known_tokens_wait_for_no_stranger() -> None:
    server = ApiServer()
    strangers = [server.ask(f"junk-{number}", JUNK) for number in range(20)]
    await settle()
    known = [server.ask(f"known-{number}", Identity(tenant="team-a")) for number in range(4)]
    await settle()
    assert [subject for subject, _ in server.reviewing[2:]] == [f"known-{n}" for n in range(4)]
    for task in (*strangers, *known):
        task.cancel()
    assert (await outcomes([*strangers, *known])).total() == 24


@pytest.mark.parametrize(
    ("many", "other"),
    [(JUNK, HONEST), ("2001:db8:0:1::7", "2001:db8:0:2::7"), ("::ffff:10.9.9.9", HONEST)],
)
async def test_addresses_take_turns(many: str, other: str) -> None:
    server = ApiServer()
    flood = [server.ask(f"junk-{number}", many) for number in range(30)]
    await settle()
    honest = [server.ask(f"new-{number}", other) for number in range(3)]
    await server.answer(33)
    assert [server.reviewed.index(f"new-{number}") for number in range(3)] == [3, 5, 7]
    assert await outcomes([*flood, *honest]) == Counter(NoneType=30, str=3)


@pytest.mark.parametrize(
    ("first", "second"),
    [("2001:db8::1", "2001:db8::ffff:1"), ("::ffff:10.9.9.9", JUNK), ("64:ff9b::a09:909", JUNK)],
)
async def test_addresses_of_one_host_share_their_turns(first: str, second: str) -> None:
    server = ApiServer()
    tasks = [server.ask(f"junk-{number}", first) for number in range(MAX_WAITING_TOKENS + 2)]
    await settle()
    with pytest.raises(ReviewsBusyError):
        await server.ask("junk", second)
    await server.answer(MAX_WAITING_TOKENS + 2)
    assert await outcomes(tasks) == Counter(NoneType=MAX_WAITING_TOKENS + 2)


async def test_strangers_of_very_many_addresses_are_bounded_and_leave_turns_to_others() -> None:
    server, addresses = ApiServer(), 40
    crowd = [
        server.ask(f"junk-{number}", f"2001:db8:0:{number % addresses}::1")
        for number in range(addresses * MAX_WAITING_TOKENS)
    ]
    await settle()
    waiting = sum(not task.done() for task in crowd)
    assert waiting == MAX_WAITING_OF_ALL + 2
    honest = server.ask("new", HONEST)
    await server.answer(addresses + 3)
    assert await honest is not None
    await server.answer(MAX_WAITING_OF_ALL - addresses - 1)
    refused = len(crowd) - MAX_WAITING_OF_ALL - 1
    assert await outcomes(crowd) == Counter(
        NoneType=MAX_WAITING_OF_ALL + 1, ReviewsBusyError=refused
    )
    # All places are free again.
    later = [server.ask(f"later-{number}", JUNK) for number in range(2)]
    await settle()
    assert len(server.reviewing) == 2
    await server.answer(2)
    assert await outcomes(later) == Counter(str=2)


async def test_strangers_who_go_away_leave_their_places() -> None:
    server = ApiServer()
    leaving = [server.ask(f"junk-{number}", JUNK) for number in range(MAX_WAITING_TOKENS + 2)]
    await settle()
    for task in leaving:
        task.cancel()
    await settle()
    server.reviewing.clear()
    later = [server.ask(f"new-{number}", JUNK) for number in range(MAX_WAITING_TOKENS + 2)]
    await server.answer(MAX_WAITING_TOKENS + 2)
    assert await outcomes(later) == Counter(str=MAX_WAITING_TOKENS + 2)


@pytest.mark.parametrize("cancelled", [2, 3])
async def test_a_turn_that_comes_to_somebody_who_leaves_is_passed_on(cancelled: int) -> None:
    server = ApiServer()
    tasks = [server.ask(f"new-{number}", HONEST) for number in range(5)]
    await settle()
    # Both happen before anything else does.
    server.reviewing.pop(0)[1].set_result(None)
    await asyncio.sleep(0)
    tasks[cancelled].cancel()
    await server.answer(3)
    assert await outcomes(tasks) == Counter(str=4, CancelledError=1)


@pytest.mark.parametrize("age", [45, 61])
async def test_many_known_tokens_of_one_tenant_leave_turns_to_those_of_another(age: int) -> None:
    seconds = 0

    def identify(subject: str) -> asyncio.Task[Identity]:
        headers = {b"authorization": f"Bearer {a_token(subject)}".encode()}
        return asyncio.create_task(authenticator.identify(headers, DIRECTORY, HONEST))

    server = ApiServer()
    verifier = TokenVerifier(server.reviews, {})
    authenticator = Authenticator(verifier.verify, monotonic=lambda: seconds)
    subjects = [*(f"many-{number}" for number in range(50)), "known"]
    for _ in range(2):
        requests = [identify(subject) for subject in subjects]
        await server.answer(51)
        await asyncio.gather(*requests)
        seconds = age
    # Four of the many were reviewed when it came, and one of them had the next turn.
    assert server.reviewed[51:].index("known") == 5


@pytest.mark.parametrize("age", [45, 61])
async def test_junk_shuts_out_nobody(age: int) -> None:
    """3,000 junk tokens a second for a second, while reviews take 10 ms.

    40 accounts are known, with verdicts that are due or over, and 5 of other addresses are new.
    """
    seconds = 0

    def identify(subject: str, address: str) -> asyncio.Task[Identity]:
        headers = {b"authorization": f"Bearer {a_token(subject)}".encode()}
        return asyncio.create_task(authenticator.identify(headers, DIRECTORY, address))

    server = ApiServer()
    verifier = TokenVerifier(server.reviews, {})
    authenticator = Authenticator(verifier.verify, monotonic=lambda: seconds)
    accounts = [identify(f"known-{number}", HONEST) for number in range(40)]
    await server.answer(40)
    await asyncio.gather(*accounts)
    seconds = age
    junk, honest = list[asyncio.Task[Identity]](), list[asyncio.Task[Identity]]()
    for step in range(100):
        junk += [identify(f"junk-{step}-{number}", JUNK) for number in range(30)]
        if 10 <= step < 50:
            honest.append(identify(f"known-{step - 10}", HONEST))
        if 10 <= step < 15:
            honest.append(identify(f"new-{step}", f"10.0.1.{step}"))
        await settle()
        # All that the API server has at this moment.
        await server.answer(len(server.reviewing))
    assert {identity.tenant for identity in await asyncio.gather(*honest)} == {"team-a"}
    reasons = Counter[str]()
    for task in junk:
        if task.done() and isinstance(error := task.exception(), RequestError):
            reasons[error.reason] += 1
        task.cancel()
    await asyncio.wait(junk)
    assert reasons[RequestReason.INVALID_TOKEN] < 250
    assert reasons[RequestReason.TOKENS_NOT_VERIFIED] > 2600


async def test_a_sender_has_no_more_places_at_once_than_it_may() -> None:
    turns, order, release = ReviewTurns(2, 8, most_at_once=1), list[str](), asyncio.Event()

    async def review(sender: str) -> None:
        async with turns.place(sender):
            order.append(sender)
            if sender == JUNK:
                await release.wait()

    slow = [asyncio.create_task(review(JUNK)) for _ in range(3)]
    await settle()
    assert order == [JUNK]
    for _ in range(3):
        await review(HONEST)
    slow[1].cancel()
    release.set()
    await asyncio.gather(*slow, return_exceptions=True)
    assert order == [JUNK, HONEST, HONEST, HONEST, JUNK]
    async with turns.place(HONEST), turns.place("another"):
        pass


@pytest.mark.parametrize("has_account", [True, False])
async def test_ports_inside_the_cluster_have_what_it_issued_reviewed(has_account: bool) -> None:
    reviewed: list[str] = []

    async def review(token: str) -> str:
        reviewed.append(token)
        return "reader"

    async def own_token() -> str | None:
        return a_token("gateway") if has_account else None

    tokens = IssuedTokens(review, own_token)
    junk = a_token("reader", "https://junk.example"), "no.token"
    users = [await tokens.user(token) for token in (a_token("reader"), *junk)]
    # A gateway outside the cluster does not know who issues its tokens.
    assert users == (["reader", None, None] if has_account else ["reader"] * 3)
    assert len(reviewed) == (1 if has_account else 3)
