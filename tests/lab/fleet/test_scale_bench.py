"""The comparison of scaling policies: its cuts, its order, its figures, and its memory of runs."""

import gzip
import json
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from bench_scale import (
    Bench,
    Outcome,
    below_bound,
    default_folder,
    figures_beside,
    figures_of,
    figures_of_rival,
    is_cheapest,
    name_of,
    page_of,
    saved,
    savings,
    table,
)
from scale import runs as scale_runs
from scale.cases import (
    CASES,
    COLD,
    HOUR,
    TRACES,
    WARM,
    Case,
    Hours,
    find_cases,
    ramp_begin,
    tier_pools,
)
from scale.page import Cell, cell_of, main_table, with_tables
from scale.runs import TIERS, Result, Run, Runs
from scale.seeds import mean_of
from scale.sources import digest
from scale.tiers import figures_of_tiers
from tessera_lab.fleet.policies.product import OURS
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace
from tessera_lab.load.trace_rows import TraceError
from tests.lab.fleet.builders import steady
from tune_rivals import finalists, order, points


def a_result(usd: float, policy: str = "keda", *, sufficient: bool = True, **fields: Any) -> Result:
    share = 0.97 if sufficient else 0.9
    prices = {"aws-2026": usd, "neo-2026": usd / 2}
    return Result(
        **{
            "run": Run(case="conv", policy=policy, settings=(("target", usd),)),
            "requests": 1000,
            "share": share,
            "window_share": share,
            "sufficient": sufficient,
            "replica_hours": usd / 5,
            "gpu_hours": {"1": usd / 5},
            "paid_seconds": 3600.0,
            "usd_on_demand": prices,
            "usd": prices,
            "reserved": {"aws-2026": 1, "neo-2026": 1},
            "changes_per_hour": 2.0,
            "broken_streams": 0,
            "longest_wait": 0.0,
            "cpu_seconds": 1.0,
            "initial": 1,
            **fields,
        }
    )


def test_the_scored_part_has_the_steepest_ramp_in_its_middle() -> None:
    slow, fast = steady(0.1, 10 * HOUR), steady(1, 4 * HOUR)
    arrivals = sorted([*slow.arrivals, *(arrival + 5 * HOUR for arrival in fast.arrivals)])
    lengths = array("i", [10] * len(arrivals))
    trace = Trace(
        name="ramp",
        seconds=10 * HOUR,
        arrivals=array("d", arrivals),
        input_tokens=lengths,
        output_tokens=lengths,
    )
    assert ramp_begin(trace, 2) == 4 * HOUR
    # A short trace has no slot to compare with.
    assert ramp_begin(steady(1, 600), 0.1) == 0
    # At the edge of a trace the window stays within it.
    assert ramp_begin(trace, 10) == 0


def test_variants_score_the_other_hours_and_know_what_was_recorded_before(tmp_path: Path) -> None:
    # The rate doubles at 8 h, in the middle of the window.
    arrivals = [*range(0, 8 * 3600, 20), *range(8 * 3600, 10 * 3600 + 10, 10)]
    lines = ["arrival_s,input_tokens,output_tokens", *(f"{at},200,20" for at in arrivals)]
    (tmp_path / "day.csv").write_text("\n".join(lines))
    ramp = Case(name="day", file="day.csv")
    others, whole = replace(ramp, hours=Hours.OTHERS), replace(ramp, hours=Hours.ALL)
    scored, rest, every = (case.trace(tmp_path, 2) for case in (ramp, others, whole))
    assert (scored.seconds, len(scored)) == (2 * HOUR, 540)
    assert rest.seconds == every.seconds - 2 * HOUR
    assert len(rest) == len(every) - len(scored)
    assert list(rest.arrivals) == sorted(rest.arrivals)
    until_end = ramp.load_until_end(tmp_path, 2)
    assert until_end.seconds == 9 * HOUR
    assert len(until_end) == len(scored) + 7 * 180
    assert others.load_until_end(tmp_path, 2) == rest
    surge = replace(ramp, surge=3).trace(tmp_path, 2).input_tokens
    # Of the last 300 s before the ramp, and the first after it.
    assert (surge.count(600), len(surge)) == (15 + 30, 540)
    # The day before is that on which policies are tuned.
    day_after = replace(whole, tuning_file="day.csv").load_until_end(tmp_path, 2)
    assert (day_after.seconds, len(day_after)) == (2 * every.seconds, 2 * len(every))
    assert list(day_after.arrivals) == sorted(day_after.arrivals)


def test_what_keeps_the_goal_comes_first_and_the_cheapest_in_front() -> None:
    cheap, dear = a_result(10), a_result(20)
    far, near = a_result(5, sufficient=False), a_result(6, sufficient=False, share=0.94)
    assert order([far, dear, near, cheap]) == [cheap, dear, near, far]


def test_what_attains_most_is_tried_elsewhere_however_much_it_costs() -> None:
    entries = [
        {"settings": {"target": usd}, "windowShare": min(1.0, usd / 50), "share": usd / 100}
        for usd in range(1, 60)
    ]
    assert [each["target"] for each in finalists(entries)] == [1, 2, 3, 59, 58]
    assert [each["target"] for each in finalists(entries[:4])] == [1, 2, 3, 4]


def test_a_grid_is_thinned_evenly() -> None:
    grid = [{"target": float(index)} for index in range(90)]
    assert [each["target"] for each in points(grid)] == [float(3 * index) for index in range(30)]
    assert points(grid[:7]) == grid[:7]


def test_the_gap_is_that_between_the_best_rival_and_the_cover() -> None:
    cover, rival = a_result(10, "cover"), a_result(20)
    own, late = a_result(16, OURS), a_result(16, OURS, sufficient=False)
    figures = figures_of("conv", own, cover, bound=8.0)
    figures |= figures_of_rival("conv", own, cover, rival)
    assert (figures["best_rival_conv"], figures["gap_closed_conv"]) == ("keda, 1 GPU", 0.4)
    assert (figures["vs_bound_conv"], figures["vs_cover_conv_cold"]) == (2.0, 1.6)
    assert figures_of("conv", late, cover, bound=8.0)["usd_conv"] is None
    assert "gap_closed_conv" not in figures_of_rival("conv", late, cover, rival)
    assert figures_of_rival("conv", own, cover, None)["best_rival_conv"] is None


def test_a_policy_that_never_keeps_the_goal_has_no_dollars() -> None:
    late = a_result(5, "late", sufficient=False)
    results = [a_result(16, OURS), late, a_result(10, "cover")]
    lines = table("conv", results, {"aws-2026": 8.0, "neo-2026": 4.0})
    rows = [line for line in lines.splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows[2:]] == ["cover,", f"{OURS},", "late,", "bound"]
    assert rows[4].count("missed") == 3


def test_two_tiers_are_compared_with_the_best_reservation_in_hindsight() -> None:
    results = [
        (a_result(10), a_result(9.9)),
        (a_result(20), a_result(20.4, longest_wait=5.0)),
    ]
    disturbed = {"slow-nodes": a_result(30, sufficient=False, longest_wait=25.0, broken_streams=2)}
    figures = figures_of_tiers(results, disturbed, "aws-2026")
    assert figures["tiers_vs_hindsight_reserved"] == 1.02
    assert figures["attainment_slow-nodes_tiers"] == 0.9
    assert (figures["tiers_longest_wait_seconds"], figures["tiers_broken_streams"]) == (25.0, 2)
    missed = [*results, (a_result(20), a_result(19, sufficient=False))]
    assert figures_of_tiers(missed, disturbed, "aws-2026")["tiers_vs_hindsight_reserved"] is None


@pytest.mark.parametrize(("reserved", "gpus"), [(0, 1), (3, 2)])
def test_two_tiers_have_the_hardware_of_one_and_are_paid_for_what_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserved: int, gpus: int
) -> None:
    lines = [f"{index},200,20" for index in range(300)]
    (tmp_path / "tiny.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]))
    case = Case(name="tiny", file="tiny.csv")
    monkeypatch.setitem(CASES, "tiny", case)
    tiers = case.objects(tier_pools(reserved), gpus)
    assert tiers.choice().fit == case.objects(gpus=gpus).choice().fit
    run = Run(case="tiny", policy=TIERS, reserved=reserved, gpus=gpus)
    result = scale_runs.play(run, tmp_path, 1)
    assert result.sufficient
    expected = gpus * (reserved * 4.20 if reserved else 6.88)
    hours = result.paid_seconds / HOUR
    assert result.usd["aws-2026"] == pytest.approx(expected * hours, rel=0.01)


def test_what_is_below_the_bound_is_named() -> None:
    below = [a_result(7, "lucky"), a_result(9, "fine"), a_result(6, "late", sufficient=False)]
    bound = {"aws-2026": 8.0, "neo-2026": 1.0}
    assert below_bound(below, bound) == ["lucky on conv at aws-2026"]


def test_settings_are_tried_until_others_will_hardly_cost_less() -> None:
    timely, late = a_result(20), a_result(5, sufficient=False)
    assert is_cheapest("mlarge", timely)
    assert not is_cheapest("mlarge", late)
    assert not is_cheapest("mlarge", None)
    # Of the others all settings are tried.
    assert not is_cheapest("r1", timely)
    assert is_cheapest("r1", a_result(20, replica_hours=1.0))


def test_the_mean_of_seeds_keeps_the_goal_if_each_does_and_names_all_sizes() -> None:
    first = a_result(10, OURS, gpu_hours={"1": 4.0})
    second = a_result(20, OURS, gpu_hours={"1": 2.0, "2": 4.0}, share=0.96)
    mean = mean_of([first, second])
    assert (mean.usd["aws-2026"], mean.share, mean.sufficient) == (15.0, 0.96, True)
    assert mean.gpu_hours == {"1": 3.0, "2": 2.0}
    assert name_of(mean) == "tessera, 1 and 2 GPUs"
    missed = mean_of([first, a_result(20, OURS, sufficient=False)])
    assert not missed.sufficient
    figures = figures_beside("r1-default", missed, second)
    assert (figures["kept_r1-default"], figures["usd_r1-default_best_rival"]) == (False, 20.0)


def test_the_page_names_the_size_of_replicas_and_keeps_what_stands_around_its_tables() -> None:
    row = [
        cell_of(a_result(usd, name, gpu_hours=gpu_hours, sufficient=usd < 100), "aws-2026")
        for name, usd, gpu_hours in (
            ("far", 300, {"1": 1.0}),
            ("near", 30, {"1": 1.0}),
            ("nearer", 20, {"2": 1.0}),
            (OURS, 15, {"1": 1.0, "2": 2.0}),
            *((f"rival-{number}", 40 + number, {"1": 1.0}) for number in range(3)),
        )
    ]
    lines = main_table({"r1": row}).splitlines()
    assert lines == [
        "| USD | r1 |",
        "| --- | --- |",
        "| `tessera`, mean | 15.00 (1+2 GPUs) |",
        "| `nearer` | 20.00 (2 GPUs) |",
        "| `near` | 30.00 |",
        "| `rival-0` | 40.00 |",
        "| `rival-1` | 41.00 |",
        "| 2 others | 42.00 to 42.00 or missed |",
    ]
    assert row[0].text == "missed (0.900, 0.90)"
    fixed = a_result(50, "static", gpu_hours={"2": 6.0}, initial=3)
    assert cell_of(fixed, "aws-2026").text == ("50.00 (3 of 2 GPUs)")
    page = with_tables("before\n", "one")
    assert with_tables(f"{page}\nafter\n", "two") == page.replace("one", "two") + "\nafter\n"


def test_parts_are_saved_beside_each_other_until_the_sources_are_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scale.json"
    own, rival = Cell(OURS, 10.0), Cell("keda", 20.0, "2 GPUs")
    for sources, cell in (("a", own), ("a", rival), ("b", own)):
        monkeypatch.setattr("bench_scale.digest", lambda sources=sources, **_: sources)
        outcome = Outcome({cell.policy: 1}, cells={"r1": {cell.policy: cell}})
        path.write_text(json.dumps(saved(path, outcome)))
        document = json.loads(path.read_text())
        assert (rival.text in page_of(document)) == (cell is rival)
        assert own.text in page_of(document)
        assert set(document["figures"]) == ({OURS, "keda"} if cell is rival else {OURS})


class Played:
    """Runs that cost what a function says."""

    def __init__(self, usd: Callable[[Run], float], keeps: Callable[[Run], bool]) -> None:
        self._usd, self._keeps = usd, keeps

    def results(self, runs: list[Run], _: object) -> dict[Run, Result]:
        return {run: a_result(self._usd(run), run=run, sufficient=self._keeps(run)) for run in runs}


def test_a_policy_is_scored_at_its_cheapest_size_that_keeps_the_goal() -> None:
    runs = Played(
        lambda run: dict(run.settings)["replicas"] * (run.gpus or 1) * 5,
        # Three of two GPUs suffice, or eight of one.
        lambda run: dict(run.settings)["replicas"] * (run.gpus or 1) >= (6 if run.gpus == 2 else 8),
    )
    static = Bench(cast(Runs, runs), hours=2, seeds=1).static("r1")
    assert (static.run.gpus, dict(static.run.settings)) == (2, {"replicas": 3})


def test_the_best_rival_keeps_the_goal_in_every_seed() -> None:
    rivals = [a_result(usd, name) for usd, name in ((10, "lucky"), (20, "steady"))]
    runs = Played(
        lambda run: 10.0 if run.policy == "lucky" else 20.0 + run.seed,
        lambda run: run.policy == "steady" or run.seed < 3,
    )
    best = Bench(cast(Runs, runs), hours=2, seeds=3).best_rival(rivals)
    assert best is not None
    assert (best.run.policy, best.usd["aws-2026"]) == ("steady", 22.0)


def test_a_replica_of_two_gpus_is_paid_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{index},200,20" for index in range(60)]
    (tmp_path / "tiny.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]))
    monkeypatch.setitem(CASES, "tiny", Case(name="tiny", file="tiny.csv"))
    run = Run(case="tiny", policy="static", settings=(("replicas", 1.0),), gpus=2)
    result = scale_runs.play(run, tmp_path, 1)
    hours = result.paid_seconds / HOUR
    assert result.gpu_hours == {"2": pytest.approx(2 * hours)}
    assert result.usd_on_demand["aws-2026"] == pytest.approx(2 * 6.88 * hours)


def test_a_result_is_kept_until_a_module_that_plays_it_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scale.sources._ROOTS", (tmp_path,))
    for name, text in {
        "scale/runs.py": "from played import (\n    engine,\n)\n",
        "scale/cases.py": "from tessera_lab.fleet.policies.product import plan\n",
        "played/engine.py": "speed = 1\n",
        "tessera_lab/fleet/policies/product.py": "plan = 1\n",
        "tessera_lab/fleet/policies/families.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def digests() -> tuple[str, str]:
        digest.cache_clear()
        return digest(product=True), digest(product=False)

    product, rivals = digests()
    (tmp_path / "tessera_lab/fleet/policies/product.py").write_text("plan = 2\n")
    changed, same = digests()
    assert changed != product
    assert same == rivals
    (tmp_path / "played/engine.py").write_text("speed = 2\n")
    assert digests()[1] != rivals
    digest.cache_clear()


def test_savings_are_relative_to_what_keeps_the_goal() -> None:
    own = a_result(60, OURS, usd_on_demand={"aws-2026": 90.0})
    busy, chiron = a_result(120, "hpa-documents-busy"), a_result(100, "chiron")
    late = a_result(30, "hpa-documents-mig", sufficient=False)
    assert savings(own, {"hpa-documents-mig": late, "hpa-documents-busy": busy}) == {
        "published_that_keep_the_goal": ["hpa-documents-busy"],
        "saving_vs_documents": 0.25,
        "saving_price_mix_untuned": 0.5,
    }
    without = savings(own, {"hpa-documents-mig": late, "chiron": chiron})
    assert without["saving_vs_documents"] is None
    assert without["saving_price_mix_untuned"] == 0.4


def test_a_run_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that has a file is read from there, also by another process."""
    lines = [f"{index},200,20" for index in range(600)]
    (tmp_path / "tiny.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]))
    monkeypatch.setitem(CASES, "tiny", Case(name="tiny", file="tiny.csv"))
    run = Run(case="tiny", policy="static", settings=(("replicas", 1.0),))
    runs = Runs(tmp_path, tmp_path / "runs", workers=1)
    (first,) = runs.results([run], {}).values()
    runs.close()
    assert first.sufficient
    assert first.requests == 600

    def refuse(*_: object) -> Result:
        raise AssertionError

    monkeypatch.setattr(scale_runs, "play", refuse)
    again = Runs(tmp_path, tmp_path / "runs", workers=1)
    assert again.results([run], {}) == {run: first}
    again.close()


def test_what_ends_early_says_what_it_has_and_a_bad_trace_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="130"), Runs(tmp_path, tmp_path / "runs"):
        raise KeyboardInterrupt
    assert capsys.readouterr().out.startswith(f"ended early: 0 runs are in {tmp_path}/runs; ")
    with pytest.raises(SystemExit, match="no such trace"), Runs(tmp_path, tmp_path / "runs"):
        raise TraceError("no such trace")
    # A mistake of the code is shown as one.
    with pytest.raises(ValueError, match="empty"), Runs(tmp_path, tmp_path / "runs"):
        raise ValueError("empty")


def test_the_cases_of_a_folder_are_those_whose_traces_are_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has no trace: name a folder"):
        find_cases(tmp_path, None)
    (tmp_path / CASES["code"].file).touch()
    assert find_cases(tmp_path, None) == ["code"]
    with pytest.raises(TraceError, match=f"no case conv in {tmp_path}; choose from code"):
        find_cases(tmp_path, "conv")


def test_in_a_folder_of_other_traces_each_is_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scale.cases.CASES", dict(CASES))
    text = "arrival_s,input_tokens,output_tokens\n1,200,20\n2,400,40\n"
    for name in ("mine.csv", "other.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert find_cases(tmp_path, None) == ["mine", "other"]
    assert find_cases(tmp_path, "other") == ["other"]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "third.csv").write_text("arrival_s,input_tokens,output_tokens\n1,-2,20\n")
    with pytest.raises(TraceError, match="third"):
        find_cases(broken, None)


def test_a_file_is_played_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scale.cases.CASES", cases := dict(CASES))
    text = "arrival_s,input_tokens,output_tokens\n1,200,20\n2,400,40\n"
    for name in ("a_b.csv", "Ünlü Gün.csv", "day.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "day.csv.gz").write_bytes(gzip.compress(text.encode()))
    names = find_cases(tmp_path, None)
    assert names == ["a_b", "day.csv", "day.csv.gz", "Ünlü Gün"]
    assert {cases[name].objects().choice().fit.hardware.devices for name in names} == {1}


def test_only_requests_that_the_model_takes_count_for_the_typical_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scale.cases.CASES", cases := dict(CASES))
    text = "arrival_s,input_tokens,output_tokens\n1,200000,20\n"
    (tmp_path / "long.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match="0 of 1 requests have at most 32768 tokens"):
        find_cases(tmp_path, None)
    (tmp_path / "long.csv").write_text(f"{text}2,200,20\n", encoding="utf-8")
    assert [cases[name].typical_tokens for name in find_cases(tmp_path, None)] == [(200, 20)]


def test_results_of_other_traces_are_in_another_folder(tmp_path: Path) -> None:
    assert default_folder(TRACES) != default_folder(tmp_path)
    assert default_folder(tmp_path) == default_folder(tmp_path)


def test_warm_engines_sleep_on_nodes_that_are_paid() -> None:
    cold, warm = CASES["conv"].fleet(COLD, 3), CASES["conv"].fleet(WARM, 3)
    assert (cold.node_hold, cold.held_start_up, cold.purchase.reserved) == (0, None, 3)
    assert warm.node_hold > 0
    assert warm.held_start_up is not None
    assert replace(warm, node_hold=0, held_start_up=None) == cold


def test_no_case_is_scored_where_it_was_tuned() -> None:
    for case in CASES.values():
        if case.tuned and case.scored and case.tuning_file is None:
            assert case.tuned[1] <= case.scored[0], case.name


def test_each_seed_of_a_run_is_played_and_has_a_result_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"{index},200,20" for index in range(60)]
    (tmp_path / "tiny.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]))
    monkeypatch.setitem(CASES, "tiny", Case(name="tiny", file="tiny.csv"))
    first = Run(case="tiny", policy="static", settings=(("replicas", 1.0),))
    second = replace(first, seed=2)
    assert first.file != second.file
    seeds = list[int]()
    simulation = Simulation

    def note(*arguments: Any, seed: int, **others: Any) -> Any:
        seeds.append(seed)
        return simulation(*arguments, seed=seed, **others)

    monkeypatch.setattr(scale_runs, "Simulation", note)
    for run in (first, second):
        scale_runs.play(run, tmp_path, 1)
    assert seeds == [1, 2]
