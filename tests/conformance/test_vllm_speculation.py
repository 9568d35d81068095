"""N-gram speculation on a real vLLM: the flag of the operator, and the counters that it reads."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.adapters.prometheus.speeds import SPEEDS
from tessera.domain.perf import acceptance_of
from tests.builders import SMALL, a_spec
from tests.conformance import engines
from tests.conformance.configurations import CONTEXT, MODEL, Configuration
from tests.resources.engine_objects import container

pytestmark = pytest.mark.vllm

TOKENS = 3
COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")


def speculating() -> Configuration:
    """The command line of the conformance tests with the flag that a service gets."""
    spec = a_spec(SMALL, engine={"speculation": {"method": "NGram", "tokens": TOKENS}})
    (flag,) = [each for each in container(spec)["args"] if each.startswith("--speculative-config=")]
    argv = (
        "--load-format=dummy",
        "--enforce-eager",
        "--dtype=bfloat16",
        f"--max-model-len={CONTEXT}",
        f"--served-model-name={MODEL}",
        "--max-num-seqs=4",
        flag,
    )
    return Configuration(name="speculation", argv=argv)


async def test_the_acceptance_of_n_grams_is_read_from_the_engines_counters(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    async with engines.running(engines.real(venv), str(model), speculating(), tmp_path) as engine:
        # Random weights repeat themselves when they decode greedily, which n-grams foresee.
        body = {
            "model": MODEL,
            "prompt": "a b c d " * 40,
            "max_tokens": 400,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = await engine.http.post("/v1/completions", json=body)
        page = (await engine.http.get("/metrics")).text
    assert answer.status_code == 200, answer.text
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    names = [f"vllm:spec_decode_{counter}_total" for counter in COUNTERS]
    assert all(any(name in query.text for query in SPEEDS.values()) for name in names)
    drafts, drafted, accepted = (values[name] for name in names)
    assert 0 < drafts <= drafted <= TOKENS * drafts
    acceptance = acceptance_of(accepted / drafted, drafted / drafts)
    print(f"\n{accepted:.0f} of {drafted:.0f} drafted tokens accepted: acceptance {acceptance:.2f}")
    assert 0 <= acceptance <= 1
    # Each step gave one token beside its accepted drafts, and some steps drafted nothing.
    assert drafts + accepted <= 400
