"""What is computed for each claim: pure functions of its conditions, by its id."""

from collections.abc import Mapping

from tessera_lab.claims.verdict import Scenario

SCENARIOS: Mapping[str, Scenario] = {}
