"""The target that a leader takes from a status is that of the plan which wrote the status."""

from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.scaling.target import reported_target, target_of
from tessera.domain.status.service import service_status
from tests.builders import MEDIUM, a_node, a_pool, a_service, a_snapshot, a_spec, plan_of


@pytest.mark.parametrize(
    ("uri", "engine", "ttft"),
    [
        (MEDIUM, {}, "3s"),
        (MEDIUM, {"speculation": {"method": "NGram", "tokens": 8}}, "3s"),
        ("hf://BAAI/bge-m3", {}, "100ms"),
    ],
)
def test_the_target_of_a_status_is_that_of_its_plan(
    uri: str, engine: dict[str, Any], ttft: str
) -> None:
    # A wait in which a prompt is read makes the target lower than that of the class.
    spec = a_spec(uri, engine=engine, **{"class": "Batch", "slo": {"ttftP95": ttft}})
    snapshot = a_snapshot(a_service(spec=spec), pools=(a_pool(),), nodes=(a_node(whole=1),))
    planned = plan_of(snapshot).service_plans[Ref("team-a", "chat")]
    variant = service_status(snapshot, planned, None, None).variant
    assert planned.choice is not None
    assert variant is not None
    fit = planned.choice.fit
    expected = target_of(spec, fit.limits, fit.max_model_len)
    assert expected.queue_target < spec.scaling.queue.target
    reported = reported_target(spec, variant)
    assert reported.queue_target == pytest.approx(expected.queue_target, rel=1e-3)
    assert reported.max_num_seqs == expected.max_num_seqs
