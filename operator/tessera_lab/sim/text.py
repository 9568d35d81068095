"""Tokens and answers without a model: about four characters a token, the same for equal prompts."""

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
    """Tokens of a text, at least one."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def pieces(text: str) -> list[str]:
    """The tokens of a text."""
    starts = range(0, max(1, len(text)), CHARACTERS_PER_TOKEN)
    return [text[start : start + CHARACTERS_PER_TOKEN] for start in starts]


def ids(text: str) -> list[int]:
    """The same tokens as numbers."""
    return list(map(token_id, pieces(text)))


def token_id(piece: str) -> int:
    """The number of a token; several tokens may share one."""
    return text_hash(piece) % VOCABULARY


def text_hash(text: str) -> int:
    """Some number, equal for equal texts."""
    return zlib.crc32(text.encode())


def word(number: int) -> str:
    """Some token that an answer could have."""
    return f" {_WORDS[number % len(_WORDS)]}"


def blocks(text: str, tokens: int) -> list[str]:
    """The whole pieces of so many tokens that a text begins with."""
    size = tokens * CHARACTERS_PER_TOKEN
    return [text[end - size : end] for end in range(size, len(text) + 1, size)]


def prefix_hashes(pieces: Iterable[str]) -> tuple[int, ...]:
    """A name for each piece and all before it: equal for equal beginnings."""
    digest, hashes = hashlib.blake2b(digest_size=7), []
    for piece in pieces:
        digest.update(piece.encode())
        hashes.append(int.from_bytes(digest.digest()))
    return tuple(hashes)


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string within an answer."""

    string: str
    characters: int
    """Of the answer before it; the string itself is not shown."""
    tokens: int
    """Of the answer up to its end."""


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """The text that answers a prompt, as long as anybody wants to read it."""

    seed: int

    @property
    def natural_length(self) -> int:
        """Tokens after which it would end by itself."""
        return _MIN_LENGTH + self.seed % _LENGTH_RANGE

    def text(self, start: int, end: int) -> str:
        """Tokens `start` to `end`."""
        return "".join(self.pieces(start, end))

    def pieces(self, start: int, end: int) -> list[str]:
        """The same, one by one."""
        return list(map(self._piece, range(start, end)))

    def first_stop(self, stops: Sequence[str], tokens: int) -> StopMatch | None:
        """Where the first stop string appears among so many tokens."""
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
    """Equal prompts get equal answers; who asks for several gets different ones."""
    return GeneratedText(zlib.crc32(prompt.encode(), sample_index))
