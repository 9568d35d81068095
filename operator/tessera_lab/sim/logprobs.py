"""Made-up log-probabilities: plausible, and equal for equal output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tessera_lab.sim import text

# By so much every further candidate is less likely at least.
_LOGPROB_STEP = 0.75


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could be at a position; the first candidate is the chosen one."""

    piece: str
    logprob: float


def candidates(piece: str, place: int, count: int) -> tuple[Candidate, ...]:
    """Return the chosen token and the next best ones, `count` in all and at least one."""
    seed = text.text_hash(f"{piece}{place}")
    first = -(seed % 1000) / 1000
    words = (text.word(seed + rank) for rank in range(1, 2 * count + 8))
    distinct = [word for word in dict.fromkeys(words) if word != piece][: max(0, count - 1)]
    return (
        Candidate(piece, first),
        *(
            Candidate(other, first - _LOGPROB_STEP * rank - seed % 97 / 400)
            for rank, other in enumerate(distinct, 1)
        ),
    )


def chat_logprobs(pieces: Sequence[str], start: int, count: int) -> dict[str, Any]:
    """Return `count` alternatives per token, for `/v1/chat/completions`."""
    content = []
    for place, piece in enumerate(pieces, start):
        ranked = candidates(piece, place, count)
        alternatives = [_candidate_json(candidate) for candidate in ranked[:count]]
        content.append({**_candidate_json(ranked[0]), "top_logprobs": alternatives})
    return {"content": content}


def completion_logprobs(
    pieces: Sequence[str], start: int, count: int, offset: int, *, begins: bool = False
) -> dict[str, Any]:
    """Return alternatives for `/v1/completions`; an echoed prompt's first token has none."""
    offsets, numbers, alternatives = [], [], []
    for place, piece in enumerate(pieces, start):
        ranked = candidates(piece, place, count)
        is_first = begins and place == start
        offsets.append(offset)
        numbers.append(None if is_first else ranked[0].logprob)
        alternatives.append(
            None if is_first else {candidate.piece: candidate.logprob for candidate in ranked}
        )
        offset += len(piece)
    return {
        "text_offset": offsets,
        "token_logprobs": numbers,
        "tokens": list(pieces),
        "top_logprobs": alternatives,
    }


def prompt_logprobs(pieces: Sequence[str], count: int) -> list[dict[str, Any] | None]:
    """Return alternatives by token id for `prompt_logprobs`; the first token has none."""
    return [None, *_prompt_positions(pieces[1:], count)]


def _prompt_positions(pieces: Sequence[str], count: int) -> Iterator[dict[str, Any]]:
    for place, piece in enumerate(pieces, 1):
        ranked = candidates(piece, place, count + 1)
        yield {
            str(text.ids(candidate.piece)[0]): {
                "logprob": candidate.logprob,
                "rank": rank,
                "decoded_token": candidate.piece,
            }
            for rank, candidate in enumerate(ranked, 1)
        }


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    piece = candidate.piece
    return {"token": piece, "logprob": candidate.logprob, "bytes": list(piece.encode())}
