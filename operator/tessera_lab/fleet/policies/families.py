"""All policies by the names that the command line has for them."""

from collections.abc import Mapping

from tessera_lab.fleet.observation import Observation, PolicyFamily, ReplicaModel, Settings
from tessera_lab.fleet.policies.aibrix import AIBRIX_FAMILIES
from tessera_lab.fleet.policies.dynamo import DYNAMO_FAMILIES
from tessera_lab.fleet.policies.hpa_families import HPA_FAMILIES
from tessera_lab.fleet.policies.knative import KNATIVE_FAMILIES
from tessera_lab.fleet.policies.knobs import grid
from tessera_lab.fleet.policies.research import RESEARCH_FAMILIES
from tessera_lab.fleet.policies.wva import WVA_FAMILIES


class StaticPolicy:
    """As many replicas as set."""

    interval = 60.0
    scrape = 60.0

    def __init__(self, settings: Settings, _: ReplicaModel) -> None:
        self._replicas = int(settings["replicas"])

    def decide(self, _: Observation) -> int:
        """Return the number that is set."""
        return self._replicas


FAMILIES: Mapping[str, PolicyFamily] = {
    "static": PolicyFamily(
        title="Static replicas",
        create=StaticPolicy,
        published={"replicas": 8.0},
        grid=grid(replicas=range(1, 33)),
    ),
    **HPA_FAMILIES,
    **KNATIVE_FAMILIES,
    **AIBRIX_FAMILIES,
    **WVA_FAMILIES,
    **DYNAMO_FAMILIES,
    **RESEARCH_FAMILIES,
}
