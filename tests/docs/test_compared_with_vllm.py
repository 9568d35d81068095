"""The page that compares with vLLM agrees with the committed figures."""

from fit.figures import GOAL, missed
from fit.pages import FOLDER, PAGE, committed, with_tables


def test_the_tables_of_the_page_are_those_of_the_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page
    assert page.count("| tessera-sim |") == 1


def test_every_miss_is_stated() -> None:
    figures, page = committed("fit"), PAGE.read_text(encoding="utf-8")
    assert figures["missed"] == missed(figures["loads"])
    assert page.count("%, missed |") == sum(
        abs(latency[error]) > GOAL
        for load in figures["loads"]
        for latency in load["latencies"]
        for error in ("tessera_sim_error", "machine_error")
    )


def test_both_reports_are_of_one_load_and_name_no_path_of_a_machine() -> None:
    real, sim = committed("bench-vllm"), committed("bench-tessera-sim")
    assert [real[key] for key in ("load", "seed", "warmup")] == [
        sim[key] for key in ("load", "seed", "warmup")
    ]
    for name in ("bench-vllm", "bench-tessera-sim"):
        for end in ("json", "html"):
            text = (FOLDER / f"{name}.{end}").read_text(encoding="utf-8")
            assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "/work/"))  # noqa: S108
