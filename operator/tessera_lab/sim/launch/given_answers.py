"""Answers to the prompts of a file, a share of which the engine answers wrongly."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tessera_lab.sim.bodies import ChatMessage, ConversationBody, chat_prompt
from tessera_lab.sim.errors import EngineApiError, EngineExit
from tessera_lab.sim.launch.environment import ANSWERS

_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """What the engine answers to a prompt."""

    text: str
    tool: str | None = None
    """The tool that it calls, with the text as arguments."""


class AnswersOption(BaseModel):
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
    def right(self) -> GivenAnswer | None:
        """Return a right answer; None for a row that does not say any."""
        if self.example is not None:
            return GivenAnswer(self.example)
        expected = self.expected
        if self.scorer == "toolCall" and isinstance(expected, dict) and "arguments" in expected:
            return GivenAnswer(json.dumps(expected["arguments"]), str(expected.get("name")))
        if self.scorer == "jsonSchema" and isinstance(expected, dict) and "const" in expected:
            return GivenAnswer(json.dumps(expected["const"]))
        if self.scorer in ("regex", "toolCall", "jsonSchema"):
            return None
        if isinstance(expected, dict):  # a number with a tolerance, or the right choice
            expected = expected.get("value", expected.get("answer"))
        if isinstance(expected, list):
            texts = map(str, expected if self.scorer == "contains" else expected[:1])
            return GivenAnswer(" ".join(texts))
        return None if expected is None else GivenAnswer(str(expected))


def given_answers(env: Mapping[str, str]) -> Mapping[str, GivenAnswer]:
    """Return the answers by prompt, as the chat template renders it; raise EngineExit."""
    text = env.get(ANSWERS)
    if not text:
        return {}
    try:
        option = AnswersOption.model_validate_json(text)
        lines = option.file.read_text(encoding="utf-8").splitlines()
        rows = [AnsweredRow.model_validate_json(line) for line in lines if line.strip()]
        asked = [(row.stratum, chat_prompt(row).text, row.right) for row in rows if row.messages]
    except (ValidationError, EngineApiError, OSError, UnicodeDecodeError) as error:
        raise EngineExit(1, f"{ANSWERS}: {error}") from error
    answers: dict[str, GivenAnswer] = {}
    for stratum, group in groupby(sorted(asked, key=lambda row: row[0]), key=lambda row: row[0]):
        rights = [(prompt, right) for _, prompt, right in group if right is not None]
        answers |= _of_stratum(stratum, rights, option)
    return answers


def _of_stratum(
    stratum: str, rights: Sequence[tuple[str, GivenAnswer]], option: AnswersOption
) -> Mapping[str, GivenAnswer]:
    """Return its answers: a wrong one is the next different one of the same stratum."""
    count = round(option.strata.get(stratum, option.wrong_share) * len(rights))
    answers = dict(rights)
    for prompt in sorted(answers, key=lambda prompt: _rank(prompt, option.seed))[:count]:
        place = [each for each, _ in rights].index(prompt)
        following = (right for _, right in (*rights[place:], *rights[:place]))
        wrong = (right for right in following if right != rights[place][1])
        answers[prompt] = next(wrong, GivenAnswer("I cannot say."))
    return answers


def _rank(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {prompt}".encode(), digest_size=8).digest()
