"""Answers to the prompts of a file, a share of which the engine answers wrongly."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tessera_lab.sim.bodies import ChatMessage, ConversationBody, chat_prompt
from tessera_lab.sim.errors import EngineApiError, EngineExit
from tessera_lab.sim.launch.environment import ANSWERS

_Share = Annotated[float, Field(ge=0, le=1)]


class GivenAnswers(BaseModel):
    """The environment variable: which file, and how much of it is answered wrongly."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    file: Path
    wrong_share: _Share = 0.0
    strata: dict[str, _Share] = Field(default_factory=dict)
    """Shares of strata that differ from the others."""
    seed: int = 0
    """Which of the prompts are answered wrongly; a larger share adds others to them."""


class AnsweredRow(ConversationBody):
    """A row of the file, which is the suite of a quality gate."""

    messages: list[ChatMessage] = Field(default_factory=list)
    stratum: str = ""
    scorer: str = ""
    expected: Any = None
    example: str | None = None

    @property
    def right(self) -> str | None:
        """Return a right answer; None for a row that does not say any."""
        if self.example is not None:
            return self.example
        expected = self.expected
        if isinstance(expected, dict):  # a number with a tolerance, or the right choice
            expected = expected.get("value", expected.get("answer"))
        if isinstance(expected, list) and all(isinstance(text, str) for text in expected):
            return " ".join(expected if self.scorer == "contains" else expected[:1])
        if isinstance(expected, int | float):
            return json.dumps(expected)
        return expected if isinstance(expected, str) and self.scorer != "regex" else None


def given_answers(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return the answers by prompt, as the chat template renders it; raise EngineExit."""
    text = env.get(ANSWERS)
    if not text:
        return {}
    try:
        given = GivenAnswers.model_validate_json(text)
        lines = given.file.read_text(encoding="utf-8").splitlines()
        rows = [AnsweredRow.model_validate_json(line) for line in lines if line.strip()]
        rights = [(row.stratum, chat_prompt(row).text, row.right) for row in rows if row.messages]
    except (ValidationError, EngineApiError, OSError, UnicodeDecodeError) as error:
        raise EngineExit(1, f"{ANSWERS}: {error}") from error
    ordered = sorted((each for each in rights if each[2] is not None), key=lambda row: row[0])
    answers: dict[str, str] = {}
    for stratum, group in groupby(ordered, key=lambda row: row[0]):
        answers |= _of_stratum(stratum, [(prompt, str(right)) for _, prompt, right in group], given)
    return answers


def _of_stratum(
    stratum: str, rows: Sequence[tuple[str, str]], given: GivenAnswers
) -> Mapping[str, str]:
    """Return its answers: a wrong one is the next different one of the same stratum."""
    count = round(given.strata.get(stratum, given.wrong_share) * len(rows))
    answers = dict(rows)
    for prompt in sorted(answers, key=lambda prompt: _rank(prompt, given.seed))[:count]:
        place = rows.index((prompt, answers[prompt]))
        following = (right for _, right in (*rows[place:], *rows[:place]))
        wrong = next((right for right in following if right != rows[place][1]), None)
        answers[prompt] = "I cannot say." if wrong is None else wrong
    return answers


def _rank(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {prompt}".encode(), digest_size=8).digest()
