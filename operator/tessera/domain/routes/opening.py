"""What routes know of a request: what every turn of its conversation carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.model_route import MAX_RULE_NUMBER

# One more than any condition or signal counts, so that a longer text reads as longer.
MAX_OPENING_CHARACTERS = MAX_RULE_NUMBER + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOpening:
    """The opening of a conversation, the same in all its turns."""

    text: str = ""
    """The first message of the user, of a long one the first `MAX_OPENING_CHARACTERS`."""
    tools: bool = False
    """Whether the request offers tools."""
    media: bool = False
    """Whether the first message has images or clips."""
    tags: Mapping[str, str] = field(default_factory=dict)
    session: bytes = b""
    """Digest of what tells the conversation from others."""
