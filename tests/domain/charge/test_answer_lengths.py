"""What is reserved of an answer whose length is not known."""

from tessera.domain.charge.answer_lengths import UNKNOWN_P95_TOKENS, AnswerLengths


def test_too_few_answers_say_nothing() -> None:
    lengths = AnswerLengths()
    for _ in range(19):
        lengths.add(7)
    assert lengths.p95 == UNKNOWN_P95_TOKENS == 1024


def test_one_in_twenty_is_longer() -> None:
    lengths = AnswerLengths()
    for tokens in range(1, 201):
        lengths.add(tokens)
    assert lengths.p95 == 191


def test_old_answers_are_forgotten() -> None:
    lengths = AnswerLengths()
    for tokens in [5000] * 200 + [3] * 200:
        lengths.add(tokens)
    assert lengths.p95 == 3
