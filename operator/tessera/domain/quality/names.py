"""Names, labels and annotations of the objects of gates."""

from collections.abc import Mapping
from typing import get_args

from tessera.api.meta import GROUP
from tessera.domain.observed.gates import GateRole, Readiness

# On a Job and its pod: the QualityGate, the service, and the role as a label value.
GATE_LABEL = f"{GROUP}/gate"
# It is not the label of replicas: Services and budgets must not count the pod.
GATE_SERVICE_LABEL = f"{GROUP}/gate-for"
GATE_ROLE_LABEL = f"{GROUP}/gate-role"
# On a Job: the digest of the version that it asks, which is longer than a label value may be.
GATE_DIGEST_ANNOTATION = f"{GROUP}/gate-digest"
# On the ControllerRevision of a version that is or was in force: its precisions that may serve.
PRECISIONS_ANNOTATION = f"{GROUP}/precisions"
# On the same: what is known of its replicas, in the words of `Readiness`.
READINESS_ANNOTATION = f"{GROUP}/readiness"
# Of such Jobs the ServiceAccount, and the NetworkPolicy of what their pods reach; and the policy
# that lets them into engines that otherwise only gateways reach.
GATE_ACCOUNT = "tessera-gate"
GATE_ENGINES = "tessera-gate-engines"
# Audience of the tokens by which gateways know such Jobs.
GATE_AUDIENCE = "tessera-gate"
# Name of the container of a Job.
GATE_CONTAINER = "gate"
ROLES: Mapping[str, GateRole] = {"baseline": "Baseline", "candidate": "Candidate"}
READINESS: Mapping[str, Readiness] = {each: each for each in get_args(Readiness)}


def answers_claim_name(gate: str) -> str:
    """Return the name of the claim with the answers of a gate."""
    return f"{gate}-answers"
