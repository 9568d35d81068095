"""The shares of kernels of experts: known shares, which rows count, and the measured prompt."""

import pytest

import derive_experts
import expert_prompts
from derive_experts import SYSTEMS, KernelRow
from speed_rows import read_engine
from tessera.domain.perf.table import ExpertShares, shipped_speed_table

H100 = SYSTEMS["h100_sxm"]
TRITON = "vllm_unquantizedfusedmoe_triton_tritonexperts"


def test_the_shares_behind_exact_rows_are_found() -> None:
    shares = ExpertShares(weights=0.9, compute=0.55, unhidden=0.5, layer_micros=30.0)
    rows = [
        KernelRow(tokens, read, tokens * 1e-7, 1.0)
        for tokens in (1, 8, 64, 512, 4096, 32_768)
        for read in (2e-5, 4e-4, 2e-3)
    ]
    exact = [KernelRow(row.tokens, row.read, row.computing, 1 + row.error(shares)) for row in rows]
    fitted = derive_experts.fit(exact)
    for name, value in shares.model_dump().items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        (["bfloat16", TRITON, "balanced", 8, 2048, 768, 128, 8, 0.2], True),
        # Other kernels and other choices of experts.
        (["bfloat16", "vllm_other", "balanced", 8, 2048, 768, 128, 8, 0.2], False),
        (["fp8", TRITON, "balanced", 8, 2048, 768, 128, 8, 0.2], False),
        (["bfloat16", TRITON, "power_law_1.01", 8, 2048, 768, 128, 8, 0.2], False),
        # Eight experts of 6 MiB are in the L2 cache.
        (["bfloat16", TRITON, "balanced", 1, 2048, 512, 256, 8, 0.02], False),
        # Experts of two matrices.
        (["bfloat16", TRITON, "balanced", 8, 2688, 1856, 128, 6, 0.2], False),
    ],
)
def test_rows_of_one_kernel_count_if_their_experts_are_known(
    row: list[object], counts: bool
) -> None:
    assert len(derive_experts.kernel_rows(H100, "Bf16", [row])) == counts


def test_a_row_has_what_its_experts_take_at_the_peaks() -> None:
    table = [["bfloat16", TRITON, "balanced", 8, 2048, 768, 128, 8, 0.2]]
    [row] = derive_experts.kernel_rows(H100, "Bf16", table)
    assert row.read == pytest.approx(64 * 3 * 2048 * 768 * 2 / 3.35e12)
    assert row.computing == pytest.approx(2 * 64 * 3 * 2048 * 768 / 989e12)
    assert row.seconds == 0.2e-3


def test_experts_that_are_chosen_unevenly_are_counted_only_where_their_number_is_known() -> None:
    a100 = SYSTEMS["a100_sxm"]
    table: list[list[object]] = [
        ["bfloat16", "vllm_fused_moe", "power_law_1.01", tokens, 2048, 768, 128, 8, 0.2]
        for tokens in (1, 8, 64, 128, 2048)
    ]
    rows = derive_experts.kernel_rows(a100, "Bf16", table)
    assert [row.tokens for row in rows] == [1, 128, 2048]


def test_the_shipped_shares_are_shares_and_say_where_they_are_from() -> None:
    experts = shipped_speed_table().experts
    assert "derived" in experts.source
    assert "aiconfigurator-core 0.12.0" in experts.source
    assert {each.family for each in experts.families} == {each.family for each in SYSTEMS.values()}
    kernels = [shares for each in experts.families for shares in each.kernels.values()]
    assert all(0 < shares.weights < 1 and 0 < shares.compute < 1 for shares in kernels)


def test_the_least_time_of_prompts_is_that_of_the_measured_prompt() -> None:
    shipped = shipped_speed_table()
    assert expert_prompts.prompt_floor(shipped) == shipped.experts.prompts


def test_the_error_of_prompts_counts_that_prompt_by_the_kernels_alone() -> None:
    [error] = expert_prompts.held_out_errors(shipped_speed_table(), read_engine()).values()
    assert error == pytest.approx(-0.56, abs=0.01)
