"""A sample of the claims that takes about three seconds; `make claims` computes all."""

from collections.abc import Mapping

import pytest

from claims import measured_int4_everywhere
from claims_pages import pages
from tessera_lab.claims.claim import ClaimKind, read_claims
from tessera_lab.claims.record import (
    INT4_CLAIMS,
    INT4_RECORD,
    read_results,
    results_text,
    run_claims,
)
from tessera_lab.claims.scenarios import SCENARIOS
from tessera_lab.claims.scenarios.setups import BANDWIDTH_FACTOR
from tessera_lab.claims.text import counts
from tessera_lab.claims.verdict import ClaimResult, ClaimVerdict, judge

CLAIMS = read_claims()
# Beside all that is arithmetic.
QUICK_SIMULATED = ("H04", "H14", "H15", "H18", "H23", "H24", "H40", "H44")
QUICK = tuple(
    claim.id
    for claim in CLAIMS.claims
    if claim.kind is ClaimKind.ARITHMETIC or claim.id in QUICK_SIMULATED
)


@pytest.fixture(scope="module")
def results() -> Mapping[str, ClaimResult]:
    return dict(run_claims(CLAIMS, QUICK))


@pytest.mark.parametrize("claim_id", QUICK)
def test_the_recorded_figures_are_those_that_are_computed(
    claim_id: str, results: Mapping[str, ClaimResult]
) -> None:
    assert results[claim_id] == read_results()[claim_id], "run make claims OPTIONS=--save"


def test_claims_of_4_bits_say_what_the_only_measured_kernel_makes_of_them() -> None:
    recorded, guessed = read_results(INT4_RECORD), read_results()
    assert tuple(recorded) == INT4_CLAIMS
    ids = ("H18", "H19", "H20", "H22", "H42")
    with measured_int4_everywhere():
        computed = dict(run_claims(CLAIMS, ids))
    assert computed == {claim_id: recorded[claim_id] for claim_id in ids}
    turned = {name for name in INT4_CLAIMS if recorded[name].verdict is not guessed[name].verdict}
    assert turned == {"H18", "H20"}
    assert all(recorded[name].verdict is ClaimVerdict.NOT_MET for name in turned)
    assert "H18 and H20 turn" in pages()["docs/claims/index.md"].replace("\n", " ")


def test_two_runs_give_the_same_bytes(results: Mapping[str, ClaimResult]) -> None:
    ids = ("H14", "H23", "H27", "H31", "H44")
    again = dict(run_claims(CLAIMS, ids))
    assert results_text(again) == results_text({name: results[name] for name in ids})


def test_every_claim_has_a_recorded_result_and_a_scenario_or_a_reason() -> None:
    recorded = read_results()
    assert list(recorded) == list(CLAIMS.by_id)
    for claim in CLAIMS.claims:
        figured = bool(recorded[claim.id].figures)
        assert figured == (claim.id in SCENARIOS), claim.id
        assert figured or claim.blocker or claim.kind is ClaimKind.LITERATURE
    numbers = counts(CLAIMS.by_id, recorded)
    assert numbers["claims"] == 50
    assert numbers["claims_with_figure"] >= 30
    assert numbers["claims_simulated"] >= 15


@pytest.mark.parametrize(
    ("factor", "verdicts"),
    [
        (0.5, {"H23": "Met", "H24": "NotMet"}),
        (1.0, {"H23": "MetOnlyUnder", "H24": "NotMet"}),
        (2.0, {"H23": "NotMet", "H24": "Met"}),
    ],
)
def test_another_memory_bandwidth_changes_verdicts(
    factor: float, verdicts: Mapping[str, str]
) -> None:
    for claim_id, verdict in verdicts.items():
        claim = CLAIMS.by_id[claim_id]
        altered = claim.model_copy(
            update={"conditions": {**claim.conditions, BANDWIDTH_FACTOR: factor}}
        )
        assert judge(altered, CLAIMS, SCENARIOS[claim_id]).verdict == verdict


def test_a_scenario_that_cannot_run_says_so_in_place_of_a_figure() -> None:
    claim = CLAIMS.by_id["H23"]
    small = claim.model_copy(update={"conditions": {**claim.conditions, "gpus": 1}})
    result = judge(small, CLAIMS, SCENARIOS["H23"])
    assert result.verdict is ClaimVerdict.NOT_RUN
    assert result.reason is not None
    assert "take more or larger GPUs" in result.reason
    assert not result.figures
