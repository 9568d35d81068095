"""What is expected of a request follows its client, and the table of clients stays bounded."""

import pytest

from tessera.domain.gateway.client_lengths import ClientId, ClientLengths
from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens

SERVICE, MOST = "uid", 4096
SHORT, LONG = ClientId("team-a", "short"), ClientId("team-b", "long")


def learned(lengths: ClientLengths, client: ClientId, answer: int, requests: int = 200) -> None:
    for _ in range(requests):
        lengths.learn(SERVICE, client, estimate=400, prompt=300, answer=answer)


def test_each_client_is_expected_to_do_as_before_whatever_others_do() -> None:
    lengths = ClientLengths()
    learned(lengths, SHORT, 10)
    learned(lengths, LONG, 1000)
    assert lengths.expected(SERVICE, SHORT, 800, MOST).answer == pytest.approx(10, abs=60)
    learned(lengths, SHORT, 10, 2000)
    learned(lengths, LONG, 2000, 2000)
    for client, answer, error in ((SHORT, 10, 25), (LONG, 2000, 40)):
        tokens = lengths.expected(SERVICE, client, 800, MOST)
        assert (tokens.requests, tokens.prompt) == (1, 600)
        assert tokens.answer == pytest.approx(answer, abs=error)


def test_an_unknown_client_is_taken_for_a_mean_one_and_an_unknown_service_for_nothing() -> None:
    lengths = ClientLengths()
    learned(lengths, SHORT, 10, 19)
    assert lengths.expected(SERVICE, SHORT, 800, MOST) == NO_TOKENS
    learned(lengths, LONG, 30, 19)
    # Of one tenant, but with another key, with none, and of another service.
    for client in (
        ClientId("team-a", "new"),
        ClientId("team-a"),
        ClientId("team-a", None, "short"),
    ):
        assert lengths.expected(SERVICE, client, 800, MOST) == ArrivedTokens(1, 600, 20, 600**2)
    assert lengths.expected("another", SHORT, 800, MOST) == NO_TOKENS


def test_an_answer_has_at_most_what_its_request_asks_for() -> None:
    lengths = ClientLengths()
    learned(lengths, LONG, 1000)
    assert lengths.expected(SERVICE, LONG, 800, 16).answer == 16
    assert lengths.expected(SERVICE, LONG, 800, MOST).answer == 1000


def test_what_an_engine_claims_makes_no_prompt_larger_than_its_bytes() -> None:
    lengths = ClientLengths()
    for _ in range(50):
        lengths.learn(SERVICE, SHORT, estimate=1, prompt=10**6, answer=1)
    assert lengths.expected(SERVICE, SHORT, 100, MOST).prompt == 300


def test_the_tenant_with_most_clients_gives_way() -> None:
    lengths = ClientLengths(max_clients=100)
    learned(lengths, LONG, 1000)
    learned(lengths, SHORT, 10, 2000)
    for number in range(1000):
        learned(lengths, ClientId("evil", f"key-{number}"), 5, 1)
        assert lengths.clients <= 100
    assert lengths.expected(SERVICE, LONG, 800, MOST).answer > 900
    # His last ones are known still.
    last = ClientId("evil", "key-999")
    learned(lengths, last, 500, 2000)
    assert lengths.expected(SERVICE, last, 800, MOST).answer > 490


def test_one_tenant_with_all_clients_keeps_those_that_it_used_last() -> None:
    lengths = ClientLengths(max_clients=2)
    learned(lengths, SHORT, 10, 300)
    learned(lengths, SHORT._replace(key="b"), 1000, 300)
    learned(lengths, SHORT, 10, 300)
    learned(lengths, SHORT._replace(key="c"), 1000, 300)
    assert lengths.clients == 2
    assert lengths.expected(SERVICE, SHORT, 800, MOST).answer < 100


def test_a_service_that_is_gone_is_forgotten() -> None:
    lengths = ClientLengths()
    learned(lengths, SHORT, 10)
    lengths.forget(SERVICE)
    assert lengths.expected(SERVICE, SHORT, 800, MOST) == NO_TOKENS
