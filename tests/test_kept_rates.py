"""What engines are promised to carry of chat and documents together."""

import kept_rates
from kept_rates import PromisePair

SLICE = PromisePair(
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "NVIDIA-H100-80GB-HBM3", "2g.20gb"
)
GPU = PromisePair("HuggingFaceTB/SmolLM3-3B", "NVIDIA-B200", "1g.23gb")


def test_no_rate_is_promised_where_documents_take_longer_than_the_objective() -> None:
    for kind, meets_slo in (("equal", True), ("mixed", False)):
        engine = kept_rates.engine_for(SLICE, kind)
        assert engine is not None
        assert engine.meets_slo is meets_slo


def test_a_promise_for_chat_and_documents_is_kept() -> None:
    rate = kept_rates.judge(GPU, "mixed", requests=1000)
    assert rate.meets_slo
    assert rate.played.in_time >= kept_rates.GOAL
