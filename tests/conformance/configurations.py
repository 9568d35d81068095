"""Arguments with which engines are compared: the real one and the simulator get the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The API key of the configuration that has one.
KEY = "sesame"
CONTEXT = 1024
MODEL = "tiny"
QUEUE_LIMIT = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to start `vllm serve`."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    confined: bool = False
    """The real engine runs as in its pod: another user, only declared paths writable."""


_ALL = (
    "--load-format=dummy",
    "--enforce-eager",
    "--dtype=bfloat16",
    f"--max-model-len={CONTEXT}",
    "--block-size=128",
    "--shutdown-timeout=120",
)
_NAMED = f"--served-model-name={MODEL}"

PLAIN = Configuration(
    name="plain", argv=(*_ALL, _NAMED, "--max-num-seqs=4", "--num-gpu-blocks-override=64")
)
RICH = Configuration(
    name="rich",
    argv=(
        *_ALL,
        "--served-model-name",
        "base",
        "alias",
        "--max-num-seqs=4",
        "--num-gpu-blocks-override=200",
        f"--api-key={KEY}",
        "--enable-lora",
        "--max-loras=2",
        "--max-lora-rank=8",
        "--scheduling-policy=priority",
        "--kv-cache-metrics",
        "--enable-prompt-tokens-details",
        "--enable-per-request-metrics",
        "--enable-server-load-tracking",
        "--enable-request-id-headers",
        f"--max-num-queued-reqs={QUEUE_LIMIT}",
    ),
    env={"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
)
TIGHT = Configuration(
    name="tight",
    argv=(
        *_ALL,
        _NAMED,
        "--max-num-seqs=8",
        "--num-gpu-blocks-override=24",
        "--enable-server-load-tracking",
        '--speculative-config={"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":3}',
    ),
    env={"VLLM_SERVER_DEV_MODE": "1"},
    confined=True,
)
CONFIGURATIONS = (PLAIN, RICH, TIGHT)
