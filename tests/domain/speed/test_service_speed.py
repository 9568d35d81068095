"""What engines did, beside what the speed model says of the same load; and what is published."""

from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from tessera.api.reasons import SpeedAsPredicted
from tessera.api.service_status import SpeedStatus
from tessera.domain.explain.explain import explain
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Snapshot, SpeedReading
from tessera.domain.perf.sources import MeasurementKey, measured_ratio, measurement_key
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import shape_of
from tessera.domain.slo.measurement import Objective, engine_edges
from tessera.domain.speed.condition import next_speed_status, speed_reason, speed_verdict
from tessera.domain.speed.measurements import measured_speeds, speeds_for
from tessera.domain.speed.service_speed import (
    ServiceSpeed,
    bucket_of,
    peaks_of,
    predicted_itl,
    service_speed,
)
from tessera.domain.status.service import service_status
from tests.builders import (
    A100,
    H100,
    NOW,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_speed_reading,
    a_workload,
    at,
    compute_service_plan,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
PODS = (a_pod("chat-0"), a_pod("chat-1"))
AS, SLOWER, FASTER = (
    SpeedAsPredicted.AS_PREDICTED,
    SpeedAsPredicted.SLOWER,
    SpeedAsPredicted.FASTER,
)


def a_choice(**fields: Any) -> HardwareChoice:
    choice = compute_service_plan(a_snapshot(a_service(), **fields)).choice
    assert choice is not None
    return choice


def a_speed(reading: SpeedReading, pods: tuple[Pod, ...] = PODS) -> ServiceSpeed:
    return service_speed(a_spec(), a_choice(), pods, [reading])


def as_predicted(times: float = 1.0, **fields: Any) -> ServiceSpeed:
    """Engines that take so many times as long as predicted."""
    reading = a_speed_reading(**fields)
    gap = predicted_itl(a_choice().fit, reading)
    assert gap is not None
    return a_speed(replace(reading, itl_seconds=gap.mean * times))


def next_status(times: float, previous: SpeedStatus | None = None, when: float = 0) -> SpeedStatus:
    status = next_speed_status(as_predicted(times), previous, at(when))
    assert status is not None
    return status


def test_the_step_is_predicted_for_what_was_in_it() -> None:
    choice = a_choice()
    reading = a_speed_reading(prefill_tokens=0.0, kv_usage=0.02, running=4.0, kv_tokens=100_000)
    gap = predicted_itl(choice.fit, reading)
    # 2000 tokens in the cache of a replica with 4 requests are 500 each, and a step had 8.
    decode = choice.fit.step.seconds(decoding=8, kv_tokens=4000)
    assert gap is not None
    assert (gap.mean, gap.median) == (decode, decode)


def test_steps_with_prompts_count_by_their_share() -> None:
    choice = a_choice()
    reading = a_speed_reading(prefill_tokens=10.0, prompt_tokens=100.0)
    without = predicted_itl(choice.fit, a_speed_reading(prefill_tokens=0.0))
    gap = predicted_itl(choice.fit, reading)
    both = choice.fit.step.seconds(
        decoding=8, kv_tokens=4800, prefill_tokens=100, prefill_pairs=100 * 100
    )
    assert gap is not None
    assert without is not None
    assert gap.median == without.mean
    # With eight at once an engine is hardly ever idle.
    assert gap.mean == pytest.approx(0.1 * both + 0.9 * without.mean, rel=1e-4)


def test_where_most_steps_read_prompts_the_median_step_does() -> None:
    fit = a_choice(nodes=(a_node(whole=1),)).fit
    gap = predicted_itl(fit, a_speed_reading(prefill_tokens=900.0, prompt_tokens=1000.0))
    assert gap is not None
    assert gap.median > gap.mean


def test_a_prompt_longer_than_a_step_is_read_in_chunks() -> None:
    fit = a_choice().fit
    most = fit.limits.max_num_batched_tokens - 8
    full = fit.step.seconds(
        decoding=8, kv_tokens=4800, prefill_tokens=most, prefill_pairs=most * 10 * most
    )
    gap = predicted_itl(fit, a_speed_reading(prefill_tokens=most, prompt_tokens=10.0 * most))
    assert gap is not None
    assert gap.mean == pytest.approx(full)


@pytest.mark.parametrize("missing", ["sequences", "running", "kv_usage"])
def test_without_the_load_nothing_is_predicted(missing: str) -> None:
    assert predicted_itl(a_choice().fit, a_speed_reading(**{missing: None})) is None


def test_capacity_and_prices_are_those_of_replicas_that_take_requests() -> None:
    pods = (*PODS, a_pod("chat-2", ready_since=None), a_pod("chat-3", variant="another"))
    speed = a_speed(a_speed_reading(tokens_per_second=100.0), pods)
    choice = a_choice()
    assert speed.capacity == 2 * choice.fit.limits.tokens_per_second
    assert speed.price is not None
    assert float(speed.price.rounded(6)) == pytest.approx(
        float(choice.hourly.rounded(9)) * 2 / (100 * 3600) * 1e6, rel=1e-4
    )


def test_next_to_no_tokens_have_no_price() -> None:
    assert a_speed(a_speed_reading(tokens_per_second=0.5)).price is None


def test_the_share_of_the_peak_is_that_of_the_slice() -> None:
    speed = a_speed(a_speed_reading(flops_per_second=4e12, bytes_per_second=50e9))
    assert speed.mfu == pytest.approx(4e12 / (312e12 * 14 / 108))
    assert speed.mbu == pytest.approx(50e9 / speed.peaks.bandwidth)


def test_an_engine_that_does_not_count_operations_has_no_share_of_the_peak() -> None:
    assert a_speed(a_speed_reading(flops_per_second=0.0, bytes_per_second=0.0)).mfu is None
    idle = a_speed_reading(flops_per_second=0.0, bytes_per_second=0.0, tokens_per_second=0.0)
    assert a_speed(idle).mfu == 0


def test_the_cache_is_compared_with_the_plan() -> None:
    planned = a_choice().fit.memory.kv_tokens
    speed = a_speed(a_speed_reading(kv_tokens=round(planned * 1.05)))
    assert speed.kv_planned == planned
    assert speed.kv_error == pytest.approx(0.05, abs=1e-4)
    assert a_speed(a_speed_reading(kv_tokens=None)).kv_error is None


def test_a_reading_of_another_variant_says_nothing_of_this_one() -> None:
    own, other = a_speed_reading(variant="a100-1g-10gb"), a_speed_reading(variant="other")
    assert service_speed(a_spec(), a_choice(), PODS, [own, other]).requests == 1200
    assert service_speed(a_spec(), a_choice(), PODS, [other]).requests == 0


def test_buckets_are_those_that_the_engine_counts_in() -> None:
    itl_edges = partial(engine_edges, Objective.ITL.engine_metric)
    assert bucket_of(0.012, itl_edges("0.32.0")) == (0.01, 0.025)
    assert bucket_of(0.01, itl_edges("0.32.0")) == (0.0, 0.01)
    assert bucket_of(81.0, itl_edges("0.32.0")) is None
    assert itl_edges("0.99.0") == itl_edges("0.32.0")


@pytest.mark.parametrize(
    ("times", "reason"), [(1.0, AS), (1.14, AS), (1.16, SLOWER), (0.86, AS), (0.84, FASTER)]
)
def test_more_than_15_percent_off_is_off(times: float, reason: SpeedAsPredicted) -> None:
    assert speed_reason(as_predicted(times), None) is reason


@pytest.mark.parametrize(("times", "reason"), [(1.12, SLOWER), (1.09, AS), (0.88, FASTER)])
def test_what_was_off_is_right_again_within_10_percent(
    times: float, reason: SpeedAsPredicted
) -> None:
    before = SLOWER if times > 1 else FASTER
    assert speed_reason(as_predicted(times), before) is reason


def test_fewer_than_100_requests_say_nothing() -> None:
    assert speed_reason(as_predicted(2.0, requests=99.0), None) is None
    assert speed_reason(as_predicted(2.0, requests=100.0), None) is SLOWER


def test_a_bucket_beyond_the_predicted_median_decides_whatever_the_mean_says() -> None:
    right = as_predicted(1.0)
    assert right.predicted is not None
    median = right.predicted.median
    beyond = replace(right, median_bucket=(median * 1.2, median * 3))
    below = replace(right, median_bucket=(0.0, median * 0.8))
    assert (speed_reason(beyond, None), speed_reason(below, None)) == (SLOWER, FASTER)


def test_a_bucket_around_the_predicted_median_leaves_it_to_the_mean() -> None:
    slow = as_predicted(1.3)
    assert slow.predicted is not None
    wide = replace(slow, median_bucket=(0.0, slow.predicted.median * 3))
    narrow = replace(slow, median_bucket=(slow.predicted.median * 0.9, slow.predicted.median * 1.1))
    assert (speed_reason(wide, None), speed_reason(narrow, None)) == (SLOWER, AS)


def test_the_first_measurement_is_published_at_once() -> None:
    status = next_status(1.07)
    assert (status.reason, str(status.ratio), status.requests, status.at) == (
        "AsPredicted",
        "1.07",
        1200,
        NOW,
    )
    assert status.variant == "a100-1g-10gb"


def test_nothing_is_published_again_within_five_minutes() -> None:
    previous = next_status(1.0)
    assert next_status(2.0, previous, 299) is previous
    assert next_status(2.0, previous, 300).reason == "SlowerThanPredicted"


def test_what_changed_little_is_not_published_again() -> None:
    previous = next_status(1.0)
    assert next_status(1.09, previous, 600) is previous
    assert next_status(1.13, previous, 600) is not previous


def test_throughput_that_follows_the_load_is_no_news_until_it_moved_by_half() -> None:
    previous = next_speed_status(as_predicted(1.0), None, NOW)
    more = next_speed_status(as_predicted(1.0, tokens_per_second=590.0), previous, at(600))
    much_more = next_speed_status(as_predicted(1.0, tokens_per_second=610.0), previous, at(600))
    assert more is previous
    assert much_more is not previous


def test_without_a_reading_the_published_status_stays() -> None:
    previous = next_status(1.3)
    assert next_speed_status(a_speed(SpeedReading()), previous, at(3600)) is previous
    assert speed_verdict(previous).reason is SLOWER


@pytest.mark.parametrize("field", ["variant", "model"])
def test_what_was_measured_of_another_variant_or_model_is_forgotten(field: str) -> None:
    previous = next_status(1.3).model_copy(update={field: "another"})
    assert next_speed_status(a_speed(SpeedReading()), previous, at(3600)) is None
    assert speed_verdict(None).reason is SpeedAsPredicted.NOT_ENOUGH_REQUESTS


def test_a_word_of_a_newer_version_is_no_verdict() -> None:
    previous = next_status(1.3).model_copy(update={"reason": "MuchSlower"})
    assert speed_verdict(previous).reason is SpeedAsPredicted.NOT_ENOUGH_REQUESTS


def test_the_message_has_both_times_and_where_to_look() -> None:
    message = speed_verdict(next_status(1.3)).message
    assert "1.30 times as long" in message
    assert "1200 requests" in message
    assert "docs/tasks/alerts.md" in message


def test_measured_speeds_that_contradict_the_prediction_are_said_with_source_and_error() -> None:
    fit = a_choice().fit
    assert fit.rate_error is not None
    error = f"(error {fit.rate_error:.0%}, Table) for the observed load"
    beyond, within = (speed_verdict(next_status(ratio), fit).message for ratio in (1.3, 1.01))
    assert error in beyond
    assert "1.30 times as long, beyond that error; measured by" in beyond
    assert error in within
    assert "1.01 times as long, within that error; measured by" in within


def a_measured_fleet(
    times: float, service: ObservedService | None = None, when: float = 0, **fields: Any
) -> Snapshot:
    speed = as_predicted(times)
    speed_reading = a_speed_reading(itl_seconds=speed.measured_mean, variant="a100-1g-10gb")
    readings = readings_of(
        PODS, at=at(when), speeds={CHAT: (replace(speed_reading, **fields),)}, speeds_at=at(when)
    )
    measured_service = service or a_service()
    return a_snapshot(
        measured_service, at=at(when), pods=PODS, workloads=(a_workload(2),), readings=readings
    )


def with_written_status(
    snapshot: Snapshot, incremental: Incremental | None = None
) -> ObservedService:
    """Return the service with the status that this cycle writes."""
    service_plan = plan_of(snapshot, incremental=incremental).service_plans[CHAT]
    return replace(service_plan.service, status=service_status(snapshot, service_plan, None, None))


def test_status_and_condition_show_both_speeds() -> None:
    status = with_written_status(a_measured_fleet(1.3)).status
    assert status.speed is not None
    assert float(status.speed.ratio) == 1.3
    condition = next(
        candidate for candidate in status.conditions if candidate.type == "SpeedAsPredicted"
    )
    assert (condition.status, condition.reason) == ("False", "SlowerThanPredicted")


def test_a_restarted_operator_keeps_what_the_status_says() -> None:
    before = with_written_status(a_measured_fleet(1.3))
    after = with_written_status(a_snapshot(before, pods=PODS, workloads=(a_workload(2),)))
    assert after.status.speed == before.status.speed


def test_moving_readings_write_no_status() -> None:
    incremental, service = Incremental(), with_written_status(a_measured_fleet(1.0))
    for cycle in range(1, 20):
        moved = a_measured_fleet(
            1 + 0.004 * cycle, service, 30.0 * cycle, tokens_per_second=400.0 + 9 * cycle
        )
        assert with_written_status(moved, incremental).status.speed == service.status.speed


def test_a_verdict_that_changes_is_written_once_in_five_minutes() -> None:
    service, changes = with_written_status(a_measured_fleet(1.0)), 0
    for turn in range(1, 31):  # a quarter of an hour between right and wrong
        after = with_written_status(
            a_measured_fleet(1.3 if turn % 2 else 1.0, service, 30.0 * turn)
        )
        changes += after.status.speed != service.status.speed
        service = after
    assert changes <= 3


def test_8_bits_are_measured_by_the_peak_at_8_bits_where_there_is_one() -> None:
    spec = a_spec(precision={"variants": [{"precision": "fp8"}]})

    def peak(product: str) -> float:
        fleet = a_snapshot(
            a_service(spec=spec), nodes=(a_node(slices={"1g.10gb": 7}, product=product),)
        )
        choice = compute_service_plan(fleet).choice
        assert choice is not None
        fit = replace(choice.fit, precision="fp8")
        return peaks_of(spec, fit).flops / fit.hardware.bf16_flops

    assert peak(H100) == pytest.approx(2, rel=0.01)
    assert peak(A100) == 1


def test_what_a_service_measured_corrects_its_published_speed_and_no_limit() -> None:
    before, after = (
        with_written_status(a_measured_fleet(1.0)).status,
        with_written_status(a_measured_fleet(1.25)).status,
    )
    assert before.variant is not None
    assert after.variant is not None
    assert after.variant.tokens_per_second == pytest.approx(
        before.variant.tokens_per_second / 1.25, rel=0.01
    )
    assert (after.variant.source, after.variant.max_num_seqs) == (
        "Measured",
        before.variant.max_num_seqs,
    )
    assert before.cost is not None
    assert after.cost is not None
    assert float(after.cost.per_million_tokens or 0) == pytest.approx(
        1.25 * float(before.cost.per_million_tokens or 0), rel=0.01
    )
    assert "measured" in after.cost.assumed_load


def test_a_measurement_changes_nothing_that_engines_are_made_of() -> None:
    service = with_written_status(a_measured_fleet(1.4))
    measured = plan_of(a_measured_fleet(1.4, service, 600)).service_plans[CHAT]
    plain = plan_of(a_snapshot(a_service(), pods=PODS, workloads=(a_workload(2),))).service_plans[
        CHAT
    ]
    assert measured.measured_speed is not None
    assert measured.choice == plain.choice


def measurement_key_of(service: ObservedService) -> MeasurementKey:
    fit = a_choice().fit
    assert service.spec is not None
    shape = shape_of(service.spec)
    assert shape is not None
    return measurement_key(shape, fit.precision, fit.hardware)


def test_services_of_one_measurement_key_are_weighed_by_their_requests() -> None:
    first = with_written_status(a_measured_fleet(1.2))
    speed = first.status.speed
    assert speed is not None
    less = speed.model_copy(update={"ratio": Decimal("1.5"), "requests": 400})
    other = replace(first, status=first.status.model_copy(update={"speed": less}))
    speeds = measured_speeds([first, other, a_service("quiet")])
    measurement = speeds_for("team-a", speeds)[measurement_key_of(first)]
    assert measurement.ratio == pytest.approx(1.275)
    assert measurement.requests == 1600


@pytest.mark.parametrize(("shown", "ratio"), [("0.00", 0.2), ("1000", 5.0), ("1.2", 1.2)])
def test_what_one_namespace_shows_counts_for_itself_alone(shown: str, ratio: float) -> None:
    service = with_written_status(a_measured_fleet(1.2))
    key, speed = measurement_key_of(service), service.status.speed
    assert speed is not None
    update = {"ratio": Decimal(shown), "requests": 10**12}
    forged = speed.model_copy(update=update)
    evil = replace(
        service,
        ref=Ref("evil", "chat"),
        status=service.status.model_copy(update={"speed": forged}),
    )
    others = [replace(service, ref=Ref(namespace, "chat")) for namespace in ("team-b", "team-c")]
    for services, expected in (([evil], None), ([evil, others[0]], None), ([evil, *others], 1.2)):
        speeds = measured_speeds(services)
        measurement = speeds_for("team-a", speeds).get(key)
        assert (measurement and measurement.ratio) == (expected and pytest.approx(expected))
        assert speeds_for("evil", speeds)[key].ratio == pytest.approx(ratio)


@pytest.mark.parametrize("field", ["variant", "model"])
def test_what_was_measured_before_a_service_moved_on_counts_for_none(field: str) -> None:
    service = with_written_status(a_measured_fleet(1.2))
    speed = service.status.speed
    assert speed is not None
    moved = speed.model_copy(update={field: "another"})
    status = service.status.model_copy(update={"speed": moved})
    assert measured_speeds([replace(service, status=status)]) == {}


@pytest.mark.parametrize(
    ("fields", "ratio"),
    [
        ({}, 2),
        ({"ratio": Decimal(1000)}, 5),
        ({"ratio": Decimal(0)}, 0.2),
        ({"requests": 100}, 2),
        ({"requests": 99}, None),
        ({"model": "another"}, None),
        ({"variant": "another"}, None),
    ],
)
def test_the_ratio_of_a_variant_is_its_own_of_enough_requests_and_within_bounds(
    fields: dict[str, Any], ratio: float | None
) -> None:
    speed = with_written_status(a_measured_fleet(2.0)).status.speed
    assert speed is not None
    written = speed.model_copy(update={"ratio": Decimal(2), **fields})
    assert measured_ratio(written, speed.model, speed.variant) == ratio


def test_explain_shows_the_measured_throughput_and_why() -> None:
    snapshot = a_measured_fleet(1.25, with_written_status(a_measured_fleet(1.25)))
    decisions = {
        decision.topic: decision for decision in explain(snapshot, plan_of(snapshot), CHAT)
    }
    assert "measured in this cluster" in decisions["sizing"].message
    assert "1.25 times as long" in dict(decisions["sizing"].numbers)["output tok/s"]
