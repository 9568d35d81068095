"""What coding clients send by default, with the headers of a conversation, to models of all kinds.

The bodies are those of the sources that `domain/gateway/coding_clients.py` names, with less in
them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.gateway.coding_clients import CODING_CLIENTS, SESSION_HEADERS
from tests.gateway.harness import (
    COMPLETION,
    MODEL,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

CHATS, MESSAGES = "/v1/chat/completions", "/v1/messages"
SESSION = "0197e5b0-7c5a-7f43-9d4e-2f1f6a8c0f11"
SAID = [{"role": "system", "content": "You code."}, {"role": "user", "content": "ls"}]
FUNCTION = {"name": "shell", "description": "Run it.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CLAUDE: Mapping[str, Any] = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "ls"}]}],
    "system": [{"type": "text", "text": "You are", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "Bash", "input_schema": {"type": "object"}}],
    "metadata": {"user_id": f'{{"device_id":"d","account_uuid":"","session_id":"{SESSION}"}}'},
    "max_tokens": 32_000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "diagnostics": {"previous_message_id": None},
}
CODEX: Mapping[str, Any] = {
    "instructions": "You are a coding agent",
    "input": [
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "ls"}],
        }
    ],
    "tools": [{"type": "function", **FUNCTION, "strict": False}, {"type": "web_search"}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream_options": {"reasoning_summary_delivery": "sequential_cutoff"},
    "include": ["reasoning.encrypted_content"],
    "service_tier": "priority",
    "prompt_cache_key": SESSION,
    "text": {"verbosity": "medium"},
    "client_metadata": {"x-codex-installation-id": "i", "session_id": SESSION},
    "access_programs": {"codex": True},
}
OPENCODE: Mapping[str, Any] = {
    "messages": SAID,
    "max_tokens": 32_000,
    "temperature": 0,
    "top_p": 1,
    "reasoning_effort": "medium",
    "tools": TOOLS,
    "tool_choice": "auto",
    "promptCacheKey": SESSION,
}
CLINE: Mapping[str, Any] = {
    "messages": SAID,
    "temperature": 0,
    "max_tokens": 8192,
    "reasoning_effort": "medium",
    "stream_options": {"include_usage": True},
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": False,
}
AS_LITELLM = {
    "drop_params": True,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "litellm_session_id": "cline-01JZ",
}
CONTINUE: Mapping[str, Any] = {
    "messages": SAID,
    "max_tokens": 4096,
    "temperature": 0.5,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "stop": ["```"],
    "prediction": {"type": "content", "content": "def f():"},
    "tools": TOOLS,
    "parallel_tool_calls": False,
}
CURSOR: Mapping[str, Any] = {
    "messages": SAID,
    "temperature": 1,
    "user": "user_01",
    "tools": [*TOOLS, {"type": "custom", "name": "ApplyPatch", "description": "Patch"}],
    "tool_choice": "auto",
    "stream_options": {"include_usage": True},
}
CLAUDE_HEADERS = {
    "x-claude-code-session-id": SESSION,
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
    "x-app": "cli",
}
CODEX_HEADERS = {"session-id": SESSION, "thread-id": SESSION, "originator": "codex_cli_rs"}
OPENCODE_HEADERS = {"x-session-affinity": SESSION, "x-session-id": SESSION}

# Client, path, body, headers.
REQUESTS: list[tuple[str, str, Mapping[str, Any], Mapping[str, str]]] = [
    ("Claude Code", MESSAGES, CLAUDE, CLAUDE_HEADERS),
    ("Claude Code", MESSAGES, {**CLAUDE, "speed": "fast"}, CLAUDE_HEADERS),
    (
        "Claude Code",
        "/v1/messages/count_tokens",
        {name: CLAUDE[name] for name in ("messages", "system", "tools", "thinking")},
        CLAUDE_HEADERS,
    ),
    ("Codex", "/v1/responses", CODEX, CODEX_HEADERS),
    ("Codex", "/v1/responses", CODEX, {"session_id": SESSION}),
    ("opencode", CHATS, OPENCODE, OPENCODE_HEADERS),
    ("opencode", MESSAGES, {**CLAUDE, "temperature": 1}, OPENCODE_HEADERS),
    ("opencode", "/v1/responses", CODEX, OPENCODE_HEADERS),
    ("Cline", CHATS, CLINE, {}),
    ("Cline", CHATS, {**CLINE, **AS_LITELLM}, {}),
    ("Cline", MESSAGES, {**CLAUDE, "temperature": 0}, {}),
    ("Continue", CHATS, CONTINUE, {}),
    (
        "Continue",
        "/v1/completions",
        {"prompt": "def f(", "suffix": ")", "max_tokens": 256, "temperature": 0, "stop": ["\n"]},
        {},
    ),
    ("Continue", "/v1/embeddings", {"input": ["def f(): ...", "x = 1"]}, {}),
    ("Continue", "/v1/rerank", {"query": "f", "documents": ["def f(): ...", "x = 1"]}, {}),
    ("Cursor", CHATS, CURSOR, {}),
]


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(
    ("client", "path", "body", "headers"),
    REQUESTS,
    ids=[f"{each[0]} {each[1]}" for each in REQUESTS],
)
async def test_what_coding_clients_send_reaches_the_engine(
    client: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str], shared: bool
) -> None:
    assert client

    async def answer(call: EngineCall) -> None:
        await call.whole(COMPLETION)

    async with ScriptedEngine(answer) as engine:
        model = a_model(a_replica(engine.address), max_model_len=131_072, public=shared)
        async with a_gateway(a_directory(model)) as gateway:
            answered = await gateway.post({"model": MODEL, **body}, path, **headers)
        assert answered.status == 200, answered.body
        sent = engine.calls[0].json
    assert {name: sent[name] for name in body} == body


def test_each_listed_client_has_its_requests_and_its_headers() -> None:
    for client in CODING_CLIENTS:
        requests = [each for each in REQUESTS if each[0] == client.name]
        assert {each[1] for each in requests} == set(client.paths)
        sent = {name for each in requests for name in each[3]}
        assert set(client.session_headers) == sent & set(SESSION_HEADERS)


def test_the_page_lists_them_as_the_code_does() -> None:
    page = Path(__file__).parents[3].joinpath("docs/tasks/gateway.md").read_text()
    for client in CODING_CLIENTS:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {client.name} |"))
        _, _, paths, headers, _ = row.split("|")
        assert set(re.findall(r"`([^`]+)`", paths)) == set(client.paths)
        assert set(re.findall(r"`([^`]+)`", headers)) == set(client.session_headers)
    assert {str(client.read_on) for client in CODING_CLIENTS} <= set(page.split())
