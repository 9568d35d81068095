"""Names of the metrics that decisions, engines' pages and rules read; queries have the others.

Counters and parts of histograms are named as Prometheus exposes them.
"""

PREFIX = "vllm:"

CACHE_CONFIG = f"{PREFIX}cache_config_info"
GENERATION_TOKENS = f"{PREFIX}generation_tokens_total"
INTER_TOKEN_LATENCY = f"{PREFIX}inter_token_latency_seconds"
KV_CACHE_USAGE = f"{PREFIX}kv_cache_usage_perc"
LORA_REQUESTS = f"{PREFIX}lora_requests_info"
PREFILL_TIME = f"{PREFIX}request_prefill_time_seconds"
PROMPT_TOKENS = f"{PREFIX}prompt_tokens_total"
REQUESTS_RUNNING = f"{PREFIX}num_requests_running"
REQUESTS_WAITING = f"{PREFIX}num_requests_waiting"
# The steps that emit tokens, of each engine process.
STEPS = f"{PREFIX}iteration_tokens_total_count"
TIME_TO_FIRST_TOKEN = f"{PREFIX}time_to_first_token_seconds"
