"""What of a request a provider is asked: the fields of each protocol, in lists.

A body for a provider is built from what passes, at each of its levels; of what is not listed,
nothing leaves the cluster. On the first level a field is of one of three kinds:

- it passes;
- it is left out, since the answer means the same without it: names of users and sessions, hints for
  caches and tiers, and what only vLLM or a client itself reads. Among them are `speed` and
  `service_tier`, which multiply the price, and `cache_control`, unless the cost of the model says
  what a cache writes;
- it cannot be said, and the target is skipped, unless its value is that of a request without it.
  That are parameters of the sampler that only vLLM has, numbers of tokens, which mean others in
  each vocabulary, and all that takes or leaves something at the provider: stored conversations,
  prompts and files would be shared by all tenants, and the tools that a provider runs itself ask
  others and have prices of their own.

Below the first level, what is not listed is left out, and types that are not listed are refused,
save the search of the web: coding clients offer it by default, and a model answers without it too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from tessera.gateway.bodies.json_values import NULL, decode
from tessera.gateway.refusals import invalid_request

_NONE = msgspec.Raw()
# More of them are no value of a table.
_MAX_VALUE_BYTES = 64


class Listed:
    """Cuts objects to the fields of a list, each value as it was sent."""

    def __init__(self, names: str) -> None:
        """Take the names with spaces in between."""
        self.names = tuple(names.split())
        fields = [(name, msgspec.Raw, _NONE) for name in self.names]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("_Listed", fields, gc=False))

    def cut(self, value: msgspec.Raw) -> dict[str, Any]:
        """Return the fields that are listed and not null.

        Raises RequestError where the value is no object.
        """
        try:
            cut = decode(self._decoder, value)
        except msgspec.ValidationError:
            raise invalid_request("the body: expected objects in its lists") from None
        fields = zip(self.names, msgspec.structs.astuple(cut), strict=True)
        return {
            name: each
            for name, each in fields
            if each is not _NONE and not (len(each) == 4 and each == NULL)
        }


class FieldLists(NamedTuple):
    """The fields of one protocol."""

    passes: frozenset[str]
    left_out: frozenset[str]
    without_effect: Mapping[str, frozenset[bytes]]
    """The values with which a field that cannot be said is as if it were not there."""
    priced: tuple[str, ...] = ()
    """What is left out unless the cost of the model says what a cache writes."""

    def leaves_out(self, name: str, value: msgspec.Raw) -> bool:
        """Return whether nothing is lost without a field that does not pass."""
        if name in self.left_out or value == NULL:
            return True
        return len(value) <= _MAX_VALUE_BYTES and bytes(value) in self.without_effect.get(name, ())


def _values(text: str) -> Mapping[str, frozenset[bytes]]:
    pairs = (pair.split("=") for pair in text.split())
    return {name: frozenset(values.encode().split(b"|")) for name, values in pairs}


# What only vLLM and coding clients read, and what has no effect on an answer.
_OWN = """
cache_salt priority user metadata client_metadata store service_tier safety_identifier
prompt_cache_key prompt_cache_options prompt_cache_retention stream_options include_reasoning
stream_interval request_id session_id return_prompt_text return_token_ids
return_tokens_as_token_ids promptCacheKey drop_params litellm_session_id
"""
_VLLM_WITHOUT_EFFECT = _values(
    "add_generation_prompt=true add_special_tokens=false chat_template_kwargs={} "
    "continue_final_message=false documents=[] echo=false ignore_eos=false "
    "include_stop_str_in_output=false length_penalty=1|1.0 logit_bias={} min_p=0|0.0 min_tokens=0 "
    'modalities=["text"] repetition_penalty=1|1.0 skip_special_tokens=true '
    "spaces_between_special_tokens=true stop_token_ids=[] top_k=-1|0 use_beam_search=false "
    "background=false "
    # These pass, save to dialects that refuse them.
    'frequency_penalty=0|0.0 function_call="auto"|"none" functions=[] logprobs=false n=1 '
    'presence_penalty=0|0.0 top_logprobs=0 verbosity="medium"'
)


def _lists(passes: str, left_out: str, priced: tuple[str, ...] = ()) -> FieldLists:
    names = frozenset(passes.split()), frozenset(left_out.split())
    return FieldLists(*names, _VLLM_WITHOUT_EFFECT, priced)


CHAT = _lists(
    """
    model messages max_tokens max_completion_tokens n stream temperature top_p presence_penalty
    frequency_penalty seed stop logprobs top_logprobs response_format tools tool_choice
    parallel_tool_calls functions function_call reasoning_effort verbosity
    """,
    _OWN + "prediction thinking",
)
RESPONSES = _lists(
    """
    model input instructions max_output_tokens stream temperature top_p top_logprobs text
    tools tool_choice parallel_tool_calls reasoning include truncation
    """,
    _OWN + "access_programs max_tool_calls",
)
MESSAGES = _lists(
    """
    model messages system max_tokens stop_sequences stream temperature top_k top_p tools
    tool_choice thinking output_config
    """,
    _OWN + "cache_control context_management diagnostics speed user_profile_id",
    ("cache_control",),
)

CHAT_MESSAGE = Listed("role content name refusal tool_calls tool_call_id function_call")
CHAT_CALL = Listed("id type function custom")
CHAT_CALLED_FUNCTION = Listed("name arguments")
CHAT_FUNCTION = Listed("name description parameters strict")
CHAT_REASONING = Listed("reasoning_content reasoning")
CHAT_STATE_MESSAGE = Listed(
    " ".join((*CHAT_MESSAGE.names, *CHAT_REASONING.names, "reasoning_details"))
)
CHAT_STATE_CALL = Listed(" ".join((*CHAT_CALL.names, "extra_content")))
CHAT_DETAIL = Listed("type id format index text summary signature data")
CHAT_EXTRA = Listed("google")
CHAT_GOOGLE = Listed("thought_signature")
CHAT_THINKING = Listed("type keep clear_thinking")
CHAT_TOOL = Listed("type function custom name description")
CHAT_PART = Listed("type text refusal image_url thinking closed")
CHAT_IMAGE = Listed("url detail")
RESPONSES_ITEM = Listed(
    "type role content status phase call_id name namespace arguments input output summary "
    "encrypted_content"
)
# Without an `id`, since a provider would look for it among what is stored of all tenants.
RESPONSES_TOOL = Listed("type name description parameters strict format")
RESPONSES_PART = Listed("type text refusal image_url detail")
MESSAGES_MESSAGE = Listed("role content")
MESSAGES_BLOCK = Listed(
    "type text source id name input tool_use_id content is_error thinking signature data"
)
MESSAGES_CACHE = Listed("type ttl")
MESSAGES_CACHED_BLOCK = Listed(" ".join((*MESSAGES_BLOCK.names, "cache_control")))
MESSAGES_SOURCE = Listed("type media_type data url")
MESSAGES_TOOL = Listed(
    "type name description input_schema strict input_examples eager_input_streaming max_characters"
)
MESSAGES_CACHED_TOOL = Listed(" ".join((*MESSAGES_TOOL.names, "cache_control")))
MESSAGES_OUTPUT = Listed("format effort")
CHAT_CHOICE = Listed("type function custom allowed_tools")
RESPONSES_CHOICE = Listed("type name mode tools")
MESSAGES_THINKING = Listed("type budget_tokens display")
MESSAGES_CHOICE = Listed("type name disable_parallel_tool_use")
