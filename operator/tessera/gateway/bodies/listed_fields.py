"""The fields that pass to engines which several tenants may use, besides those that are read.

All parameters of the APIs of OpenAI and Anthropic pass, also those without effect on vLLM, so that
none of their clients is refused, those of vLLM that concern one request alone, and what the coding
clients of `domain/gateway/coding_clients.py` send without effect. Others do not:

- `kv_transfer_params`, `ec_transfer_params`: addresses and blocks of other engines;
- `vllm_xargs`, `data`: whatever the plugins of an engine take;
- `chat_template`: a program for the process that serves everybody;
- `mm_processor_kwargs`, `media_io_kwargs`: how much work and memory an image or a clip takes;
- `prompt_embeds`: tensors, of which one of a wrong shape may end an engine;
- `request_id`, `session_id`: names that all requests of an engine share;
- `watermarking`, which the owner of the model decides.

`MAX_TOKEN_IDS` and `bad_words` pass as far as the sampler of vLLM has room for them: where there is
none, it raises in the process that computes for all. `logprobs`, `stop` and others are refused by
vLLM itself, in the thread that reads them, before they take room or time.

`cache_salt` is replaced and `priority` is 0 at least: `parsing.py` reads both.
"""

from collections.abc import Mapping

# Rows of the sampler. Those that end an answer are counted with the ends of the model.
MAX_TOKEN_IDS: Mapping[str, int] = {
    "allowed_token_ids": 1024,
    "logit_bias": 1024,
    "stop_token_ids": 100,
}
# The sampler has 1,024 tokens for them. A word is read with a space in front as well, and a byte is
# a token at most.
MAX_BAD_WORDS_BYTES = 512


def _names(*texts: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for text in texts for name in text.split()))


_SAMPLING = """
temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty seed logit_bias
stop stop_token_ids include_stop_str_in_output ignore_eos skip_special_tokens structured_outputs
"""
_GENERATION = """
length_penalty use_beam_search min_tokens spaces_between_special_tokens truncate_prompt_tokens
truncation_side allowed_token_ids bad_words logprobs prompt_logprobs logprob_token_ids
repetition_detection thinking_token_budget stream_interval echo response_format add_special_tokens
return_token_ids return_tokens_as_token_ids
"""
_TEMPLATE = "add_generation_prompt continue_final_message chat_template_kwargs"
_TOOLS = "tools tool_choice parallel_tool_calls"
_OPENAI = """
user metadata store service_tier safety_identifier moderation prompt_cache_key prompt_cache_options
prompt_cache_retention
"""
_CHAT = """
top_logprobs reasoning_effort include_reasoning documents return_prompt_text audio modalities
prediction verbosity web_search_options functions function_call
"""
# Of opencode with `setCacheKey`, and of Cline where it takes the gateway for LiteLLM.
_CODING_CLIENTS = "promptCacheKey drop_params litellm_session_id thinking"
_RESPONSES = """
top_logprobs reasoning include_reasoning text include instructions max_tool_calls prompt truncation
stream_options chat_template_kwargs access_programs client_metadata context_management conversation
image
"""
_ANTHROPIC = """
temperature top_k top_p stop_sequences tools tool_choice thinking metadata service_tier container
context_management cache_control inference_geo output_config output_format chat_template_kwargs
diagnostics fallbacks fallback_credit_token speed user_profile_id
"""
_POOLING = """
user truncate_prompt_tokens truncation_side padding use_activation chat_template_kwargs
"""
_EMBEDDINGS = """
add_special_tokens add_generation_prompt continue_final_message encoding_format embed_dtype
endianness dimensions
"""
_SCORE = "instruction max_tokens_per_query max_tokens_per_doc"
_RERANK = "top_n return_documents rank_fields max_chunks_per_doc"

CHAT = _names(_SAMPLING, _GENERATION, _TEMPLATE, _TOOLS, _OPENAI, _CHAT, _CODING_CLIENTS)
COMPLETIONS = _names(_SAMPLING, _GENERATION, "user")
RESPONSES = _names(_SAMPLING, _TOOLS, _OPENAI, _RESPONSES)
MESSAGES = _names(_ANTHROPIC)
TOKENIZE = _names(_TEMPLATE, "prompt tools add_special_tokens return_token_strs")
DETOKENIZE = ("tokens",)
EMBEDDINGS = _names(_POOLING, _EMBEDDINGS)
POOLING = (*EMBEDDINGS, "task")
CLASSIFY = _names(_POOLING, "add_special_tokens")
SCORE = _names(_POOLING, _SCORE)
RERANK = (*SCORE, *_names(_RERANK))
