"""The blocks of a prompt's text, by which prompts with a common beginning are recognized."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

BLOCK_BYTES = 1024
# Of a longer prompt the beginning counts: a million bytes are about 250,000 tokens.
MAX_BLOCKS = 1024
# Python keeps an integer below 2^60 in 32 bytes, and a larger one in 48.
_HASH_MASK = 2**60 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTurns:
    """Where the turns of a prompt are, and the keys by which all gateways find its owner."""

    key: int
    """64 bits, of the conversation."""
    beginning_key: int
    """Of what precedes its first user message."""
    beginning_tokens: int
    opening_tokens: int
    """To the end of its first user message."""
    earlier_tokens: int
    """Before its last user message; 0 of a first turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBlocks:
    """The full blocks of one prompt."""

    owner: str
    """Whose prompts find each other in the cache of an engine: a tenant, or what several share."""
    hashes: Sequence[int]
    """Of each block with all before it, at most `MAX_BLOCKS`."""
    tokens_per_block: float
    prompt_tokens: int
    weight: float = 1.0
    """Share of the owner in the memory of all records, relative to others."""
    session: int | None = None
    """Hash of what the client calls its session, whose prompts are likely to begin alike."""
    turns: PromptTurns | None = None
    """None at a gateway that is alone, and of a prompt without an owner."""

    def tokens(self, blocks: int) -> int:
        """Return the tokens of so many blocks from the beginning."""
        return min(self.prompt_tokens, int(blocks * self.tokens_per_block))

    def counted(self, prompt_tokens: int) -> "PromptBlocks":
        """Return the same with so many tokens in all."""
        tokens_per_block = self.tokens_per_block * prompt_tokens / self.prompt_tokens
        return replace(self, tokens_per_block=tokens_per_block, prompt_tokens=prompt_tokens)


def block_hashes(text: bytes, salt: str) -> list[int]:
    """Return a hash of each full block of the text with the salt and all blocks before it.

    They are equal in one process alone, whose secret key they have (`PYTHONHASHSEED`): each gateway
    has its own record. Two texts of the same hash cost time, and change no answer.
    """
    chained, hashes = hash(salt), list[int]()
    last = min(len(text), MAX_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES
    for start in range(0, last + 1, BLOCK_BYTES):
        chained = hash((chained, text[start : start + BLOCK_BYTES])) & _HASH_MASK
        hashes.append(chained)
    return hashes
