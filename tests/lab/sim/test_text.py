from hypothesis import given
from hypothesis import strategies as st

from tessera_lab.sim import text
from tessera_lab.sim.text import GeneratedText


@given(st.text(max_size=200))
def test_a_text_has_about_a_token_for_four_characters_and_at_least_one(words: str) -> None:
    assert text.count_tokens(words) == len(text.ids(words)) == max(1, (len(words) + 3) // 4)


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_pieces_of_an_answer_join_to_the_same_text(prompt: str, first: int, second: int) -> None:
    answer = GeneratedText(prompt)
    whole = answer.text(0, first + second)
    assert answer.text(0, first) + answer.text(first, first + second) == whole


def test_an_answer_counts_about_as_many_tokens_when_it_comes_back_as_a_prompt() -> None:
    lengths = [text.count_tokens(GeneratedText(str(seed)).text(0, 400)) for seed in range(50)]
    assert all(340 <= length <= 440 for length in lengths)


@given(st.text(), st.integers(0, 60), st.integers(1, 9))
def test_a_stop_string_is_found_with_the_token_that_completes_it(
    prompt: str, start: int, length: int
) -> None:
    answer = GeneratedText(prompt)
    whole = answer.text(0, 80)
    stop = whole[start : start + length]
    match = answer.first_stop([stop, "absent"], 80)
    assert match is not None
    assert match.characters == whole.index(stop)
    assert stop in answer.text(0, match.tokens)
    assert stop not in answer.text(0, match.tokens - 1)


@given(st.text(), st.integers(0, 40), st.integers(1, 40))
def test_a_prompt_with_a_part_of_its_output_goes_on_with_the_rest(
    prompt: str, begun: int, rest: int
) -> None:
    answer = GeneratedText(prompt)
    continued = GeneratedText(prompt + answer.text(0, begun))
    assert continued.pieces(0, rest) == answer.pieces(begun, begun + rest)
    assert continued.natural_length == answer.natural_length - begun
