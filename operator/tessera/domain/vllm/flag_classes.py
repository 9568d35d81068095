"""The class of each flag of `vllm serve`, which says what Tessera does with it in `extraArgs`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import TypeAlias

from pydantic import TypeAdapter

from tessera.domain.incremental import constant


class FlagClass(StrEnum):
    """The classes; each flag of a shipped table has one, which `make lint-code` checks."""

    NEUTRAL = "neutral"
    """Memory, capacity and price are right with it."""
    COUNTED = "counted"
    """Memory, capacity and price are computed with it."""
    SET = "set"
    """A field sets it, or Tessera does."""
    REFUSED = "refused"
    """It changes memory, speed or the API in a way that is computed nowhere."""


@dataclass(frozen=True, slots=True)
class FlagRule:
    """The class of a flag, with the words for its author.

    `note` names what a neutral flag is about, what a counted one changes, what sets one, and why
    and with what remedy one is refused.
    """

    flag_class: FlagClass
    note: str


# Flags by note; those that are set are alone under their name.
_Groups: TypeAlias = dict[str, list[str] | str]


@constant
def flag_rules() -> Mapping[str, FlagRule]:
    """Return the rules by the flag's destination, or by `destination.key` of a JSON flag."""
    text = resources.files("tessera.domain").joinpath("data/flag-classes.json").read_text("utf-8")
    return parse_rules(TypeAdapter(dict[FlagClass, _Groups]).validate_json(text))


def parse_rules(classes: Mapping[FlagClass, _Groups]) -> Mapping[str, FlagRule]:
    """Return the rules of the classes; ValueError where a flag has two."""
    rules: dict[str, FlagRule] = {}
    for flag_class, groups in classes.items():
        for key, value in groups.items():
            note, names = (value, [key]) if isinstance(value, str) else (key, value)
            for name in names:
                if name in rules:
                    raise ValueError(f"{name} has two classes")
                rules[name] = FlagRule(flag_class, note)
    return rules
