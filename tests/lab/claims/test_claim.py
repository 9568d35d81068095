import json
from typing import Any

import pytest
from pydantic import ValidationError

from tessera_lab.claims.claim import Claim, ClaimKind, ClaimSet, read_claims

A_CLAIM: dict[str, Any] = {
    "id": "H01",
    "title": "A claim",
    "kind": "Simulated",
    "text": "It is 2 to 3 times as fast.",
    "sources": ["memory L1, L12"],
    "baseline": "without it",
    "scenario": "with it",
    "conditions": {"batch": 8},
    "vary": {"condition": "batch", "label": "requests", "least": 1, "most": 64},
    "figures": [{"name": "speed", "unit": "x", "low": 2, "high": 3}],
    "tolerance": 0.1,
}


def test_all_fifty_claims_are_there_with_their_conditions() -> None:
    claims = read_claims().claims
    assert [claim.id for claim in claims] == [f"H{number:02}" for number in range(1, 51)]
    assert sum(claim.kind is ClaimKind.LITERATURE for claim in claims) == 8
    assert all(claim.conditions for claim in claims if claim.figures)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": "X1"}, "should match pattern"),
        ({"sources": ["somebody L1"]}, "should match pattern"),
        ({"sources": []}, "at least 1 item"),
        ({"kind": "Guessed"}, "'Simulated', 'Arithmetic' or 'Literature'"),
        ({"kind": "Literature"}, "H01: what is tried needs figures"),
        ({"figures": []}, "H01: what is tried needs figures"),
        ({"figures": [{"name": "a", "unit": "x", "low": 3, "high": 2}]}, "low 3 is above high 2"),
        ({"figures": [{"name": "a", "unit": "x", "low": None, "high": None}]}, "neither low nor"),
        ({"figures": [{"name": "a", "unit": "km", "low": 1, "high": 2}]}, "should match pattern"),
        ({"tolerance": 0.9}, "less than or equal to 0.5"),
        ({"vary": {"condition": "size", "label": "a", "least": 1, "most": 2}}, "no number size"),
        (
            {"vary": {"condition": "batch", "label": "requests", "least": 9, "most": 12}},
            "batch 8 is not within",
        ),
        ({"verdict": "Met"}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_a_claim_that_is_not_whole_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Claim.model_validate(A_CLAIM | change)


def test_ids_are_in_order_and_once_and_loads_exist() -> None:
    def claim_set(*claims: dict[str, Any]) -> ClaimSet:
        return ClaimSet.model_validate_json(json.dumps({"loads": {}, "claims": claims}))

    assert list(claim_set(A_CLAIM).by_id) == ["H01"]
    with pytest.raises(ValidationError, match="one is there twice"):
        claim_set(A_CLAIM, A_CLAIM)
    with pytest.raises(ValidationError, match="H01: no load chat"):
        claim_set(A_CLAIM | {"conditions": {"batch": 8, "load": "chat"}})
