"""Every resource type that the operator reads or writes, its own beside others: the source of the
RBAC."""

from dataclasses import replace
from functools import partial

from tessera.api.api_resource import READ, STATUS, ApiResource
from tessera.api.key_record import TENANT_LABEL
from tessera.domain.batch.names import BATCH_ACCOUNT
from tessera.domain.kinds.kind import Process
from tessera.domain.kinds.kinds import NODE_LAYOUTS, PRICE_LISTS, USER_KINDS
from tessera.domain.names import (
    CLOSED_ENGINES,
    COMPONENT,
    ENGINE,
    ENGINE_ACCOUNT,
    ENGINE_EGRESS,
    MANAGED_BY,
    MIG_CONFIG,
    SPEND_RECORDS_NAME,
    TESSERA,
)
from tessera.domain.quality.names import GATE_ACCOUNT, GATE_ENGINES

# Label selector of the objects that the operator manages.
MANAGED_SELECTOR = f"{MANAGED_BY}={TESSERA}"


_MANAGE = (*READ, "create", "patch", "delete")

# Kinds whose objects Tessera creates, repairs and deletes.
_managed_kind = partial(ApiResource, verbs=_MANAGE, selector=MANAGED_SELECTOR)

# As the operator has them, which writes prices by cost once a day.
PRICED_LISTS = replace(PRICE_LISTS, verbs=("list",), subresources=STATUS)
NODES = ApiResource(kind="Node", namespaced=False, verbs=READ)
# Of all pods, since a user who may write a pod may take its labels off: those without devices that
# Tessera did not create are dropped when they are parsed.
PODS = ApiResource(kind="Pod", verbs=(*READ, "patch", "delete"), subresources=STATUS)
# Created for models and never deleted by the operator: they are deleted with their owner.
CLAIMS = ApiResource(kind="PersistentVolumeClaim", verbs=(*READ, "create", "patch"))
# Created once and deleted; a Job's template is immutable, so there is nothing to repair.
JOBS = _managed_kind(group="batch", kind="Job")
DEPLOYMENTS = _managed_kind(group="apps", kind="Deployment")
# The versions of services with a gate. Their data never changes, and their number does.
CONTROLLER_REVISIONS = _managed_kind(group="apps", kind="ControllerRevision")
# The DaemonSets that pre-pull images.
DAEMON_SETS = _managed_kind(group="apps", kind="DaemonSet", in_prepull_namespace=True)
# The placeholders that bring nodes whose slices no autoscaler knows.
REPLICA_SETS = _managed_kind(group="apps", kind="ReplicaSet", in_prepull_namespace=True)
SERVICES = _managed_kind(kind="Service")
SERVICE_ACCOUNTS = _managed_kind(
    kind="ServiceAccount", resource_names=(ENGINE_ACCOUNT, BATCH_ACCOUNT, GATE_ACCOUNT)
)
NETWORK_POLICIES = _managed_kind(
    group="networking.k8s.io",
    kind="NetworkPolicy",
    resource_names=(
        *(ENGINE_ACCOUNT, CLOSED_ENGINES, ENGINE_EGRESS),
        *(BATCH_ACCOUNT, GATE_ACCOUNT, GATE_ENGINES),
    ),
)
DISRUPTION_BUDGETS = _managed_kind(group="policy", kind="PodDisruptionBudget")
# Listed and written only with the chart's value hpa.enabled.
HORIZONTAL_POD_AUTOSCALERS = _managed_kind(
    group="autoscaling",
    version="v2",
    kind="HorizontalPodAutoscaler",
)
# Autoscalers of anybody, which are listed where somebody else writes a Deployment's replicas.
FOREIGN_AUTOSCALERS = replace(
    HORIZONTAL_POD_AUTOSCALERS, verbs=("list",), selector=None, watched=False
)
ROLE_BINDINGS = _managed_kind(
    group="rbac.authorization.k8s.io",
    kind="RoleBinding",
    resource_names=(BATCH_ACCOUNT,),
)
# Polled instead of watched, since its CRD may be installed and removed at any time.
POD_MONITORS = _managed_kind(
    group="monitoring.coreos.com",
    kind="PodMonitor",
    watched=False,
    resource_names=(ENGINE_ACCOUNT,),
)

# The keys of tenants, in the namespace of the gateway, which is all that reads them.
KEY_SECRETS = ApiResource(kind="Secret", verbs=("get", "list", "watch"), selector=TENANT_LABEL)
# The keys of outside providers: all Secrets of a namespace that has nothing else.
PROVIDER_SECRETS = replace(KEY_SECRETS, selector=None)

# The engines alone, for the gateway.
ENGINE_PODS = replace(PODS, verbs=READ, subresources=(), selector=f"{COMPONENT}={ENGINE}")

# The configuration of mig-manager, in the namespace of the GPU operator.
CONFIG_MAPS = ApiResource(
    kind="ConfigMap",
    verbs=("get", "create", "patch"),
    watched=False,
    resource_names=(MIG_CONFIG,),
)

# Why the pod of a Job is refused; the Job itself does not say it.
EVENTS = ApiResource(kind="Event", verbs=("list",), watched=False)

# What the operator decided about an object, for `kubectl describe`.
RECORDED_EVENTS = replace(EVENTS, group="events.k8s.io", verbs=("create", "patch"))

# The copy of the spend of all budgets, in the operator's namespace.
SPEND_RECORDS = replace(CONFIG_MAPS, resource_names=(SPEND_RECORDS_NAME,))

# The kinds that the operator applies, repairs and prunes.
CHILDREN = (
    DEPLOYMENTS,
    DAEMON_SETS,
    REPLICA_SETS,
    SERVICES,
    SERVICE_ACCOUNTS,
    NETWORK_POLICIES,
    DISRUPTION_BUDGETS,
    ROLE_BINDINGS,
    POD_MONITORS,
)

KINDS: tuple[ApiResource, ...] = (
    *(kind for kind in USER_KINDS if Process.OPERATOR in kind.watched_by),
    NODE_LAYOUTS,
    NODES,
    PODS,
    CLAIMS,
    JOBS,
    CONTROLLER_REVISIONS,
    *CHILDREN,
)
# The further kinds of an operator that may write HorizontalPodAutoscalers.
AUTOSCALING = (HORIZONTAL_POD_AUTOSCALERS,)
# Additional permissions of an operator that may partition GPUs.
PARTITIONING = (
    replace(NODES, verbs=("patch",)),
    replace(NODE_LAYOUTS, verbs=("patch", "delete")),
    replace(PODS, verbs=(), subresources=(("eviction", ("create",)),)),
)
WATCHED = tuple(kind for kind in KINDS if kind.watched)
