"""Names and labels of the objects of a service."""

import hashlib
import re
from typing import NamedTuple

from tessera.api.meta import GROUP
from tessera.api.ref import CANDIDATE

SERVICE_LABEL = f"{GROUP}/service"
VARIANT_LABEL = f"{GROUP}/variant"
# The digest of the pod template; the Deployment with the name of its variant has none.
TEMPLATE_LABEL = f"{GROUP}/template"
APP_NAME = "app.kubernetes.io/name"
APP_INSTANCE = "app.kubernetes.io/instance"
APP_VERSION = "app.kubernetes.io/version"
PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
TESSERA = "tessera"
ENGINE = "engine"
# Value of `APP_NAME` on objects of engines; their `APP_VERSION` is the version of vLLM.
VLLM = "vllm"
# Value of `APP_NAME` on Jobs of the batch runner's image, which run no vLLM.
RUNNER_APP = "tessera-batch"
# Name of the objects that the engines of a namespace share.
ENGINE_ACCOUNT = "tessera-engine"
# ServiceAccount whose tokens read usage records, and the audience of these tokens.
USAGE_READER = "tessera-usage-reader"
# ServiceAccount whose tokens for USAGE_READER correct charges.
CHARGE_CORRECTOR = "tessera-charge-corrector"
# Audience of the tokens with which batch runners tell gateways what their rows used.
BATCH_CHARGES = "tessera-batch-charges"
# Name of the NetworkPolicy of engines that only gateways reach.
CLOSED_ENGINES = "tessera-engine-closed"
# Name of the NetworkPolicy of what engines of services connect to.
ENGINE_EGRESS = "tessera-engine-egress"
# The ConfigMap with the configurations of mig-manager.
MIG_CONFIG = "tessera-mig"
# The ConfigMap with the spend of all budgets.
SPEND_RECORDS_NAME = "tessera-spend"
COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
# On a service: a new value requests the newest pod template and weights.
# Karpenter's word for a node that it leaves alone, and the mark that Tessera set it.
DISRUPT_ANNOTATION = "karpenter.sh/do-not-disrupt"
GUARD_ANNOTATION = f"{GROUP}/do-not-disrupt"
UPDATE_ANNOTATION = f"{GROUP}/update"
# On a Deployment: the `ModelStatus` of its pinned revision as JSON, also of one that the status of
# its service does not have yet.
REVISION_ANNOTATION = f"{GROUP}/model-revision"
# What a Deployment's pod template was made from.
TEMPLATE_ANNOTATION = f"{GROUP}/template-record"
# On a TenantBudget: a `BudgetOverride` as JSON.
OVERRIDE_ANNOTATION = f"{GROUP}/budget-override"
# The same: a list of `BudgetRaise` as JSON.
RAISES_ANNOTATION = f"{GROUP}/budget-raises"
SERVING_GATE = f"{GROUP}/serving"
# Metric with the replicas that Tessera recommends where another autoscaler decides.
RECOMMENDED_REPLICAS = "tessera_service_recommended_replicas"

# Label of a displaced replica: the PodDisruptionBudget of its service no longer selects it.
LEAVING_LABEL = f"{GROUP}/leaving"
# Its value on the replica of a version that a gate tries.
TRIED = "tried"
# Reason of a gate that was closed; one that never opened is `NotNeeded`.
DRAINING = "Draining"
FIELD_MANAGER = "tessera-operator"
# The model hub where the platform names no mirror.
PUBLIC_HUB = "https://huggingface.co"
PORT = 8000
# A Deployment appends a hash and a random part to pod names: 11 characters.
_MAX_NAME_LENGTH = 52
_MAX_LABEL_LENGTH = 63


class Variant(NamedTuple):
    """What the replicas of one Deployment have in common; their tier is that of the pool."""

    pool: str
    instance: str
    """MIG profile, or the number of whole GPUs, such as `2gpu`."""
    precision: str | None
    """None for the precision of the checkpoint."""

    @property
    def name(self) -> str:
        """Return pool, hardware and precision in one label, such as `a100-3g-40gb`."""
        instance = re.sub(r"[^a-z0-9]+", "-", self.instance)
        precision = [self.precision] if self.precision else []
        return _short("-".join((self.pool, instance, *precision)))


def deployment_name(service: str, variant: str) -> str:
    """Return `<service>-<variant>`, shortened by a hash if pod names would be too long."""
    return _short(f"{service.removeprefix(CANDIDATE)}-{variant}")


def template_deployment_name(service: str, variant: str, template: str) -> str:
    """Return the name of the Deployment of one pod template of a variant."""
    digest = hashlib.sha256(f"{service}/{variant}/{template}".encode()).hexdigest()[:8]
    return f"{f'{service}-{variant}'[: _MAX_NAME_LENGTH - 9].rstrip('-')}-{digest}"


def _short(name: str) -> str:
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME_LENGTH - 9].rstrip('-')}-{digest}"


def can_name_service(name: str) -> bool:
    """Return whether some API server accepts a Service of this name."""
    name = name.removeprefix(CANDIDATE)
    return re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) is not None


def prepull_namespace(operator_namespace: str) -> str:
    """Return the namespace of pre-pulls, which the chart creates."""
    return f"{operator_namespace[: _MAX_LABEL_LENGTH - 8]}-prepull"


def keys_namespace(gateway_namespace: str) -> str:
    """Return the namespace of the Secrets of keys, which the chart creates unless it is named."""
    return f"{gateway_namespace[: _MAX_LABEL_LENGTH - 5]}-keys"


def selector(service: str) -> str:
    """Return the label selector of a service's replicas."""
    return f"{SERVICE_LABEL}={service}"
