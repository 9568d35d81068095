"""What the engine of a batch serves, and how its progress reads in `kubectl get`."""

from dataclasses import replace

import pytest

from tessera.api.batch_inference import CheckStatus
from tessera.api.batch_reasons import BatchAccepted
from tessera.api.precision import Precision
from tessera.api.reasons import Accepted
from tessera.domain.batch.spec import accept_spec, with_settings
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.model.precision_files import CheckedVariant
from tessera.domain.placement.checks import check
from tessera.domain.status.batch import batch_status
from tests.batch_builders import (
    a_batch,
    a_batch_spec,
    a_checked_situation,
    a_report,
    a_situation,
    on_attempt,
    plan_batch,
)
from tests.builders import NOW, SMALL, a_spec

COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
EMBEDDINGS = ("/v1/embeddings",)
OWN = "hf://acme/own"
SHAPE = {
    "parameters": 8_000_000,
    "layers": 2,
    "attentionHeads": 4,
    "kvHeads": 4,
    "headDim": 16,
    "maxPositionEmbeddings": 8192,
}


@pytest.mark.parametrize(
    ("uri", "pooling", "engine", "urls"),
    [
        (SMALL, None, {}, COMPLETIONS),
        (SMALL, None, {"runner": "Pooling"}, EMBEDDINGS),
        (OWN, "Embed", {}, EMBEDDINGS),
        (OWN, None, {}, (*COMPLETIONS, *EMBEDDINGS)),
        (OWN, None, {"runner": "Pooling"}, EMBEDDINGS),
        (OWN, "Embed", {"runner": "Generate"}, COMPLETIONS),
    ],
)
def test_the_paths_of_a_model_are_those_that_are_known(
    uri: str, pooling: str | None, engine: dict[str, str], urls: tuple[str, ...]
) -> None:
    spec = a_batch_spec(
        model={"uri": uri, "shape": {**SHAPE, "pooling": pooling}},
        context={"maxModelLen": 1024},
        engine=engine,
    )
    verdict, source = accept_spec(a_situation(a_batch(spec)))
    assert source is not None, verdict
    assert source.urls == urls


@pytest.mark.parametrize("task", ["Score", "Classify", "Tokens"])
def test_a_model_that_returns_no_embeddings_has_no_rows(task: str) -> None:
    spec = a_batch_spec(model={"uri": OWN, "shape": {**SHAPE, "pooling": task}})
    verdict, source = accept_spec(a_situation(a_batch(spec)))
    assert (verdict.reason, source) == (BatchAccepted.RUNNER_MISMATCH, None)
    assert "use an InferenceService and its /rerank" in verdict.message


def test_a_batch_that_asks_for_speculation_is_refused_and_one_of_a_service_runs_without() -> None:
    n_grams = {"speculation": {"method": "NGram"}}
    verdict, source = accept_spec(a_situation(a_batch(a_batch_spec(engine=n_grams))))
    assert (verdict.reason, source) == (BatchAccepted.INVALID_ENGINE_OPTION, None)
    assert "spec.engine.speculation" in verdict.message
    situation = a_situation(a_batch(a_batch_spec(model=None, service="chat")))
    services = {"chat": a_spec(SMALL, engine=n_grams)}
    _, source = accept_spec(replace(situation, services=services))
    assert source is not None
    assert source.spec.engine.speculation is None


@pytest.mark.parametrize(
    ("paths", "accepted"),
    [
        ({}, True),
        ({"input": "left.errors.jsonl", "output": "left.jsonl"}, False),
        ({"input": "in", "output": "out", "errors": "out/left"}, False),
        ({"input": "in", "output": "out/a", "errors": "out"}, False),
        ({"input": "in", "output": "in/out"}, False),
        ({"input": "in", "output": "in.jsonl"}, True),
        ({"input": "a/in", "output": "a/out"}, True),
    ],
)
def test_paths_that_cannot_be_three_files_are_refused_before_the_check(
    paths: dict[str, str], accepted: bool
) -> None:
    verdict, source = accept_spec(a_situation(a_batch(a_batch_spec(**paths))))
    assert (verdict.reason is BatchAccepted.VALID, source is not None) == (accepted, accepted)
    assert accepted or "create this batch with another path" in verdict.message


def test_files_of_a_precision_are_read_for_services_alone() -> None:
    variant = {"precision": "awq-int4", "uri": "hf://acme/small-awq"}
    spec = a_batch_spec(precision={"variants": [variant]})
    verdict, _ = accept_spec(a_situation(a_batch(spec)))
    assert verdict.reason is BatchAccepted.PRECISION_MISMATCH
    for words in ("spec.precision.variants[0].uri", "hf://acme/small-awq", "spec.service"):
        assert words in verdict.message


def test_a_batch_on_a_service_records_the_precisions_as_they_are_listed() -> None:
    """The commit that was read is part of them, what was read is not."""
    listed = {"precision": "awq-int4", "uri": "hf://acme/small-awq", "revision": "c0ffee"}
    read = CheckedVariant(**listed, shape=models()[SMALL.removeprefix("hf://")])
    service = a_spec(SMALL).model_copy(update={"precision": Precision(variants=(read,))})
    batch = a_batch(a_batch_spec(model=None, service="chat"))
    situation = a_situation(batch, services={"chat": service})
    check = with_settings(CheckStatus(rows=1, url="", input_tokens=1), situation)
    again = CheckStatus.model_validate_json(check.model_dump_json(by_alias=True))
    assert again.settings is not None
    assert again.settings.precision == Precision.model_validate({"variants": [listed]})
    status = batch.status.model_copy(update={"check": again})
    later = a_situation(replace(batch, status=status), services={"chat": service})
    assert "has another" not in accept_spec(later)[0].message


def test_a_batch_follows_no_schedule_of_its_service() -> None:
    never = {"maxReplicas": 4, "schedules": [{"cron": "0 0 30 2 *", "minReplicas": 1}]}
    service = a_spec(SMALL, scaling=never)
    assert [each.reason for each in check(service, {})] == [Accepted.INVALID_SCHEDULE]
    batch = a_batch(a_batch_spec(model=None, service="chat"))
    verdict, source = accept_spec(a_situation(batch, services={"chat": service}))
    assert (verdict.reason, source is not None) == (BatchAccepted.VALID, True)


@pytest.mark.parametrize(
    ("completed", "failed", "done", "state"),
    [
        (1000, 0, "1000/1000", "completed"),
        (997, 3, "997/1000, 3 failed", "completed"),
        (0, 1000, "0/1000, 1000 failed", "failed"),
    ],
)
def test_rows_without_an_answer_are_not_counted_as_done(
    completed: int, failed: int, done: str, state: str
) -> None:
    report = a_report(state="completed", completed=completed, failed=failed)
    plan = plan_batch(on_attempt(pod={"exit_code": 0, "report": report}))
    status = batch_status(plan, NOW)
    assert (status.done, status.state) == (done, state)


def test_a_batch_whose_rows_were_checked_goes_on_with_a_flag_that_is_refused_by_now() -> None:
    spec = a_batch_spec(engine={"extraArgs": ["--stream-interval=4"]})
    verdict, source = accept_spec(a_checked_situation(a_batch(spec)))
    assert (verdict.reason, source is not None) == (BatchAccepted.VALID, True)
    assert "--stream-interval sends several tokens" in verdict.message
    verdict, source = accept_spec(a_situation(a_batch(spec)))
    assert (verdict.reason, source) == (BatchAccepted.RESERVED_FLAG, None)
