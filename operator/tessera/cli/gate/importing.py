"""Rows of a suite from the log of samples that lm-eval writes with `--log_samples`."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.batch_runner.gate.scorers import MAX_CHOICES, parse_json

# `samples_<task>_2026-11-29T01-02-03.456.jsonl`
_FILE_NAME = re.compile(r"^samples_(.+?)_\d{4}-\d\d-\d\dT")
_LETTERS = "ABCDEFGHIJKLMNOPQRST"
# A choice that is as short is a token, whose probability the model is asked for.
_TOKEN_LENGTH = 3
_MAX_ANSWER_LENGTH = 200
_DEFAULT_TOKENS = 512


@dataclass(slots=True)
class ImportedRows:
    """Rows of a suite, and why other samples are none."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    questions: set[str] = field(default_factory=set)

    def read(self, lines: Iterable[str], stratum: str) -> None:
        """Add the rows of a log."""
        for line in lines:
            if not line.strip():
                continue
            try:
                sample = parse_json(line)
                row = _row(sample if isinstance(sample, dict) else {})
            except ValueError as error:
                self.skipped[str(error)] += 1
                continue
            # Each filter of a task logs all its samples.
            question = json.dumps(row["messages"], sort_keys=True)
            if question not in self.questions:
                self.questions.add(question)
                self.rows.append(
                    {"id": f"{stratum}-{len(self.rows) + 1}", "stratum": stratum} | row
                )


def stratum_of(name: str) -> str:
    """Return a stratum named by the task of a log file."""
    task = match[1] if (match := _FILE_NAME.match(name)) else name.partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:40].strip("-") or "imported"


def _row(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a sample; ValueError says why there is none."""
    requests = _requests(sample.get("arguments"))
    target = sample.get("target")
    if len(requests) == 1 and isinstance(requests[0][1], Mapping):
        limit = requests[0][1].get("max_gen_toks")
        max_tokens = limit if type(limit) is int and 0 < limit <= 32_768 else _DEFAULT_TOKENS
        return {
            "messages": _messages(requests[0][0]),
            "maxTokens": max_tokens,
            **_expected(target),
        }
    choices = [text.strip() for _, text in requests if isinstance(text, str)]
    if len(choices) < 2 or len({str(prompt) for prompt, _ in requests}) > 1:
        raise ValueError("samples of likelihoods, which no chat answer has")
    if len(choices) < len(requests) or len(set(choices)) < len(choices):
        raise ValueError("samples whose choices are not different texts")
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"samples with more than {MAX_CHOICES} choices")
    right = _right_choice(target, choices)
    messages = _messages(requests[0][0])
    if max(map(len, choices)) > _TOKEN_LENGTH:
        listed = "\n".join(
            f"{letter}. {text}" for letter, text in zip(_LETTERS, choices, strict=False)
        )
        content = f"{messages[-1]['content']}\n\n{listed}\nAnswer with the letter alone."
        messages[-1] = {**messages[-1], "content": content}
        choices = list(_LETTERS[: len(choices)])
    expected = {"choices": choices, "answer": choices[right]}
    return {"messages": messages, "scorer": "choice", "expected": expected}


def _requests(arguments: Any) -> list[tuple[Any, Any]]:
    """Return prompt and second argument of each request, in the form of either version."""
    if isinstance(arguments, Mapping):
        fields = [each for each in arguments.values() if isinstance(each, Mapping)]
        arguments = [(each.get("arg_0"), each.get("arg_1", {})) for each in fields]
    pairs = [
        (each[0], each[1])
        for each in arguments or ()
        if isinstance(each, list | tuple) and len(each) > 1
    ]
    if not pairs:
        raise ValueError("samples without arguments, such as those of another program")
    return pairs


def _messages(prompt: Any) -> list[dict[str, Any]]:
    """Return the messages: of a chat template a list with their JSON is logged."""
    text = prompt[0] if isinstance(prompt, list) and prompt else prompt
    if not isinstance(text, str) or not text.strip():
        raise ValueError("samples without a prompt")
    if isinstance(prompt, list):
        messages = parse_json(text)
        if (
            isinstance(messages, list)
            and messages
            and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages)
        ):
            return messages
        raise ValueError("samples without a prompt")
    return [{"role": "user", "content": text}]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _expected(target: Any) -> dict[str, Any]:
    """Return the scorer of a text that has to be in the answer; a number after #### is one."""
    text = str(target if not isinstance(target, list) or not target else target[0])
    text = text.rpartition("####")[2].strip()
    digits = text.replace(",", "").removeprefix("$")
    if re.fullmatch(r"-?\d{1,15}(\.\d{1,9})?", digits):
        number = float(digits)
        return {"scorer": "number", "expected": int(number) if number.is_integer() else number}
    if not text or len(text) > _MAX_ANSWER_LENGTH or "\n" in text:
        raise ValueError(
            "samples whose target is no short text, such as tests of code, which is not run"
        )
    return {"scorer": "contains", "expected": text}


def _right_choice(target: Any, choices: list[str]) -> int:
    if isinstance(target, str) and target.strip() in choices:
        return choices.index(target.strip())
    if isinstance(target, str) and target.isascii() and target.isdigit() and len(target) < 3:
        target = int(target)
    if type(target) is int and 0 <= target < len(choices):
        return target
    raise ValueError("samples whose target is none of their choices")
