"""The ladders of the documents."""

from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from ladders import committed, figure
from ladders_page import PAGE, history_page, page
from tessera_lab.levers.figure import LadderFigure, month_figure
from tessera_lab.levers.lever import LeverId, levers
from tessera_lab.levers.picture import draw_ladders
from tessera_lab.levers.published import LOADS, MODELS, gpu_prices, static_batches

RECORDED = committed()
FIGURES = {figure.name: figure for figure in RECORDED.ladders}


def test_every_model_has_a_ladder_for_every_load() -> None:
    assert set(FIGURES) == {f"{model}, {load}" for model in MODELS for load in LOADS}


def test_a_ladder_computed_anew_is_the_recorded_one() -> None:
    assert figure("8B", "code") == FIGURES["8B, code"]


@pytest.mark.parametrize("ladder", FIGURES.values(), ids=FIGURES.keys())
def test_a_recorded_ladder_has_every_lever_in_order_and_falls(ladder: LadderFigure) -> None:
    assert [rung.lever for rung in ladder.rungs] == list(LeverId)
    before = ladder.baseline
    for rung in ladder.rungs:
        if rung.used:
            assert rung.after.per_month <= before.per_month
            before = rung.after
    assert ladder.baseline.keeps_slo, "plain vLLM is what a newcomer has"
    assert ladder.reached == pytest.approx(ladder.baseline.per_month / before.per_month, abs=0.01)
    assert ladder.reached >= ladder.reached_today


def test_prices_are_of_one_provider() -> None:
    prices = gpu_prices()
    assert "NVIDIA-L40S" not in prices
    assert all(each.spot < each.reserved < each.on_demand for each in prices.values())


def texts_of(figures: Sequence[LadderFigure]) -> list[str]:
    picture = draw_ladders(figures, columns=2)
    return [
        each.text or ""
        for each in ElementTree.fromstring(picture).iter()  # noqa: S314 - it is our own
        if each.tag.endswith("text")
    ]


def test_the_picture_names_every_lever_and_what_is_not_offered() -> None:
    texts = texts_of([*FIGURES.values()])
    for lever in LeverId:
        assert texts.count(levers()[lever].title) == len(FIGURES)
    assert "not offered today" in texts
    assert texts.count("Product of the single factors") == len(FIGURES)
    first = next(iter(FIGURES.values()))
    left_out = first.rungs[-1].model_copy(update={"used": False, "offered": False})
    texts = texts_of([first.model_copy(update={"rungs": (left_out,)})])
    assert any(text.endswith(", not offered") for text in texts)


def test_a_lever_is_offered_if_there_is_a_way_to_have_it() -> None:
    for entry in levers().values():
        assert entry.offered is not entry.today.startswith("not there"), entry.title


def test_the_page_marks_what_is_not_offered() -> None:
    text = page()
    for lever in LeverId:
        entry = levers()[lever]
        assert f"| {entry.title}{'' if entry.offered else ' (not offered)'} |" in text
    assert "Not offered today: response cache, prompt" in text
    assert PAGE == "docs/ladders.md"


def test_static_batches_stand_on_the_page_of_history_alone() -> None:
    assert "| 8B, chat | 13.15 | 17.8 s |" in history_page()
    assert not any(month.keeps_slo for month in RECORDED.static_batches.values())
    recorded = RECORDED.static_batches["8B, code"]
    assert month_figure(static_batches("8B", "code")) == recorded
    assert "static batches of" not in page()
