"""How many tokens a model can have by its rotary embedding, and how many vLLM derives of its files.

The two differ where YaRN extends a context: vLLM 0.30 to 0.33 take `max_position_embeddings` as
extended already, and many files keep the original number beside a factor.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tessera.domain.model.config_keys import Keys, UnsupportedConfigError, part

# Types whose `max_position_embeddings` vLLM does not multiply by their factor.
_UNMULTIPLIED = frozenset(
    ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
)
_YARN = frozenset(("yarn", "deepseek_yarn"))
_MAX_POSITIONS = 100_000_000
# No model reads a thousandth of this beyond what it was trained for.
_MAX_FACTOR = 100_000


class Positions(NamedTuple):
    """Lengths of a context, in tokens."""

    longest: int
    """What the embedding reaches."""
    derived: int
    """What the engine accepts without a variable that allows more."""


def positions_of(keys: Keys, config: Mapping[str, Any]) -> Positions:
    """Return the lengths; `config` is the whole configuration, of which `keys` may be a part.

    Raises UnsupportedConfigError for a factor that is none.
    """
    for section in (config, keys.values):
        if (fault := factor_fault(section)) is not None:
            raise UnsupportedConfigError(
                f"{fault}; take the config.json of the repository as it is"
            )
    declared = keys.get("model_max_length") or keys["max_position_embeddings"]
    # vLLM reads factors at the top level alone, and Gemma 3 has its number multiplied already.
    top = () if "gemma3" in str(config.get("model_type", "")) else _ropes(config)
    # The last kind of layer that has a factor decides for all.
    factors = [
        _factor(rope)
        for rope in top
        if _type(rope) not in _UNMULTIPLIED and rope.get("factor") is not None
    ]
    derived = _multiplied(declared, factors[-1] if factors else 1)
    original = keys.get("original_max_position_embeddings")
    reached = [
        _multiplied(original or _original(rope) or declared, _factor(rope))
        for rope in _ropes(keys.values)
        if _type(rope) in _YARN
    ]
    return Positions(max(derived, *reached, 0), derived)


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the rotary embeddings of a configuration: one, or one of each kind of layer."""
    section = part(config, "rope_parameters") or part(config, "rope_scaling")
    kinds = [value for value in section.values() if isinstance(value, Mapping)]
    yield from kinds or ([section] if section else [])


def _type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def factor_fault(config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the factor of a rotary embedding; None if an engine reads it."""
    for rope in _ropes(config):
        factor = rope.get("factor")
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if factor is not None and not (is_number and 0 < factor <= _MAX_FACTOR):
            key = "rope_parameters" if part(config, "rope_parameters") else "rope_scaling"
            kind, value = _type(rope)[:40], repr(factor)[:40]
            return f"{key}: factor {value} of {kind} is no number above 0 and up to {_MAX_FACTOR}"
    return None


def _factor(rope: Mapping[str, Any]) -> float:
    return rope.get("factor") or 1


def _original(rope: Mapping[str, Any]) -> int | None:
    return Keys(rope).get("original_max_position_embeddings")


def _multiplied(positions: int, factor: float) -> int:
    return min(int(positions * factor), _MAX_POSITIONS)
