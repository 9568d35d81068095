"""Removed vLLM flags that guides and charts still name, with what replaces them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OldFlag:
    """What to do about a removed flag; `replacement` is the flag or the field of the spec that took
    its place, if any."""

    advice: str
    replacement: str | None = None


_V0 = OldFlag("it belonged to the V0 engine, which was removed; remove it")
_SPECULATIVE = OldFlag(
    "it names the method, the draft model and its tokens", "spec.engine.speculation"
)
_PLATFORM = OldFlag("the engine detects its platform; remove it")
_GRAPHS = OldFlag("graph sizes are part of --compilation-config", "--compilation-config")
_OFFLOAD = OldFlag("it is the host memory for the KV cache", "spec.engine.kvOffload.size")

OLD_FLAGS: Mapping[str, OldFlag] = {
    "--calculate-kv-scales": OldFlag("scales come from the checkpoint; remove it"),
    "--cuda-graph-sizes": _GRAPHS,
    "--device": _PLATFORM,
    "--disable-frontend-multiprocessing": OldFlag("there is no other mode; remove it"),
    "--disable-log-requests": OldFlag(
        "requests are not logged unless --enable-log-requests is given; remove it"
    ),
    "--enable-reasoning": OldFlag("naming a parser turns it on", "spec.engine.reasoningParser"),
    "--guided-decoding-backend": OldFlag(
        "it names the library", "spec.engine.structuredOutputsBackend"
    ),
    "--max-seq-len-to-capture": _GRAPHS,
    "--multi-step-stream-outputs": _V0,
    "--ngram-prompt-lookup-max": _SPECULATIVE,
    "--ngram-prompt-lookup-min": _SPECULATIVE,
    "--num-lookahead-slots": _V0,
    "--num-scheduler-steps": _V0,
    "--num-speculative-tokens": _SPECULATIVE,
    "--preemption-mode": _V0,
    "--rope-scaling": OldFlag(
        """write '{"rope_parameters": {...}}' as its value, with "rope_type", "factor", """
        """"original_max_position_embeddings" and the "rope_theta" of config.json""",
        "--hf-overrides",
    ),
    "--scheduler-delay-factor": _V0,
    "--speculative-model": _SPECULATIVE,
    "--swap-space": _OFFLOAD,
    "--task": OldFlag("it says whether the model generates or embeds", "spec.engine.runner"),
    "--tokenizer-pool-size": OldFlag("tokenizers need no pool; remove it"),
    "--use-v2-block-manager": _V0,
    "--worker-use-ray": OldFlag("a replica runs on one node, without Ray; remove it"),
}
