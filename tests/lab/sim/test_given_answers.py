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
    given = given_answers({"TESSERA_SIM_ANSWERS": json.dumps({"file": str(file), **options})})
    return {prompt: answer.text for prompt, answer in given.items()}


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


async def test_a_tool_is_called_with_the_expected_arguments(tmp_path: Path) -> None:
    call = {"name": "search", "arguments": {"city": "Oslo", "days": 3}}
    row = {"messages": asked("how"), "scorer": "toolCall", "expected": call}
    file = tmp_path / "suite.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    tools = [{"type": "function", "function": {"name": "search"}}]
    async with running(TESSERA_SIM_ANSWERS=json.dumps({"file": str(file)})) as engine:
        path, body = "/v1/chat/completions", {"messages": asked("how"), "tools": tools}
        [choice] = (await engine.post(path, **body)).json()["choices"]
        events = await engine.stream(path, **body)
        [text] = (await engine.post(path, messages=asked("how"))).json()["choices"]
    [whole] = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    deltas = [each["choices"][0]["delta"] for each in events[:-1]]
    parts = [part["function"] for delta in deltas for part in delta.get("tool_calls", ())]
    assert [part.get("name") for part in parts] == ["search"] + [None] * (len(parts) - 1)
    for arguments in (whole["function"]["arguments"], "".join(part["arguments"] for part in parts)):
        assert json.loads(arguments) == call["arguments"]
    assert text["message"]["content"] == whole["function"]["arguments"]


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
        ({"scorer": "jsonSchema", "expected": {"const": {"a": 1}}}, '{"a": 1}'),
        ({"scorer": "jsonSchema", "expected": {"type": "object"}}, None),
        ({"scorer": "toolCall", "expected": {"name": "search"}}, None),
        ({"scorer": "judge", "expected": {"criterion": "is polite"}}, None),
    ],
)
def test_a_right_answer_follows_from_what_the_scorer_expects(
    fields: dict[str, Any], answer: str | None
) -> None:
    right = AnsweredRow.model_validate({"messages": asked("a"), **fields}).right
    assert (right and right.text) == answer
