from statistics import mean, median

import pytest

from tessera_lab.engine.mixes import CHAT, CODE, MIXES, RAG


@pytest.mark.parametrize("name", MIXES)
def test_a_load_is_the_same_at_every_rate_but_for_the_scale_of_its_arrivals(name: str) -> None:
    slow, fast = MIXES[name].draw(50, 1.0, seed=3), MIXES[name].draw(50, 4.0, seed=3)
    assert [each.request for each in slow] == [each.request for each in fast]
    assert [each.at for each in slow] == pytest.approx([4 * each.at for each in fast])
    assert MIXES[name].draw(50, 1.0, seed=4) != slow
    assert {each.at for each in MIXES[name].draw(50)} == {0.0}


def test_arrivals_come_at_their_rate_on_average() -> None:
    assert CHAT.draw(2000, 5.0)[-1].at == pytest.approx(400, rel=0.05)


def test_chat_has_a_long_tail_between_10_and_2000_tokens() -> None:
    outputs = [each.request.output_tokens for each in CHAT.draw(2000)]
    assert (min(outputs), max(outputs)) == (10, 2000)
    assert median(outputs) == pytest.approx(141, rel=0.1)
    assert mean(outputs) > 1.9 * median(outputs)


def test_retrieval_reads_five_tokens_for_each_that_it_writes() -> None:
    assert {(each.request.prompt_tokens, each.request.output_tokens) for each in RAG.draw(20)} == {
        (2000, 400)
    }


def test_code_reads_much_and_writes_little() -> None:
    requests = [each.request for each in CODE.draw(500)]
    assert median(request.prompt_tokens for request in requests) > 1000
    assert median(request.output_tokens for request in requests) < 20
