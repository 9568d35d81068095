"""Answers of Messages, whole and as events."""

import json
from collections.abc import Sequence

from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import Json, Reply, Tokens, event

SIGNATURE = "EqQBCkYIARgCKkDtCkq"


def blocks_of(step: Step, call_id: str, *, thinks: bool) -> list[Json]:
    """Return the content of what the model says."""
    blocks: list[Json] = []
    if thinks:
        blocks.append({"type": "thinking", "thinking": step.thought, "signature": SIGNATURE})
    if step.text:
        blocks.append({"type": "text", "text": step.text})
    if step.tool:
        use = {"type": "tool_use", "id": call_id, "name": step.tool, "input": step.arguments}
        blocks.append(use)
    return blocks


def message_reply(
    blocks: Sequence[Json], model: str, tokens: Tokens, usage: Json, *, is_last: bool
) -> Reply:
    """Return an answer of these blocks, whose counts are `usage`."""
    stop = "end_turn" if is_last else "tool_use"
    shared: Json = {
        "id": "msg_01", "type": "message", "role": "assistant", "model": model,
        "stop_sequence": None,
    }  # fmt: skip
    whole = {**shared, "content": list(blocks), "stop_reason": stop, "usage": usage}
    begun = {**shared, "content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    events = [event({"type": "message_start", "message": begun}, "message_start")]
    for index, block in enumerate(blocks):
        start, deltas = _pieces(block)
        data: list[Json] = [{"type": "content_block_start", "index": index, "content_block": start}]
        data += [{"type": "content_block_delta", "index": index, "delta": each} for each in deltas]
        data.append({"type": "content_block_stop", "index": index})
        events += [event(each, each["type"]) for each in data]
        if not index:
            events.append(event({"type": "ping"}, "ping"))
    ending = {"stop_reason": stop, "stop_sequence": None}
    # All counts of it are cumulative.
    delta = {"type": "message_delta", "delta": ending, "usage": usage}
    events += [event(delta, "message_delta"), event({"type": "message_stop"}, "message_stop")]
    return Reply(tokens, whole, events)


def _pieces(block: Json) -> tuple[Json, list[Json]]:
    if block["type"] == "thinking":
        return {**block, "thinking": "", "signature": ""}, [
            {"type": "thinking_delta", "thinking": block["thinking"][:4]},
            {"type": "thinking_delta", "thinking": block["thinking"][4:]},
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    if block["type"] == "text":
        words = block["text"].split(" ")
        pieces = [*(f"{word} " for word in words[:-1]), words[-1]]
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]
    arguments = json.dumps(block["input"])
    return {**block, "input": {}}, [
        {"type": "input_json_delta", "partial_json": piece}
        for piece in ("", arguments[:6], arguments[6:])
    ]
