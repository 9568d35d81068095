"""The data of the levers."""

import pytest

from ladders import DATA, FIGURES, ROOT, committed, figures_text, with_ours
from tessera_lab.levers.lever import LeverId, levers, source_orders, stacked_residual

STACKS = {
    "the low ends of quantization, batching and caches": ((0.30, 0.40, 0.20), 0.664),
    "the middle of them": ((0.40, 0.50, 0.30), 0.790),
    "their high ends": ((0.50, 0.60, 0.40), 0.880),
}


@pytest.mark.parametrize(("savings", "saving"), STACKS.values(), ids=STACKS.keys())
def test_residual_costs_multiply(savings: tuple[float, ...], saving: float) -> None:
    assert 1 - stacked_residual(savings) == pytest.approx(saving)


def test_a_bill_of_800_000_falls_to_110_000_if_routing_saves_two_thirds_more() -> None:
    residual = stacked_residual((0.34, 0.35))
    assert residual == pytest.approx(0.429)
    assert 1 - 110 / 800 / residual == pytest.approx(0.6795, abs=5e-5)


def test_low_ends_alone_promise_more_than_their_table_does_together() -> None:
    low = (levers()[lever].claimed for lever in ("right-size", "quantization", "routing"))
    ends = [each.low for each in low if each is not None] + [0.40, 0.20, 0.10]
    assert 1 - stacked_residual(ends) == pytest.approx(0.924, abs=1e-3)


def test_levers_of_the_ladder_come_first_and_in_its_order() -> None:
    assert list(levers())[: len(LeverId)] == list(LeverId)
    for lever in [*levers().values()][len(LeverId) :]:
        assert lever.blocked, f"{lever.id} is neither computed nor says why not"


def test_promises_are_shares_with_a_source() -> None:
    for lever in levers().values():
        if lever.claimed is not None:
            assert 0 < lever.claimed.low <= lever.claimed.high < 1
            assert lever.claimed.source.split()[0] in {"management", "engineering", "course"}
    assert {order.id for order in source_orders()} == {"engineering", "management", "course"}


def test_what_answers_depend_on_has_a_gate() -> None:
    gated = {lever.id for lever in levers().values() if lever.gate}
    assert gated == {
        *("quantization", "int4-files", "response-cache", "routing"),
        *("prompt-compression", "distillation"),
    }


def test_our_ranges_are_those_of_the_recorded_figures() -> None:
    data = (ROOT / DATA).read_text(encoding="utf-8")
    assert with_ours(data, committed().ladders) == data
    assert figures_text(committed()) == (ROOT / FIGURES).read_text(encoding="utf-8")
