"""Another embedding model waits until somebody expects that stored vectors do not compare."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.model_files import ModelShape
from tessera.api.reasons import Progressing
from tessera.api.service_status import ModelStatus
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.quality.gates import decide_trial
from tessera.domain.quality.rollout_state import VersionState, rollout_state
from tessera.domain.quality.trial import GateJobs
from tests.builders import a_service, a_spec
from tests.domain.quality.gate_world import a_trial
from tests.domain.quality.gated_fleet import GATE, a_first_revision, a_gate_spec

BGE, E5 = "hf://BAAI/bge-m3", "hf://intfloat/e5-mistral-7b-instruct"
UNKNOWN = "hf://org/embedder"
GATED = {"strategy": "Gated", "gateRef": GATE.name}


def state_after(
    before: str, model: dict[str, Any], shape: ModelShape | None = None, **rollout: Any
) -> VersionState:
    revision = a_first_revision(
        a_service(spec=a_spec(before, rollout=GATED)),
        model=ModelStatus(uri=before, shape=shape),
    )
    edited = a_service(spec=a_spec(model=model, rollout=GATED | rollout))
    gate = ObservedGate(ref=GATE, uid="uid-gate", generation=1, spec=a_gate_spec())
    return rollout_state(edited, [revision], gate)


@pytest.mark.parametrize(
    ("model", "expected"), [({"uri": E5}, E5), ({"uri": BGE, "revision": "v2"}, f"{BGE}@v2")]
)
def test_another_embedding_model_waits_until_it_is_expected(
    model: dict[str, Any], expected: str
) -> None:
    waiting = state_after(BGE, model)
    assert (waiting.phase, waiting.vectors_of, waiting.wants_candidate) == (
        "Candidate",
        expected,
        False,
    )
    assert state_after(BGE, model, vectorsOf=f"{expected}-2").vectors_of == expected
    tried = state_after(BGE, model, vectorsOf=expected)
    assert (tried.vectors_of, tried.wants_candidate) == (None, True)


def test_a_model_that_a_job_read_is_known_for_what_it_returns() -> None:
    shape = ModelShape(
        parameters=100,
        layers=1,
        attention_heads=1,
        kv_heads=1,
        head_dim=1,
        max_position_embeddings=100,
        pooling="Embed",
    )
    assert state_after(UNKNOWN, {"uri": E5}, shape).vectors_of == E5
    generates = shape.model_copy(update={"pooling": None})
    assert state_after(UNKNOWN, {"uri": E5}, generates).vectors_of is None


def test_a_model_that_writes_text_has_no_vectors() -> None:
    state = state_after("hf://meta-llama/Llama-3.1-8B-Instruct", {"uri": "hf://org/next"})
    assert (state.phase, state.vectors_of, state.wants_candidate) == ("Candidate", None, True)


def test_nothing_is_asked_before_the_vectors_are_expected() -> None:
    trial = replace(a_trial(), vectors_of=E5)
    decision = decide_trial(trial, GateJobs())
    assert (decision.create, decision.outcome) == (None, None)
    assert decision.progressing.reason is Progressing.VECTORS_CHANGE
    assert f"spec.rollout.vectorsOf: {E5}" in decision.progressing.message
