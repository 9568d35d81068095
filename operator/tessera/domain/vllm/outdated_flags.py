"""Removed vLLM flags that guides and charts still name, with what replaces them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OldFlag:
    """What to do about a removed flag; `replacement` is the flag that took its place, if any."""

    advice: str
    replacement: str | None = None


_V0 = OldFlag("it belonged to the V0 engine, which was removed; remove it")
_SPECULATIVE = OldFlag(
    """write the keys of --speculative-config, for example '{"method": "ngram"}'""",
    "--speculative-config",
)
_PLATFORM = OldFlag("the engine detects its platform; remove it")
_GRAPHS = OldFlag("graph sizes are part of --compilation-config", "--compilation-config")
_OFFLOAD = OldFlag("host memory for the KV cache is given in GiB", "--kv-offloading-size")

OLD_FLAGS: Mapping[str, OldFlag] = {
    "--calculate-kv-scales": OldFlag("scales come from the checkpoint; remove it"),
    "--cuda-graph-sizes": _GRAPHS,
    "--device": _PLATFORM,
    "--disable-frontend-multiprocessing": OldFlag("there is no other mode; remove it"),
    "--disable-log-requests": OldFlag(
        "requests are not logged unless --enable-log-requests is given; remove it"
    ),
    "--enable-reasoning": OldFlag("naming a parser turns it on", "--reasoning-parser"),
    "--guided-decoding-backend": OldFlag(
        """write '{"backend": "..."}' as its value""", "--structured-outputs-config"
    ),
    "--max-seq-len-to-capture": _GRAPHS,
    "--multi-step-stream-outputs": _V0,
    "--ngram-prompt-lookup-max": _SPECULATIVE,
    "--ngram-prompt-lookup-min": _SPECULATIVE,
    "--num-lookahead-slots": _V0,
    "--num-scheduler-steps": _V0,
    "--num-speculative-tokens": _SPECULATIVE,
    "--preemption-mode": _V0,
    "--rope-scaling": OldFlag("""write '{"rope_scaling": {...}}' as its value""", "--hf-overrides"),
    "--scheduler-delay-factor": _V0,
    "--speculative-model": _SPECULATIVE,
    "--swap-space": _OFFLOAD,
    "--task": OldFlag("--runner names the kind of serving, --convert adapts the model", "--runner"),
    "--tokenizer-pool-size": OldFlag("tokenizers need no pool; remove it"),
    "--use-v2-block-manager": _V0,
    "--worker-use-ray": OldFlag("write ray as its value", "--distributed-executor-backend"),
}
