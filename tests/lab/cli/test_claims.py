"""`tessera claims`: its table, one claim, its errors, its page."""

import json
import shlex

import pytest

from docs_tests.blocks import Command
from docs_tests.output import matches
from docs_tests.pages import page_of, read_page_steps
from tessera.cli.errors import CommandError
from tessera_lab.cli.claims.arguments import claims
from tessera_lab.cli.claims.command import run


def text(*words: str) -> str:
    return run(claims.parse(words)).text


def test_the_table_has_all_fifty_claims_with_their_verdicts() -> None:
    lines = text().splitlines()
    ids = [line.split()[0] for line in lines[1:-2] if not line.startswith(" ")]
    assert ids == [f"H{n:02}" for n in range(1, 51)]
    assert "8 literature, 1 not run" in lines[-1]


def test_one_claim_is_computed_and_shown_with_all_that_decides_it() -> None:
    output = text("h31")
    for part in (
        "Sources: management L246; course L20; engineering L188, L568",
        "Baseline: Every request goes to the large model",
        "smallShare 0.6",
        "Claimed: 50 to 80 %, tolerance 10%",
        "Ours: 45 % (Arithmetic)",
        "Right: 1.82 times",
        "Verdict: MetOnlyUnder: only: share for the small model 0.6 to 0.95",
    ):
        assert part in output


def test_literature_and_claims_that_cannot_run_have_no_figure() -> None:
    assert "https://arxiv.org/abs/2309.06180, 2023" not in text("H17")
    assert "2023-09-12, https://arxiv.org/abs/2309.06180" in text("H17")
    assert "Verdict: NotRun: Tessera has no response cache" in text("H30")


def test_json_has_conditions_results_and_counts() -> None:
    body = json.loads(text("H50", "--json"))
    [claim] = body["claims"]
    assert claim["conditions"]["visibleTokens"] == 100
    assert claim["result"]["figures"] == {"tokens": 8.05}
    assert claim["result"]["part"]["condition"] == "visibleTokens"
    assert body["counts"]["claims_conditional"] == 1


@pytest.mark.parametrize("word", ["H99", "batching", ""])
def test_an_unknown_claim_is_answered_with_similar_ones(word: str) -> None:
    with pytest.raises(CommandError, match=r"similar: H\d\d, .*lists all from H01 to H50"):
        text(word)


def test_an_id_and_all_claims_contradict_each_other() -> None:
    with pytest.raises(CommandError, match="either an id or --run"):
        text("H31", "--run")


def test_its_page_shows_what_it_prints() -> None:
    tried = 0
    for step in read_page_steps(page_of("claims")):
        if isinstance(step, Command):
            program, name, *words = shlex.split(step.text)
            assert (program, name) == ("tessera", "claims")
            assert step.output is not None
            assert matches(step.output, text(*words))
            tried += 1
    assert tried == 2
