"""What today's coding clients send, as their sources say.

A client that changes what it sends gets a new date. `tests/gateway/bodies/test_coding_clients.py`
has a default request of each, which passes to models of one tenant and of several.
"""

from collections.abc import Mapping
from datetime import date
from typing import NamedTuple


class CodingClient(NamedTuple):
    """A client for coding, by what tells its conversations apart."""

    name: str
    session_headers: tuple[str, ...]
    """Headers with the id of a conversation, in lower case; empty where it sends none."""
    paths: tuple[str, ...]
    source: str
    """Where it was read."""
    read_on: date


CODING_CLIENTS = (
    CodingClient(
        "Claude Code",
        # Since 2.1.86.
        ("x-claude-code-session-id",),
        ("/v1/messages", "/v1/messages/count_tokens"),
        "https://code.claude.com/docs/en/llm-gateway-protocol",
        date(2026, 11, 28),
    ),
    CodingClient(
        "Codex",
        # Earlier versions wrote it with an underscore.
        ("session-id", "session_id"),
        ("/v1/responses",),
        "https://github.com/openai/codex codex-rs/codex-api/src/requests/headers.rs",
        date(2026, 11, 28),
    ),
    CodingClient(
        "opencode",
        ("x-session-id", "x-session-affinity"),
        ("/v1/chat/completions", "/v1/responses", "/v1/messages"),
        "https://github.com/anomalyco/opencode packages/opencode/src/session/llm/request.ts",
        date(2026, 11, 28),
    ),
    CodingClient(
        "Cline",
        (),
        ("/v1/chat/completions", "/v1/messages"),
        "https://github.com/cline/cline src/core/api/providers/openai.ts and litellm.ts",
        date(2026, 11, 28),
    ),
    CodingClient(
        "Continue",
        (),
        ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"),
        "https://github.com/continuedev/continue packages/openai-adapters/src/apis/OpenAI.ts",
        date(2026, 11, 28),
    ),
    CodingClient(
        "Cursor",
        (),
        ("/v1/chat/completions",),
        "https://github.com/BerriAI/litellm/pull/34029",
        date(2026, 11, 28),
    ),
)

# The headers in which a client names its conversation, of which the first that it sends counts.
SESSION_HEADERS: tuple[str, ...] = tuple(
    dict.fromkeys(
        ("x-session-id", *(name for each in CODING_CLIENTS for name in each.session_headers))
    )
)
_ENCODED_HEADERS = tuple(name.encode() for name in SESSION_HEADERS)


def named_session(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the id of a conversation that a client sends in a header; None without one."""
    return next(filter(None, map(headers.get, _ENCODED_HEADERS)), None)
