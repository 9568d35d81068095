"""xAI.

https://docs.x.ai/consumption-and-rate-limits (reasoning has the price of completions)
https://docs.x.ai/developers/cost-tracking (10,000,000,000 ticks are a dollar)
https://docs.x.ai/developers/advanced-api-usage/prompt-caching/usage-and-pricing (hits)
https://github.com/Wei-Shaw/sub2api/issues/5771 (10120 + 1499 + 2809 = 14428, and its ticks)
https://github.com/vercel/ai/pull/12425 (reasoning stands beside `completion_tokens`)
https://docs.perplexity.ai/docs/gateway/models (grok-4.5: 2 and 6, twice above 200,000 tokens)
https://github.com/i-am-bee/beeai-framework/issues/447 (errors are texts beside a code; a bad key is
a 400), https://github.com/continuedev/continue/issues/10373 (no credit is a 429)
https://github.com/cline/cline/issues/3120 (context)
https://github.com/BerriAI/litellm/issues/17136 (counts in the chunk with the end)
"""

from decimal import Decimal

from tests.gateway.providers.chats import Chats, unknown_field
from tests.gateway.providers.chats import usage as openai_usage
from tests.gateway.providers.recorded import Step
from tests.gateway.providers.scripted import Json, Prices, Refusal, Script, Tokens

PRICES = Prices(
    input="2", cached="0.50", output="6",
    above=200_000, long_input="4", long_cached="1", long_output="12",
)  # fmt: skip


def _error(status: int, code: str, text: str) -> Refusal:
    return Refusal(status, {"code": code, "error": text})


def _refuse(name: str, place: str) -> Refusal:
    text = (
        f"Failed to deserialize the JSON body into the target type: {place}unknown field `{name}`"
    )
    return _error(422, "Client specified an invalid argument", text)


def _check(body: Json) -> Refusal | None:
    for name, camel in (("presence_penalty", "presencePenalty"), ("stop", "stop")):
        if name in body:
            text = f"Model grok-4.5 does not support parameter {camel}."
            return _error(400, "Client specified an invalid argument", text)
    return unknown_field(
        body,
        _refuse,
        top="max_tokens max_completion_tokens n seed logprobs top_logprobs parallel_tool_calls "
        "reasoning_effort user deferred search_parameters",
        message="name reasoning_content",
    )


def _usage(tokens: Tokens) -> Json:
    reasoning = tokens.reasoning or 0
    counted = openai_usage(tokens)
    ticks = PRICES.bill(tokens) * Decimal(10**10)
    return {
        **counted,
        "completion_tokens": tokens.output - reasoning,
        "prompt_tokens_details": {
            "text_tokens": tokens.prompt, "audio_tokens": 0, "image_tokens": 0,
            "cached_tokens": tokens.cached,
        },
        "num_sources_used": 0,
        "cost_in_usd_ticks": int(ticks),
    }  # fmt: skip


def _thought(step: Step) -> Json:
    return {"reasoning_content": step.thought}


def _ending(counted: Json, last: Json, _: bool) -> list[Json]:
    return [last | {"usage": counted}, {**last, "choices": []}]


SCRIPT = Script(
    name="xai",
    dialect="x-ai",
    model="grok-4.5",
    prices=PRICES,
    spec={"maxContextTokens": 500_000},
    check=_check,
    reply=Chats(usage=_usage, thought=_thought, ending=_ending).reply,
    options={"max_tokens": 4000, "reasoning_effort": "high"},
    errors={
        "NoCredit": _error(
            429,
            "Some resource has been exhausted",
            "Your team 16f2151a has either used all available credits or reached its monthly "
            "spending limit. To continue making API requests, please purchase more credits or "
            "raise your spending limit.",
        ),
        "BadKey": _error(
            400,
            "Client specified an invalid argument",
            "Incorrect API key provided: sk***rl. You can obtain an API key from "
            "https://console.x.ai.",
        ),
        "RateLimited": _error(
            429, "Some resource has been exhausted", "Too many requests for team 16f2151a"
        ),
        "ContextTooLong": _error(
            400,
            "Client specified an invalid argument",
            "This model's maximum prompt length is 500000 but the request contains 907154 tokens.",
        ),
        "Overloaded": _error(
            503, "The service is currently unavailable", "The model is at capacity."
        ),
        "ModelGone": _error(
            404,
            "Some requested entity was not found",
            "The model grok-4.5 does not exist or your team does not have access to it.",
        ),
    },
)
