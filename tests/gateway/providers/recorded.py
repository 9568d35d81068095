"""The loop of a coding client, recorded: eight turns of one task, and the two clients that send it.

The client reads, runs and edits what the model asks for, and sends all that it got back.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

Json = dict[str, Any]


class Step(NamedTuple):
    """What the model does in one turn."""

    thought: str
    tool: str
    """Empty in the last one."""
    arguments: Json
    text: str = ""
    result: str = ""
    """What the client sends back."""


SOURCE = "def mean(values):\n    return sum(values) / len(values)\n"
STEPS = (
    Step("First the file.", "Read", {"path": "stats.py"}, "I look at the file.", SOURCE),
    Step("Then its test.", "Read", {"path": "test_stats.py"}, "", "def test_mean(): ...\n"),
    Step("What fails?", "Bash", {"command": "pytest -q"}, "", "E  ZeroDivisionError\n1 failed"),
    Step("An empty list.", "Edit", {"path": "stats.py", "old": "return", "new": "if"}, "", "ok"),
    Step("Once more.", "Bash", {"command": "pytest -q", "timeout": 60}, "", "1 passed"),
    Step("Is it clean?", "Bash", {"command": "ruff check ."}, "", "All checks passed!"),
    Step("The history.", "Bash", {"command": "git diff --stat"}, "", " stats.py | 3 ++-"),
    Step("Done.", "", {}, "An empty list has the mean 0.0 now, and its test passes."),
)
SYSTEM = "You are a coding agent. Work in small steps, and run the tests. " * 8
TASK = "mean([]) raises ZeroDivisionError. Fix it."
_PARAMETERS = {
    "Read": {"path": "string"},
    "Edit": {"path": "string", "old": "string", "new": "string"},
    "Bash": {"command": "string", "timeout": "integer"},
}
_SCHEMAS = {
    name: {
        "type": "object",
        "properties": {each: {"type": kind} for each, kind in fields.items()},
        "required": [next(iter(fields))],
        "additionalProperties": False,
    }
    for name, fields in _PARAMETERS.items()
}
CHAT_TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": name, "description": f"{name} in the sandbox.", "parameters": schema},
    }
    for name, schema in _SCHEMAS.items()
]
MESSAGES_TOOLS: list[Json] = [
    {"name": name, "description": f"{name} in the sandbox.", "input_schema": schema}
    for name, schema in _SCHEMAS.items()
]
_CACHE = {"cache_control": {"type": "ephemeral"}}


def _merged(before: Any, after: Any, name: str = "") -> Any:
    """Return a value of a message with a piece of it added, as clients put streams together."""
    match before, after:
        case str(), str():
            whole_texts = ("id", "type", "role", "name", "format", "signature", "data")
            return after if name in whole_texts else before + after
        case dict(), dict():
            return {
                **before,
                **{key: _merged(before.get(key), after[key], key) for key in after},
            }
        case list(), str():
            # Text after a thought, of those whose content is a list then.
            if before[-1]["type"] == "text":
                return [*before[:-1], {"type": "text", "text": before[-1]["text"] + after}]
            return [*before, {"type": "text", "text": after}] if after else before
        case list(), list():
            merged = list(before)
            for piece in after:
                place = next(
                    (
                        number
                        for number, each in enumerate(merged)
                        if "index" in piece and each.get("index") == piece["index"]
                    ),
                    None,
                )
                if place is None:
                    merged.append(piece)
                else:
                    merged[place] = _merged(merged[place], piece)
            return merged
        case _:
            return after


async def streamed_message(chunks: AsyncIterator[Any]) -> Json:
    """Return the message of a stream of chunks, with all fields that it had."""
    message: Json = {}
    async for chunk in chunks:
        for choice in chunk.choices:
            message = _merged(message, choice.delta.model_dump(exclude_none=True))
    calls = message.get("tool_calls", [])
    for call in calls:
        del call["index"]
    message["role"] = "assistant"
    # Clients send no text where there was none.
    if not message.get("content"):
        message["content"] = None if calls else ""
    return message


async def chat_loop(
    client: AsyncOpenAI,
    models: list[str],
    options: Json,
    *,
    stream: bool = True,
    turns: int = len(STEPS),
) -> list[Json]:
    """Play the loop on the path of chats, each turn with the next model; return the messages."""
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": TASK},
    ]
    for turn in range(turns):
        request = {
            "model": models[turn % len(models)],
            "messages": messages,
            **options,
            # On the wire as `tools`, and without what the client does to each of them in each turn.
            "extra_body": {"tools": CHAT_TOOLS, **options.get("extra_body", {})},
        }
        create: Any = client.chat.completions.create
        if stream:
            message = await streamed_message(await create(**request, stream=True))
        else:
            answer = await create(**request)
            message = answer.choices[0].message.model_dump(exclude_none=True)
            message.setdefault("content", None)
        messages.append(message)
        for call in message.get("tool_calls", ()):
            assert json.loads(call["function"]["arguments"]) == STEPS[turn].arguments
            result = {"role": "tool", "tool_call_id": call["id"], "content": STEPS[turn].result}
            messages.append(result)
    return messages


async def messages_loop(
    client: AsyncAnthropic, models: list[str], options: Json, *, turns: int = len(STEPS)
) -> list[Json]:
    """Play the loop as Messages, with breakpoints of a cache as coding clients set them."""
    system: Any = [{"type": "text", "text": SYSTEM, **_CACHE}]
    tools: Any = [*MESSAGES_TOOLS[:-1], {**MESSAGES_TOOLS[-1], **_CACHE}]
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": TASK, **_CACHE}]},
    ]
    for turn in range(turns):
        async with client.messages.stream(
            model=models[turn % len(models)],
            system=system,
            messages=messages,
            tools=tools,
            max_tokens=4000,
            metadata={"user_id": "user_1_session_2"},
            extra_headers={"anthropic-beta": "interleaved-thinking-2025-05-14"},
            **options,
        ) as stream:
            message = await stream.get_final_message()
        content = [block.model_dump(exclude_none=True) for block in message.content]
        for block in content:
            # It is the client's own, of what it parsed.
            block.pop("parsed_output", None)
        messages.append({"role": "assistant", "content": content})
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": STEPS[turn].result}
            for block in content
            if block["type"] == "tool_use"
        ]
        if results:
            # The last breakpoint moves on, and the others stay where they are.
            messages.append({"role": "user", "content": [{**results[0], **_CACHE}]})
            if turn:
                messages[-3]["content"][0].pop("cache_control", None)
    return messages
