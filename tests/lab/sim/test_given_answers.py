"""Answers to the prompts of a suite, some of them wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.given_answers import AnsweredRow, given_answers
from tests.lab.sim.running import running


def asked(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def write_suite(folder: Path, count: int = 20) -> Path:
    """Write sums and words, `count` of each, and a row without an answer."""
    rows: list[dict[str, Any]] = [
        {"messages": asked(f"{n}+{n}="), "stratum": "sums", "expected": 2 * n} for n in range(count)
    ]
    rows += [
        {"messages": asked(f"say {n}"), "stratum": "words", "expected": {}, "example": f"word {n}"}
        for n in range(count)
    ]
    rows.append({"query": "a", "documents": ["b"], "expected": [0]})
    file = folder / "suite.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def answers_of(file: Path, **options: Any) -> dict[str, str]:
    return dict(given_answers({"TESSERA_SIM_ANSWERS": json.dumps({"file": str(file), **options})}))


async def test_prompts_of_the_file_get_their_answers_and_others_the_usual_words(
    tmp_path: Path,
) -> None:
    given = json.dumps({"file": str(write_suite(tmp_path))})
    async with running(TESSERA_SIM_ANSWERS=given) as engine:
        path = "/v1/chat/completions"
        right = (await engine.post(path, messages=asked("7+7="))).json()
        text = (await engine.post(path, messages=asked("say 3"), logprobs=True)).json()
        events = await engine.stream(path, messages=asked("say 3"))
        other = (await engine.post(path, messages=asked("7+8="), max_tokens=5)).json()
    [choice] = right["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("14", "stop")
    assert right["usage"]["completion_tokens"] == 1
    assert text["choices"][0]["message"]["content"] == "word 3"
    pieces = [each["choices"][0]["delta"].get("content", "") for each in events[:-1]]
    assert "".join(pieces) == "word 3"
    assert other["choices"][0]["finish_reason"] == "length"


def test_a_share_of_each_stratum_is_wrong_with_another_answer_of_it(tmp_path: Path) -> None:
    file = write_suite(tmp_path)
    right = answers_of(file)
    wrong = answers_of(file, wrongShare=0.1, strata={"words": 0.5})
    changed = {prompt for prompt in right if right[prompt] != wrong[prompt]}
    assert len([prompt for prompt in changed if "+" in prompt]) == 2
    assert len([prompt for prompt in changed if "say" in prompt]) == 10
    assert all(wrong[prompt].isdigit() == right[prompt].isdigit() for prompt in changed)
    assert set(wrong.values()) <= set(right.values())


def test_a_larger_share_adds_to_a_smaller_and_another_seed_draws_others(tmp_path: Path) -> None:
    file = write_suite(tmp_path)
    right = answers_of(file)

    def changed(share: float, seed: int = 0) -> set[str]:
        wrong = answers_of(file, wrongShare=share, seed=seed)
        return {prompt for prompt in right if right[prompt] != wrong[prompt]}

    assert changed(0.1) < changed(0.3)
    assert changed(0.3) != changed(0.3, seed=1)
    assert changed(0.3) == changed(0.3)


@pytest.mark.parametrize("value", ["[]", '{"file": "/missing"}', '{"file": "x", "wrongShare": 2}'])
def test_what_cannot_be_read_ends_the_start(value: str) -> None:
    with pytest.raises(EngineExit, match="TESSERA_SIM_ANSWERS"):
        given_answers({"TESSERA_SIM_ANSWERS": value})


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"scorer": "number", "expected": {"value": 1.5, "tolerance": 0.1}}, "1.5"),
        ({"scorer": "choice", "expected": {"choices": ["A", "B"], "answer": "B"}}, "B"),
        ({"scorer": "contains", "expected": ["red", "blue"]}, "red blue"),
        ({"scorer": "exact", "expected": ["red", "blue"]}, "red"),
        ({"scorer": "regex", "expected": "^a+$"}, None),
        ({"scorer": "regex", "expected": "^a+$", "example": "aa"}, "aa"),
        ({"scorer": "toolCall", "expected": {"name": "search"}}, None),
    ],
)
def test_a_right_answer_follows_from_what_the_scorer_expects(
    fields: dict[str, Any], answer: str | None
) -> None:
    assert AnsweredRow.model_validate({"messages": asked("a"), **fields}).right == answer
