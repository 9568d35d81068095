"""A small provider that nobody knows: it speaks Messages without thinking and without a cache.

Its own page: "We serve the Messages API. Thinking, caches and server tools are an error, as are
unknown fields."
"""

from tests.gateway.providers.messages import blocks_of, message_reply
from tests.gateway.providers.scripted import (
    Json,
    Prices,
    Refusal,
    Reply,
    Script,
    Tokens,
    prompt_tokens,
    step_of,
)
from tests.gateway.providers.scripts.anthropic_platform import refusal_of, unknown_part

_INVALID = "invalid_request_error"


def _check(body: Json) -> Refusal | None:
    if "tool_choice" in body and not body.get("tools"):
        return refusal_of(400, _INVALID, "tool_choice: there are no tools")
    fault = unknown_part(
        body,
        top="model messages system max_tokens stop_sequences stream temperature top_p tools "
        "tool_choice",
        kinds={
            "text": "type text",
            "tool_use": "type id name input",
            "tool_result": "type tool_use_id content is_error",
        },
        tool="name description input_schema",
    )
    return refusal_of(400, _INVALID, fault) if fault else None


def _reply(body: Json, model: str) -> Reply:
    step = step_of(body)
    tokens = Tokens(prompt=prompt_tokens(body), output=25 + len(step.text))
    usage = {"input_tokens": tokens.prompt, "output_tokens": tokens.output}
    blocks = blocks_of(step, f"toolu_{len(body['messages'])}", thinks=False)
    return message_reply(blocks, model, tokens, usage, is_last=not step.tool)


SCRIPT = Script(
    name="slate",
    protocol="AnthropicMessages",
    model="slate-1",
    prices=Prices(input="0.40", cached="0.40", output="1.60"),
    spec={"maxContextTokens": 200_000, "reasoning": False},
    check=_check,
    reply=_reply,
    errors={
        "NoCredit": refusal_of(402, "billing_error", "Please check your payment details."),
        "BadKey": refusal_of(403, "permission_error", "This key may not use the model."),
        "RateLimited": refusal_of(429, "rate_limit_error", "Slow down.", retry_after="41.5"),
        "ContextTooLong": refusal_of(413, "request_too_large", "Prompt is too long."),
        "Overloaded": refusal_of(503, "overloaded_error", "Overloaded"),
        "ModelGone": refusal_of(404, "not_found_error", "model: slate-1"),
    },
)
