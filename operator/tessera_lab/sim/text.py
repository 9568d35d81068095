"""Tokens and output text without a model: about four characters per token."""

import hashlib
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


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The output of a prompt, of any length."""

    seed: int

    @property
    def natural_length(self) -> int:
        """Return the tokens after which it would end by itself."""
        return _MIN_LENGTH + self.seed % _LENGTH_RANGE

    def text(self, start: int, end: int) -> str:
        """Return the tokens `start` to `end` as one text."""
        return "".join(self.pieces(start, end))

    def pieces(self, start: int, end: int) -> list[str]:
        """Return the tokens `start` to `end`."""
        return list(map(self._piece, range(start, end)))

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
            characters -= len(self._piece(tokens))
            tokens += 1
        return tokens

    def _piece(self, token: int) -> str:
        word = _WORDS[((self.seed ^ (token * 0x9E3779B1)) >> 13) % len(_WORDS)]
        return f" {word}" if token else word


def generate_text(prompt: str, sample_index: int = 0) -> GeneratedText:
    """Return the output of a prompt: equal for equal prompts, different for each sample."""
    return GeneratedText(zlib.crc32(prompt.encode(), sample_index))
