"""Tokens and output text without a model: about four characters per token."""

import hashlib
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 4
VOCABULARY = 32_000
# Tokens of the shortest answer that ends by itself.
_MIN_LENGTH = 64
_LENGTH_RANGE = 384

_TEXT = """
the of and to in is you it he was for on are as with his at be this have or one had by hot
but some we can out all your when up use how said an each she do if will way then them so
her make see him two has look more day go did my no its who now new any old
"""
# About three letters each, so that an answer counts the same when it comes back in a prompt.
_WORDS = _TEXT.split()
_LAST_WORD = re.compile(r" ?[a-z]+$")
_MAX_WORD = 8


def count_tokens(text: str) -> int:
    """Return the tokens of a text, at least one."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def pieces(text: str) -> list[str]:
    """Return the tokens of a text."""
    starts = range(0, max(1, len(text)), CHARACTERS_PER_TOKEN)
    return [text[start : start + CHARACTERS_PER_TOKEN] for start in starts]


def ids(text: str) -> list[int]:
    """Return the ids of the tokens of a text."""
    return list(map(token_id, pieces(text)))


def token_id(piece: str) -> int:
    """Return the id of a token; several tokens may share one."""
    return text_hash(piece) % VOCABULARY


def text_hash(text: str) -> int:
    """Return a number that is equal for equal texts."""
    return zlib.crc32(text.encode())


def word(number: int) -> str:
    """Return a token that an output could have."""
    return f" {_WORDS[number % len(_WORDS)]}"


def blocks(text: str, tokens: int) -> list[str]:
    """Return the full blocks of so many tokens that a text begins with."""
    size = tokens * CHARACTERS_PER_TOKEN
    return [text[end - size : end] for end in range(size, len(text) + 1, size)]


def prefix_hashes(pieces: Iterable[str], salt: str = "") -> tuple[int, ...]:
    """Return a name for each block and all before it: equal names mean equal prefixes.

    Those of another salt have other names.
    """
    key = hashlib.blake2b(salt.encode(), digest_size=16).digest() if salt else b""
    digest, hashes = hashlib.blake2b(digest_size=7, key=key), []
    for piece in pieces:
        digest.update(piece.encode())
        hashes.append(int.from_bytes(digest.digest()))
    return tuple(hashes)


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string within an output."""

    string: str
    characters: int
    """Characters of the output before it; the string itself is not shown."""
    tokens: int
    """Tokens of the output up to its end."""


class GeneratedText:
    """The output of a prompt, of any length: each token follows from all text before it.

    So an engine that gets the prompt with a part of the output goes on with the rest of it.
    """

    def __init__(self, prompt: str, sample_index: int = 0, answer: str | None = None) -> None:
        """Take the prompt, and the text with which it begins and ends by itself, if one is given.

        Outputs of other samples differ.
        """
        self._state = zlib.crc32(prompt.encode(), sample_index)
        self._follows_letter = prompt[-1:].isalpha()
        self._tokens: list[str] = []
        begun = begun_output(prompt)
        before = prompt[: len(prompt) - sum(map(len, begun))]
        length = _MIN_LENGTH + zlib.crc32(before.encode(), sample_index) % _LENGTH_RANGE
        self.natural_length = max(1, length - len(begun))
        """The tokens after which it would end by itself."""
        if answer is not None:
            self._tokens = pieces(answer)
            self.natural_length = len(self._tokens)

    def text(self, start: int, end: int) -> str:
        """Return the tokens `start` to `end` as one text."""
        return "".join(self.pieces(start, end))

    def pieces(self, start: int, end: int) -> list[str]:
        """Return the tokens `start` to `end`."""
        for _ in range(len(self._tokens), end):
            token = _next_token(self._state, follows_letter=self._follows_letter)
            self._state = zlib.crc32(token.encode(), self._state)
            self._follows_letter = True
            self._tokens.append(token)
        return self._tokens[start:end]

    def first_stop(self, stops: Sequence[str], tokens: int) -> StopMatch | None:
        """Return the first stop string among so many tokens."""
        if not stops:
            return None
        text = self.text(0, tokens)
        matches = [(text.index(stop), stop) for stop in stops if stop and stop in text]
        if not matches:
            return None
        start, stop = min(matches)
        return StopMatch(stop, start, self._tokens_for(start + len(stop)))

    def _tokens_for(self, characters: int) -> int:
        tokens = 0
        while characters > 0:
            characters -= len(self._tokens[tokens])
            tokens += 1
        return tokens


def begun_output(prompt: str) -> list[str]:
    """Return the tokens with which a prompt ends and that are the output of what is before them."""
    tokens: list[str] = []
    while (token := _last_token(prompt)) is not None:
        tokens.append(token)
        prompt = prompt[: -len(token)]
    return tokens[::-1]


def _last_token(prompt: str) -> str | None:
    last = _LAST_WORD.search(prompt[-_MAX_WORD:])
    if last is None:
        return None
    # The output itself may have begun behind the space.
    for token in (last[0], last[0].lstrip()):
        before = prompt[: -len(token)]
        follows_letter = before[-1:].isalpha()
        if _next_token(zlib.crc32(before.encode()), follows_letter=follows_letter) == token:
            return token
    return None


def _next_token(state: int, *, follows_letter: bool) -> str:
    word = _WORDS[(state * 0x9E3779B1 >> 13) % len(_WORDS)]
    return f" {word}" if follows_letter else word
