"""An engine that calls a tool, as vLLM does with a tool parser; the simulator has none."""

from openai.types.chat import ChatCompletionToolParam

from tests.gateway.harness import DONE, EngineCall, event

TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Say how the weather is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ARGUMENTS = '{"city": "Bern"}'
_HEAD = {"id": "chatcmpl-1", "created": 1, "model": "tools"}
_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


async def scripted_tools(call: EngineCall) -> None:
    """Call the tool where the request has one; else answer with JSON."""
    if call.json.get("stream"):
        await call.stream(*_stream())
        return
    message: dict[str, object] = {"role": "assistant", "content": ARGUMENTS}
    if call.json.get("tools"):
        function = {"name": "get_weather", "arguments": ARGUMENTS}
        tool_call = {"id": "call-1", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [tool_call]}
    finish_reason = "tool_calls" if call.json.get("tools") else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    await call.whole(body)


def _stream() -> list[bytes]:
    """Return the events of a call whose arguments come in pieces."""
    first = {"id": "call-1", "type": "function", "index": 0}
    begun = {**first, "function": {"name": "get_weather", "arguments": ""}}
    pieces = [
        {"index": 0, "function": {"arguments": ARGUMENTS[start : start + 5]}}
        for start in range(0, len(ARGUMENTS), 5)
    ]
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"tool_calls": [each]} for each in (begun, *pieces)]
    return [
        *(_chunk(delta) for delta in deltas),
        _chunk({"content": ""}, "tool_calls"),
        event({**_HEAD, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}),
        DONE,
    ]


def _chunk(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]})
