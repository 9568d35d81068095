"""The recorded results of a whole run, which pages and `tessera claims` show at once."""

import json
from collections.abc import Iterator, Mapping
from importlib import resources

from pydantic import TypeAdapter

from tessera_lab.claims.claim import ClaimSet
from tessera_lab.claims.scenarios import SCENARIOS
from tessera_lab.claims.verdict import ClaimResult, judge

_RESULTS = TypeAdapter(dict[str, ClaimResult])
RECORD = "figures.json"
# Results of these claims with the shares of the only measured 4-bit kernel on every GPU.
INT4_RECORD = "figures-int4.json"
INT4_CLAIMS = ("H01", "H02", "H03", "H18", "H19", "H20", "H22", "H42")


def read_results(record: str = RECORD) -> Mapping[str, ClaimResult]:
    """Return the recorded results by the ids of the claims."""
    text = resources.files("tessera_lab.claims").joinpath(record).read_text("utf-8")
    return _RESULTS.validate_json(text)


def results_text(results: Mapping[str, ClaimResult]) -> str:
    """Return the content of the record; equal results give equal bytes."""
    body = _RESULTS.dump_python(dict(results), mode="json", by_alias=True, exclude_defaults=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(body[name])}" for name in sorted(body))
    return f"{{\n{lines}\n}}\n"


def run_claims(claim_set: ClaimSet, ids: tuple[str, ...]) -> Iterator[tuple[str, ClaimResult]]:
    """Yield the result of each claim, in order."""
    claims = claim_set.by_id
    for claim_id in ids:
        yield claim_id, judge(claims[claim_id], claim_set, SCENARIOS.get(claim_id))
