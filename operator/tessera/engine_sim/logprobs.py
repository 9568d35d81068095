"""Log-probabilities of a model that does not exist: plausible, and equal for equal answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.engine_sim import text

_STEP = 0.75
"""By so much every further candidate is less likely at least."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could stand at a place; the first one is the one that does."""

    piece: str
    logprob: float


def candidates(piece: str, place: int, count: int) -> tuple[Candidate, ...]:
    """The chosen token and the next best ones, `count` in all and at least the chosen one."""
    drawn = text.number(f"{piece}{place}")
    first = -(drawn % 1000) / 1000
    others = (text.word(drawn + rank) for rank in range(1, 2 * count + 8))
    distinct = [one for one in dict.fromkeys(others) if one != piece][: max(0, count - 1)]
    return (
        Candidate(piece, first),
        *(
            Candidate(other, first - _STEP * rank - drawn % 97 / 400)
            for rank, other in enumerate(distinct, 1)
        ),
    )


def of_chat(pieces: Sequence[str], start: int, count: int) -> dict[str, Any]:
    """For `/v1/chat/completions`: `count` alternatives of each token."""
    content = []
    for place, piece in enumerate(pieces, start):
        found = candidates(piece, place, count)
        alternatives = [_spelt(one) for one in found[:count]]
        content.append({**_spelt(found[0]), "top_logprobs": alternatives})
    return {"content": content}


def of_completion(
    pieces: Sequence[str], start: int, count: int, offset: int, *, begins: bool = False
) -> dict[str, Any]:
    """For `/v1/completions`; the first token of an echoed prompt `begins` and has no number."""
    offsets, numbers, tops = [], [], []
    for place, piece in enumerate(pieces, start):
        found = candidates(piece, place, count)
        unknown = begins and place == start
        offsets.append(offset)
        numbers.append(None if unknown else found[0].logprob)
        tops.append(None if unknown else {one.piece: one.logprob for one in found})
        offset += len(piece)
    return {
        "text_offset": offsets,
        "token_logprobs": numbers,
        "tokens": list(pieces),
        "top_logprobs": tops,
    }


def of_prompt(pieces: Sequence[str], count: int) -> list[dict[str, Any] | None]:
    """For `prompt_logprobs`: nothing for the first token, for the others by the token's number."""
    return [None, *_prompt_places(pieces[1:], count)]


def _prompt_places(pieces: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    for place, piece in enumerate(pieces, 1):
        found = candidates(piece, place, count + 1)
        yield {
            str(text.ids(one.piece)[0]): {
                "logprob": one.logprob,
                "rank": rank,
                "decoded_token": one.piece,
            }
            for rank, one in enumerate(found, 1)
        }


def _spelt(one: Candidate) -> dict[str, Any]:
    return {"token": one.piece, "logprob": one.logprob, "bytes": list(one.piece.encode())}
