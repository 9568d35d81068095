"""What batches are planned with: their own pace, else what services measured, else a share."""

from dataclasses import replace
from decimal import Decimal

import pytest

from tessera.api.ref import Ref
from tessera.api.service_status import SpeedStatus
from tessera.domain.batch import pace
from tessera.domain.batch.batches import situation_of
from tessera.domain.batch.spec import accept_spec
from tessera.domain.perf.sources import SpeedMeasurement, measurement_key
from tessera.domain.placement.checks import shape_of
from tessera.domain.status.service import service_status
from tests.batch_builders import NIGHT, a_batch, a_batch_spec, a_checked_situation, plan_batch
from tests.builders import NOW, SMALL, a_pod, a_service, a_snapshot, a_workload, plan_of


def test_before_its_own_pace_is_known_a_batch_counts_on_what_services_measured() -> None:
    situation = a_checked_situation()
    source, choice = accept_spec(situation)[1], plan_batch(situation).choice
    progress = situation.batch.status.progress
    assert source is not None
    assert choice is not None
    assert progress is not None
    shape = shape_of(source.spec)
    assert shape is not None
    case = measurement_key(shape, choice.fit.precision, choice.fit.hardware)

    def rate(own: str | None = None, measured: float | None = None) -> float:
        known = progress.model_copy(update={"speed_ratio": own and Decimal(own)})
        measurements = (
            {} if measured is None else {case: SpeedMeasurement(ratio=measured, requests=500)}
        )
        return pace.rows_per_second(choice, source, known, measurements)

    expected = rate() / pace.UNMEASURED_SPEED_SHARE
    assert rate(measured=1.5) == pytest.approx(expected * pace.MEASURED_SPEED_SHARE / 1.5)
    assert rate(measured=0.8) > expected
    assert rate("0.40", measured=0.8) == pytest.approx(expected * 0.4)


def test_a_batch_meets_what_services_of_the_fleet_measured() -> None:
    speed = {
        "model": SMALL,
        "variant": "a100-1g-10gb",
        "reason": "SlowerThanPredicted",
        "itlMs": {"predicted": "10", "measured": "13"},
        "tokensPerSecond": {"predicted": "1000", "measured": "500"},
        "ratio": "1.30",
        "requests": 500,
        "at": NOW,
    }
    plain = a_snapshot(a_service(), pods=(a_pod(),), workloads=(a_workload(1),))
    status = service_status(plain, plan_of(plain).service_plans[Ref("team-a", "chat")], None, None)
    measured_status = status.model_copy(update={"speed": SpeedStatus.model_validate(speed)})
    fleet = replace(plain, services=(a_service(status=measured_status),), batches=(a_batch(),))
    (measurement,) = situation_of(fleet, NIGHT).measured.values()
    assert measurement == SpeedMeasurement(ratio=1.3, requests=500)


def test_a_batch_of_embeddings_counts_on_the_tokens_of_its_rows() -> None:
    shape = {
        "parameters": 567_754_752,
        "layers": 24,
        "attentionHeads": 16,
        "kvHeads": 16,
        "headDim": 64,
        "maxPositionEmbeddings": 8192,
        "pooling": "Embed",
        "encoderOnly": True,
    }
    model = {"uri": "hf://acme/own", "shape": shape}
    spec = a_batch_spec(model=model, context={"typicalInputTokens": 512})
    situation = a_checked_situation(a_batch(spec))
    source, choice = accept_spec(situation)[1], plan_batch(situation).choice
    progress = situation.batch.status.progress
    assert source is not None
    assert choice is not None
    assert progress is not None
    full = choice.fit.limits.tokens_per_second * pace.UNMEASURED_SPEED_SHARE
    assert pace.rows_per_second(choice, source, progress) == pytest.approx(full / 512)
    known = progress.model_copy(update={"completed": 100, "prompt_tokens": 25_600})
    assert pace.rows_per_second(choice, source, known) == pytest.approx(full / 256)
