"""The keys of a `config.json`, read so that what is missing or of another kind is said."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UnsupportedConfigError(Exception):
    """A key is missing or has an unsupported value; the text says what to do."""


def part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object within another, empty if it is absent."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def object_part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object within another, empty if it is absent or null; another value is refused."""
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise UnsupportedConfigError(
            f"{key} {repr(value)[:40]} is no object; take the config.json of the repository as it "
            "is"
        )
    return value or {}


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the language model, under the names that its architecture gives them."""

    values: Mapping[str, Any]

    def __getitem__(self, key: str) -> int:
        value = self.get(key)
        if value is None or value < 1:
            raise UnsupportedConfigError(
                f"{key} is missing or not a positive number; take the config.json of the "
                "repository as it is"
            )
        return value

    def get(self, *keys: str) -> int | None:
        """Return the first of the keys that is a number."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        return value if isinstance(value, bool) else default

    @property
    def model_type(self) -> str:
        return str(self.values.get("model_type", ""))
