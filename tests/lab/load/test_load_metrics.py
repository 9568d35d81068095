"""Streams as servers send them, and the figures of a load."""

import json
from decimal import Decimal
from typing import Any

import pytest

from tessera.domain.money import money
from tessera.domain.perf.utilization import HardwarePeaks
from tessera_lab.load.engine_metrics import engine_activity, parse_metrics
from tessera_lab.load.load_metrics import Bottleneck, load_metrics, sweep_knee
from tessera_lab.load.reliability import reliability_warnings
from tessera_lab.load.requests import BenchRequest, requests_within, shared_prompt_share
from tessera_lab.load.responses import BenchResponse, RequestFailure
from tessera_lab.load.stream_recorder import StreamRecorder
from tessera_lab.load.token_cost import HourlyPrice
from tests.bench_builders import a_failure, a_job, a_level, a_look, an_answer

OPENING = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def a_chunk(text: str, end: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": end}]}


def recorded_response(*events: dict[str, Any] | bytes) -> BenchResponse:
    """What came, an event each second from 1 on, of a request sent at 0."""
    recorder = StreamRecorder(a_job(), 0.0, 0.0)
    for at, event in enumerate(events, 1):
        recorder.add_event(event if isinstance(event, bytes) else json.dumps(event).encode(), at)
    return recorder.finish(float(len(events)))


def test_a_chat_begins_with_its_first_token_and_not_with_the_role() -> None:
    response = recorded_response(
        OPENING, a_chunk("a"), a_chunk("b"), a_chunk("c", "stop"), {"choices": [], "usage": USAGE}
    )
    assert (response.first_token_at, list(response.chunk_gaps), response.failure) == (2, [1, 1], "")
    assert (response.prompt_tokens, response.output_tokens, response.exact_tokens) == (7, 5, True)


def test_usage_counts_and_chunks_only_where_there_is_none() -> None:
    with_usage = recorded_response(
        a_chunk("a b c"), a_chunk("d", "length"), {"choices": [], "usage": USAGE}, b"[DONE]"
    )
    without_usage = recorded_response(a_chunk("a b c"), a_chunk("d", "length"), b"[DONE]")
    assert (with_usage.output_tokens, with_usage.exact_tokens) == (5, True)
    assert (
        without_usage.output_tokens,
        without_usage.exact_tokens,
        without_usage.prompt_tokens,
    ) == (2, False, None)


def test_time_between_tokens_is_shared_by_all_tokens_of_a_chunk() -> None:
    response = recorded_response(
        a_chunk("a"), a_chunk("b c"), a_chunk("d e", "stop"), {"choices": [], "usage": USAGE}
    )
    assert response.tpot_seconds == 2 / 4


def test_an_empty_text_is_a_token_and_reasoning_is_too() -> None:
    reasoning = {"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    assert recorded_response(OPENING, reasoning, a_chunk("", "stop")).chunks == 2


def test_a_completion_is_read_as_well() -> None:
    text = {"choices": [{"text": "a", "finish_reason": None}]}
    end = {"choices": [{"text": "", "finish_reason": "length"}]}
    assert (recorded_response(text, text, end).chunks, recorded_response(text, end).failure) == (
        3,
        "",
    )


def test_cached_tokens_are_taken_from_the_usage() -> None:
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 4}}
    assert (
        recorded_response(a_chunk("a", "stop"), {"choices": [], "usage": usage}).cached_tokens == 4
    )
    usage = {**USAGE, "prompt_tokens_details": None}
    assert (
        recorded_response(a_chunk("a", "stop"), {"choices": [], "usage": usage}).cached_tokens
        is None
    )


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        ([a_chunk("a")], RequestFailure.CUT_OFF),
        ([], RequestFailure.CUT_OFF),
        ([a_chunk("a"), b"[DONE]"], RequestFailure.CUT_OFF),
        ([a_chunk("a"), a_chunk("", "abort"), b"[DONE]"], RequestFailure.ABORTED),
        ([a_chunk("a"), {"error": {"message": "out of memory"}}], RequestFailure.ERROR),
        ([OPENING, {"choices": [{"delta": {}, "finish_reason": "stop"}]}], RequestFailure.EMPTY),
        ([b"<html>"], RequestFailure.NO_STREAM),
        ([b"7"], RequestFailure.NO_STREAM),
        ([{"choices": 5}], RequestFailure.NO_STREAM),
        ([{"choices": ["x"]}], RequestFailure.NO_STREAM),
        ([{"choices": [], "usage": {"completion_tokens": "many"}}], RequestFailure.NO_STREAM),
        ([b"[" * 100_000], RequestFailure.NO_STREAM),
    ],
)
def test_what_is_no_whole_answer_is_a_failure_of_its_kind(
    events: list[dict[str, Any] | bytes], failure: RequestFailure
) -> None:
    response = recorded_response(*events)
    assert (response.complete, response.failure) == (False, failure)
    assert len(response.detail) <= 300


PRICE = HourlyPrice(per_hour=money(Decimal("3.60"), "USD"), output_input_ratio=Decimal(4))
PEAKS = HardwarePeaks(name="gpu", flops=1e12, bandwidth=1e11)


def test_rates_are_of_whole_answers_over_the_whole_time() -> None:
    metrics = load_metrics(a_level(an_answer(), an_answer(due=1.0), a_failure()), None, PRICE)
    assert (metrics.completed, metrics.failures) == (2, {"Http503": 1})
    assert (metrics.requests_per_second, metrics.output_per_second, metrics.total_per_second) == (
        0.2,
        1,
        21,
    )
    assert metrics.latencies.ttft is not None
    assert metrics.latencies.ttft.p50 == 0.5
    assert metrics.per_user == pytest.approx(10)
    assert metrics.cost is not None
    assert metrics.cost.run.rounded(4) == Decimal("0.0100")


def test_a_late_client_does_not_flatter_the_server() -> None:
    metrics = load_metrics(a_level(an_answer(due=1.0, sent=1.4, first=0.5)), None, None)
    assert metrics.latencies.ttft is not None
    assert metrics.latencies.ttft.p50 == 0.5
    assert metrics.client.late_seconds == pytest.approx(0.4)


def test_no_load_without_any_whole_answer_breaks_the_figures() -> None:
    metrics = load_metrics(a_level(a_failure()), PEAKS, PRICE)
    assert (
        metrics.completed,
        metrics.latencies.end_to_end,
        metrics.per_user,
        metrics.saturated_output_per_second,
    ) == (0, None, None, None)
    assert load_metrics(a_level(), None, None).mean_concurrency == 0


def test_the_rate_while_full_leaves_out_the_end_when_places_are_empty() -> None:
    # Two places, one answer a second each; the last one takes four seconds alone.
    short = [an_answer(due=due, first=0.2, gaps=[0.2] * 4) for due in (0.0, 0.0, 1.0, 1.0, 2.0)]
    long = an_answer(due=2.0, first=2.0, gaps=[0.5] * 4)
    metrics = load_metrics(a_level(*short, long, seconds=6.0), None, None)
    assert metrics.output_per_second == 5
    assert metrics.saturated_output_per_second == pytest.approx(10)


def test_work_is_what_the_counters_grew_by() -> None:
    before = a_look(
        0.0, generation_tokens_total=100, iteration_tokens_total_count=50, num_preemptions_total=1,
        prefix_cache_queries_total=1000, prefix_cache_hits_total=500,
        estimated_flops_per_gpu_total=0, estimated_read_bytes_per_gpu_total=0,
        estimated_write_bytes_per_gpu_total=0, request_queue_time_seconds_sum=1,
        request_queue_time_seconds_count=10,
    )  # fmt: skip
    after = a_look(
        10.0, generation_tokens_total=500, iteration_tokens_total_count=150,
        num_preemptions_total=3, prefix_cache_queries_total=2000, prefix_cache_hits_total=600,
        estimated_flops_per_gpu_total=5e12, estimated_read_bytes_per_gpu_total=5e11,
        estimated_write_bytes_per_gpu_total=1e11, request_queue_time_seconds_sum=3,
        request_queue_time_seconds_count=20,
    )  # fmt: skip
    during = [a_look(5.0, num_requests_running=3, num_requests_waiting=2, kv_cache_usage_perc=0.5)]
    activity = engine_activity(before, after, during, PEAKS)
    assert activity is not None
    assert (activity.output_tokens, activity.preemptions, activity.batch, activity.prefix_hits) == (
        400,
        2,
        4,
        0.1,
    )
    assert (activity.mfu, activity.mbu) == (0.5, 0.6)
    assert (activity.running, activity.max_kv_usage, activity.queued_seconds) == (3, 0.5, 0.2)


def test_counters_that_fell_are_those_of_another_process() -> None:
    before, after = (a_look(at, generation_tokens_total=100 - at) for at in (0.0, 10.0))
    assert engine_activity(before, after, [], None) is None


def test_an_engine_that_estimates_nothing_has_no_mfu() -> None:
    standing = {f"estimated_{name}_per_gpu_total": 0.0 for name in ("flops", "read_bytes")}
    standing["estimated_write_bytes_per_gpu_total"] = 0.0
    before, after = (a_look(at, generation_tokens_total=at, **standing) for at in (0.0, 10.0))
    activity = engine_activity(before, after, [], PEAKS)
    assert activity is not None
    assert (activity.mfu, activity.mbu, activity.preemptions) == (None, None, None)


def test_ranks_of_a_server_are_summed_and_what_counts_for_each_gpu_is_averaged() -> None:
    snapshot = parse_metrics(
        "# HELP vllm:generation_tokens_total Number of generation tokens processed.\n"
        "# TYPE vllm:generation_tokens_total counter\n"
        'vllm:generation_tokens_total{engine="0",model_name="a b"} 10.0\n'
        'vllm:generation_tokens_total{engine="1",model_name="a b"} 1.5e+01\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n'
        'vllm:estimated_flops_per_gpu_total{engine="0"} 6\n'
        'vllm:estimated_flops_per_gpu_total{engine="1"} 8\n'
        'python_info{version="3"} 1.0\n'
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n",
        3.0,
    )
    assert snapshot.at == 3.0
    assert snapshot.values == {
        "vllm:generation_tokens_total": 25,
        "vllm:kv_cache_usage_perc": pytest.approx(0.3),
        "vllm:estimated_flops_per_gpu_total": 7,
    }


def engine(tokens: float, **grown: float) -> dict[str, Any]:
    """An engine that gave out so many tokens in ten seconds, and grew otherwise as said."""
    zero = dict.fromkeys(grown, 0.0)
    return {
        "before": a_look(0.0, generation_tokens_total=0, **zero),
        "after": a_look(10.0, generation_tokens_total=tokens, **grown),
    }


@pytest.mark.parametrize(
    ("level", "bound"),
    [
        (a_level(an_answer()), Bottleneck.UNKNOWN),
        (a_level(an_answer(), cpu_seconds=9.0, **engine(5)), Bottleneck.CLIENT),
        (a_level(an_answer(), **engine(5)), Bottleneck.LOAD),
        (a_level(an_answer(), **engine(5000)), Bottleneck.UNKNOWN),
        (a_level(an_answer(), **engine(5, num_preemptions_total=1)), Bottleneck.KV_CACHE),
        (a_level(an_answer(), **engine(5, estimated_flops_per_gpu_total=7e12)), Bottleneck.COMPUTE),
        (
            a_level(
                an_answer(),
                **engine(
                    5,
                    estimated_read_bytes_per_gpu_total=7e11,
                    estimated_write_bytes_per_gpu_total=1e9,
                ),
            ),
            Bottleneck.BANDWIDTH,
        ),
        (
            a_level(
                an_answer(),
                **engine(5, request_queue_time_seconds_sum=0.2, request_queue_time_seconds_count=1),
            ),
            Bottleneck.QUEUE,
        ),
    ],
)
def test_what_bound_the_load_is_named(level: Any, bound: Bottleneck) -> None:
    assert load_metrics(level, PEAKS, None).bottleneck is bound


def warnings_of(level: Any, shared: float = 0.0, *, natural_end: bool = False) -> str:
    return "\n".join(
        reliability_warnings(load_metrics(level, None, None), shared, natural_end=natural_end)
    )


def test_a_sound_load_has_no_warning() -> None:
    assert warnings_of(a_level(an_answer(), an_answer(), **engine(10))) == ""


@pytest.mark.parametrize(
    ("level", "numbers"),
    [
        (a_level(an_answer(), unfinished=3), "3 unfinished requests"),
        (a_level(an_answer(), a_failure(detail="full up")), "1 Http503, the first: full up"),
        (a_level(an_answer(), cpu_seconds=9.0), "client used 90% of a core"),
        (a_level(an_answer(due=1.0, sent=1.2)), "200 ms late"),
        (a_level(an_answer(cached=50)), "warm: 50%"),
        (
            a_level(
                an_answer(),
                **engine(5, prefix_cache_queries_total=100, prefix_cache_hits_total=90),
            ),
            "warm: 90%",
        ),
        (a_level(an_answer(exact=False)), "no usage"),
        (a_level(an_answer(job=a_job(outputs=50))), "5 instead of 50"),
        (a_level(an_answer(job=a_job(inputs=300))), "100 instead of 300"),
        (a_level(an_answer(), **engine(500)), "counted 500 output tokens, the client 5"),
        (
            a_level(
                an_answer(),
                before=a_look(0.0, generation_tokens_total=9),
                after=a_look(9.0, generation_tokens_total=3),
            ),
            "several replicas",
        ),
    ],
)
def test_a_warning_has_the_numbers_that_cause_it(level: Any, numbers: str) -> None:
    assert numbers in warnings_of(level)


def test_what_is_shared_by_design_is_not_cache_hot() -> None:
    assert "is warm" not in warnings_of(a_level(an_answer(cached=50)), shared=0.5)


def test_answers_that_may_end_are_not_too_short() -> None:
    assert warnings_of(a_level(an_answer(job=a_job(outputs=50))), natural_end=True) == ""


def test_other_tokens_of_failed_answers_do_not_cast_doubt_on_the_engine() -> None:
    assert "the client" not in warnings_of(a_level(an_answer(), a_failure(), **engine(60)))


def test_loads_with_failures_are_not_asked_for_the_knee() -> None:
    loads = [a_level(an_answer(gaps=[0.1] * places), concurrency=places) for places in (1, 2, 4)]
    assert sweep_knee([load_metrics(load, None, None) for load in loads]) is not None
    loads.append(a_level(an_answer(), a_failure(), concurrency=8))
    knee = sweep_knee([load_metrics(load, None, None) for load in loads])
    assert knee is not None
    assert knee.concurrency <= 4


def blocks(number: int, tokens: int, *ids: int) -> BenchRequest:
    return BenchRequest(number=number, input_tokens=tokens, output_tokens=1, blocks=ids)


def test_only_the_begin_of_a_prompt_can_repeat() -> None:
    jobs = [blocks(0, 1024, 1, 2), blocks(1, 1024, 1, 3), blocks(2, 1024, 4, 2)]
    assert shared_prompt_share(jobs) == 512 / 3072
    assert shared_prompt_share([blocks(0, 600, 1, 2), blocks(1, 600, 1, 2)]) == 0.5
    assert shared_prompt_share([]) == 0


def test_a_shared_prefix_repeats_in_all_but_the_first() -> None:
    jobs = [
        BenchRequest(number=n, input_tokens=100, output_tokens=1, shared_tokens=50)
        for n in range(4)
    ]
    assert shared_prompt_share(jobs) == 150 / 400


def test_what_the_model_cannot_hold_is_not_sent() -> None:
    jobs = [a_job(inputs=90, outputs=10), a_job(inputs=91, outputs=10)]
    assert requests_within(jobs, 100) == jobs[:1]
    assert requests_within(jobs, None) == jobs
