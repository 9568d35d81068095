"""Every reason in the conditions of an AcceleratorPool."""

from tessera.api.reasons import StatusReason


class PoolAccepted(StatusReason):
    """Is the spec of the pool valid?"""

    VALID = "Valid", True
    """The spec is valid."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""
    PRICE_NOT_YET_EFFECTIVE = "PriceNotYetEffective"
    """The first day of `spec.prices` is in the future."""
    OVERLAPPING = "Overlapping"
    """Every node that `spec.nodeSelector` matches belongs to an older pool, and so would those of
    `spec.nodeTemplate`."""
    INVALID_LAYOUT = "InvalidLayout"
    """No GPU of the pool can have `spec.mig.layout`, so its slices stay; services go on."""
    INVALID_NODE_TEMPLATE = "InvalidNodeTemplate"
    """`spec.nodeTemplate` contradicts the GPUs of the pool or the catalog, or an older pool selects
    its nodes; only existing nodes are offered."""
    PLANNER_ERROR = "PlannerError"
    """Discovering this pool failed with an internal error; what runs there stays."""


class Discovered(StatusReason):
    """Does the pool have hardware that Tessera knows?"""

    DEVICES_FOUND = "DevicesFound", True
    """Nodes with known devices match `spec.nodeSelector`."""
    NODES_ON_DEMAND = "NodesOnDemand", True
    """No node offers a device, and `spec.nodeTemplate` says what an autoscaler of nodes adds."""
    NOT_ACCEPTED = "NotAccepted"
    """Nothing is discovered while `Accepted` is False."""
    NO_NODES = "NoNodes"
    """No node matches `spec.nodeSelector`."""
    NO_DEVICES = "NoDevices"
    """Nodes match `spec.nodeSelector`, but offer no GPU, or no label says which one."""
    NODES_SET_ASIDE = "NodesSetAside", True
    """Nodes with known devices match `spec.nodeSelector`; others, named in the message, have
    another product or belong to an older pool and are not used."""
    DEVICES_SET_ASIDE = "DevicesSetAside", True
    """Some devices of the nodes are offered, and others, named in the message, are not: pods share
    them, or the size of such a slice is not known."""
    INCONSISTENT_LABELS = "InconsistentLabels", True
    """Nodes with known devices match `spec.nodeSelector`; the number of GPUs in the labels of some
    contradicts their devices, and the message says which is believed."""
    UNKNOWN_PRODUCT = "UnknownProduct"
    """The nodes have a GPU product that Tessera does not know."""
    UNKNOWN_PROFILES = "UnknownProfiles"
    """The nodes offer nothing but slices whose size is not known."""
    SHARED_GPUS = "SharedGPUs"
    """The device plugin shares the GPUs among pods, by time slicing or MPS, and an engine needs
    devices of its own."""


class NodesProvisioned(StatusReason):
    """Does an autoscaler add the nodes that pods wait for?

    Only pools with `spec.nodeTemplate` have this condition.
    """

    NODES_AVAILABLE = "NodesAvailable", True
    """No pod waits for a node of the pool."""
    NODES_STARTING = "NodesStarting", True
    """Pods wait for a node, for less than `status.provisioning.expectedStart`."""
    NODE_START_TIMED_OUT = "NodeStartTimedOut"
    """No node came within `status.provisioning.expectedStart`; the pool backs off until
    `status.provisioning.restingUntil`, and what it would have got goes to other pools."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A quota of the cloud or a limit of the autoscaler allows no further node, in its words."""
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    """The cloud has no such node to give, in its words."""
    IMAGE_PULL_SLOW = "ImagePullSlow"
    """The image of an engine has been pulled for more than 5 minutes on a node of the pool."""
    DRIVER_MISSING = "DriverMissing"
    """A node is Ready and offers no GPU for longer than a node takes to start: its driver or its
    device plugin does not run."""
    NODES_DIFFER = "NodesDiffer"
    """Nodes that came have another product, number of GPUs, labels or slices than
    `spec.nodeTemplate` says; they are offered as they are."""


class LayoutReady(StatusReason):
    """Do the GPUs of the pool have the planned MIG layout?"""

    AS_PLANNED = "AsPlanned", True
    """Every GPU has the planned layout, nodes offer its slices, and services run on them."""
    NOT_MANAGED = "NotManaged", True
    """`spec.mig` is absent, or `Static` without a layout: existing slices are used."""
    PLANNING = "Planning", None
    """A layout plan is being calculated."""
    NOT_DISCOVERED = "NotDiscovered"
    """No layout is planned while `Discovered` is False."""
    MIG_MODE_DISABLED = "MigModeDisabled"
    """No GPU of the pool is in MIG mode, which Tessera never changes; whole GPUs are used."""
    AWAITING_APPROVAL = "AwaitingApproval"
    """A plan waits for the annotation `tessera.dev/approve-layout`; the message has its name."""
    OUTSIDE_MAINTENANCE_WINDOW = "OutsideMaintenanceWindow"
    """A plan waits for `spec.mig.maintenanceWindow`."""
    REPARTITIONING = "Repartitioning"
    """GPUs are being drained and partitioned; the message says which."""
    NO_SURGE_CAPACITY = "NoSurgeCapacity"
    """A replica must be evicted from its slice, no free slice can take it, and its service would
    fall below its minReplicas; the message names both."""
    DISRUPTION_BUDGET = "DisruptionBudget"
    """A PodDisruptionBudget does not allow the eviction of a replica now."""
    DRAIN_DEADLINE_EXCEEDED = "DrainDeadlineExceeded"
    """The slices to remove were not free within `spec.mig.drainDeadline`: the node takes pods
    again, and the repartition begins again later."""
    UNMANAGED_POD = "UnmanagedPod"
    """A pod that Tessera does not manage holds a slice that must be removed or that a service moves
    to."""
    NODE_NOT_READY = "NodeNotReady"
    """A node that must be repartitioned is not Ready, or its agent is silent or cannot read the
    GPUs."""
    INCONSISTENT_LABELS = "InconsistentLabels"
    """The labels and resources of a node match no layout of its GPUs; the node is not changed."""
    APPLY_FAILED = "ApplyFailed"
    """The API server rejects an object of the plan; the message is that of the API server."""
    BACKEND_UNAVAILABLE = "BackendUnavailable"
    """No backend on the node processes the request."""
    BACKEND_FAILED = "BackendFailed"
    """The backend reported a failure more than once."""
    BACKEND_TIMEOUT = "BackendTimeout"
    """The backend started and did not finish in time."""
    DEVICES_MISSING = "DevicesMissing"
    """A node has the planned slices and does not offer them to pods."""
    GPU_RESET_REQUIRED = "GpuResetRequired"
    """A GPU requires a reset, which Tessera never does."""
    GPU_IN_USE = "GpuInUse"
    """A process outside any pod holds a slice that must be removed."""
    UNKNOWN_PROFILE = "UnknownProfile"
    """The GPUs do not support a profile in `spec.mig.layout`."""
    INVALID_LAYOUT = "InvalidLayout"
    """The slices of `spec.mig.layout` do not fit on one GPU."""
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    """The pool has too few GPUs for the demand of its services."""
    PLANNER_ERROR = "PlannerError"
    """Planning the layouts of this pool failed with an internal error; nothing new begins."""
