"""Metrics pages of engines, which their tenants may have written."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.picking.engine_page import MAX_PAGE_BYTES, engine_load
from tessera.domain.picking.replica_state import EngineLoad

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} 9\\" b"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:lora_requests_info{running_lora_adapters="old",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{running_lora_adapters="legal,sql",waiting_lora_adapters=""} 1.8e+09
"""


def test_the_load_of_an_engine_is_read() -> None:
    assert engine_load(PAGE, 7.0) == EngineLoad(
        running=3,
        waiting=2,
        kv_usage=0.25,
        adapters=frozenset({"legal", "sql"}),
        observed_at=7.0,
    )


def test_engines_behind_one_address_are_added() -> None:
    second = PAGE.replace(b'engine="0"', b'engine="1"').replace(b"0.25", b"0.75")
    load = engine_load(PAGE + second, 7.0)
    assert load is not None
    assert (load.running, load.waiting, load.kv_usage) == (6, 4, 0.75)


@pytest.mark.parametrize(
    "value", [b"NaN", b"1e999", b"-1", b"+Inf", b"1e30", b"9" * 5000, b"", b"1_0", b"."]
)
def test_a_page_with_a_value_that_no_engine_has_says_nothing(value: bytes) -> None:
    assert engine_load(PAGE.replace(b"} 3.0", b"} " + value), 7.0) is None


def test_a_page_without_both_counts_says_nothing() -> None:
    assert engine_load(b"vllm:num_requests_running 1\n", 7.0) is None
    assert engine_load(b"", 7.0) is None


def test_what_a_page_repeats_or_hides_is_bounded() -> None:
    assert engine_load(PAGE * 64, 7.0) is None
    assert engine_load(b"vllm:num_requests_waiting\n" * 64 + PAGE, 7.0) is None
    assert engine_load(b" " * MAX_PAGE_BYTES + PAGE, 7.0) is None
    names = b",".join(b"%d" % number for number in range(10_000))
    load = engine_load(PAGE.replace(b"legal,sql", names[:4000]), 7.0)
    assert load is not None
    assert len(load.adapters) <= 64


def test_the_beginning_of_a_long_page_says_what_the_load_is() -> None:
    sets = b"".join(
        b'vllm:lora_requests_info{running_lora_adapters="a%d",waiting_lora_adapters=""} 2e+09\n' % n
        for n in range(5000)
    )
    assert len(PAGE + sets) > MAX_PAGE_BYTES
    load = engine_load(PAGE + sets, 7.0)
    assert load is not None
    # Which adapters ran last is not known then.
    assert (load.running, load.waiting, load.adapters) == (3, 2, frozenset())
    cut = engine_load(PAGE + b"vllm:num_requests_running 1", 7.0)
    assert cut is not None
    assert cut.running == 3


@pytest.mark.parametrize(
    "lines",
    [
        b"\n",
        b"\nvllm:",
        b"vllm:num_requests_running{",
        b"vllm:num_requests_running{\n",
        b"vllm:num_requests_runnin\nvllm:lora_requests_inf\n",
        b"vllm:lora_requests_info{} 1\n",
        b"vllm:lora_requests_info{" + b"}" * 200 + b" 1\n",
        b'vllm:lora_requests_info{running_lora_adapters="a",',
        b'running_lora_adapters="a",',
        b"vllm:num_requests_running " + b"1" * 5000,
    ],
)
def test_no_page_of_a_mebibyte_takes_longer_than_a_few_milliseconds(lines: bytes) -> None:
    page = PAGE + lines * (2**20 // len(lines))

    def seconds() -> float:
        start = time.process_time()
        engine_load(page, 0.0)
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.005


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_without_an_error(page: bytes) -> None:
    engine_load(PAGE + page, 0.0)
    engine_load(b'vllm:lora_requests_info{running_lora_adapters="' + page, 0.0)
