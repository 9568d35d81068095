"""Nodes that pods wait for: when they come, how long they are waited for, and what keeps them.

A start is given the time of the slowest recent one. When no node comes, the pool backs off: it
offers its existing nodes alone, so that replicas go to other pools.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter

from tessera.api.accelerator_pool import (
    COUNT_LABEL,
    MAX_STARTS,
    PRODUCT_LABEL,
    NodeStart,
    NodeTemplate,
    ProvisioningStatus,
)
from tessera.api.meta import format_duration
from tessera.api.pool_reasons import NodesProvisioned
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted, first_names
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.node_templates import has_devices, template_node
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import FOREVER, Until, reused, reused_until
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, PodEvent, Snapshot
from tessera.domain.placement.placeholders import (
    KNOWN_AFTER,
    needs_placeholder,
    unplaced_by_pool,
    with_guard,
    with_placeholder,
)
from tessera.domain.steps import Step

FIRST_BACKOFF = timedelta(minutes=10)
MAX_BACKOFF = timedelta(hours=4)
SLOW_PULL = timedelta(minutes=5)
# The longest `spec.nodeTemplate.expectedStart`.
_MAX_START = timedelta(hours=1)
# A pod that has just been created has no Events yet.
_FIRST_WORDS = timedelta(seconds=30)
# Pods of a pool whose events are read.
_MAX_ASKED = 2

_SCHEDULER = re.compile(r"\d+/\d+ nodes are available")
_NODE_CLAIM = re.compile(r"^NodeClaim \S{1,253} event: ")
_VOLUME = re.compile(r"volume", re.IGNORECASE)
_QUOTA = re.compile(
    r"quota|limit ?exceeded|exceed(s|ing)? limits?|max\w* (node group|cluster)[^,]* size"
    r"|max limit reached",
    re.IGNORECASE,
)
_CAPACITY = re.compile(
    r"insufficient ?(instance ?)?capacity|out of (resources|capacity|stock)|unfulfillable ?capacity"
    r"|stockout|resource_?pool_?exhausted|sku ?not ?available|overconstrained|allocation ?failed"
    r"|no capacity|not enough capacity",
    re.IGNORECASE,
)
_FIX: Mapping[NodesProvisioned, str] = {
    NodesProvisioned.NODE_START_TIMED_OUT: "see the log of the autoscaler of nodes",
    NodesProvisioned.QUOTA_EXCEEDED: "raise the quota, or lower spec.nodeTemplate.maxNodes",
    NodesProvisioned.INSUFFICIENT_CAPACITY: "let the autoscaler use other zones or instance types",
    NodesProvisioned.DRIVER_MISSING: "check driver and device plugin on these nodes",
}
_BY_AGE = attrgetter("created", "ref")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPods:
    """The pods that say how the nodes of a pool come."""

    waiting: tuple[Pod, ...] = ()
    """Those for which the scheduler finds no node, the oldest first."""
    bound: tuple[Pod, ...] = ()
    """Those on nodes of the pool."""
    events: Mapping[str, tuple[PodEvent, ...]] = field(default_factory=dict)
    """What is said of them, by their UIDs, latest first."""
    unplaced: int = 0
    """Services whose slices are planned once the pool has a node."""


def with_provisioning(
    views: tuple[PoolView, ...], snapshot: Snapshot, last_views: Sequence[PoolView]
) -> tuple[PoolView, ...]:
    """Return the pools as they are offered; `last_views` are those of the last cycle."""
    names = [
        view.pool.name
        for view in views
        if view.pool.spec is not None and view.pool.spec.node_template is not None
    ]
    if not names:
        return views
    nodes = _nodes_by_pool(
        snapshot.nodes,
        {
            view.pool.name: view.node_names | view.odd_nodes
            for view in views
            if view.pool.name in names
        },
    )
    pools = _pools_by_variant(snapshot.services)
    attempts = _pools_by_attempt(snapshot.batches)
    waiting, bound = _pods_by_pool(snapshot.pods, pools, attempts, nodes)
    last = {view.pool.name: view for view in last_views}
    backing_off = frozenset(
        name
        for name in names
        if (view := last.get(name)) is not None
        and view.provisioning is not None
        and is_backing_off(view.provisioning, snapshot.at)
    )
    unplaced = unplaced_by_pool(snapshot.services, views, backing_off)
    pods = {
        name: _pods_of(waiting.get(name, ()), bound.get(name, ()), snapshot, unplaced.get(name, 0))
        for name in names
    }
    return tuple(
        provisioned_view(view, nodes[name], pods[name], last.get(name), snapshot.at)
        if (name := view.pool.name) in nodes
        else view
        for view in views
    )


def _pods_of(
    waiting: tuple[Pod, ...], bound: tuple[Pod, ...], snapshot: Snapshot, unplaced: int
) -> PoolPods:
    events = {
        pod.uid: said
        for pod in (*waiting, *bound)
        if (said := snapshot.pod_events.get(pod.uid)) is not None
    }
    return PoolPods(waiting=waiting, bound=bound, events=events, unplaced=unplaced)


def nodes_by_pool(
    nodes: Sequence[Node], node_names: Mapping[str, frozenset[str]]
) -> Mapping[str, tuple[Node, ...]]:
    """Return the nodes of each pool, by their names."""
    return {
        pool: tuple(node for node in nodes if node.name in names)
        for pool, names in node_names.items()
    }


_nodes_by_pool = reused(nodes_by_pool)


@reused
def _pools_by_variant(services: Sequence[ObservedService]) -> Mapping[tuple[Ref, str], str]:
    return {
        (service.ref, variant.name): variant.pool
        for service in services
        for variant in service.status.all_variants
    }


@reused
def _pools_by_attempt(batches: Sequence[Batch]) -> Mapping[Ref, str]:
    return {
        batch.ref: attempt.pool
        for batch in batches
        if (attempt := batch.status.attempt) is not None and attempt.pool
    }


@reused
def _pods_by_pool(
    pods: Sequence[Pod],
    pools_by_variant: Mapping[tuple[Ref, str], str],
    pools_by_attempt: Mapping[Ref, str],
    nodes: Mapping[str, tuple[Node, ...]],
) -> tuple[Mapping[str, tuple[Pod, ...]], Mapping[str, tuple[Pod, ...]]]:
    """Return the pods that wait for a node of each pool, and those on its nodes."""
    pool_of = {node.name: pool for pool, pool_nodes in nodes.items() for node in pool_nodes}
    waiting, bound = defaultdict[str, list[Pod]](list), defaultdict[str, list[Pod]](list)
    for pod in pods:
        if pod.node is not None:
            if pod.node in pool_of and pod.bound is not None:
                bound[pool_of[pod.node]].append(pod)
            continue
        if pod.terminating or pod.unschedulable is None or _VOLUME.search(pod.unschedulable):
            continue
        pool = (
            pools_by_attempt.get(batch_pod.batch)
            if (batch_pod := pod.batch_run) is not None
            else pools_by_variant.get((pod.service, pod.variant))
        )
        if pool is not None and pool in nodes:
            waiting[pool].append(pod)
    return (
        {pool: tuple(sorted(each, key=_BY_AGE)) for pool, each in waiting.items()},
        {pool: tuple(sorted(each, key=_BY_AGE)) for pool, each in bound.items()},
    )


def _provisioned_view(
    view: PoolView,
    nodes: tuple[Node, ...],
    pods: PoolPods,
    last: PoolView | None,
    at: datetime,
) -> PoolView:
    status = view.pool.status.provisioning
    if last is not None and last.pool.uid == view.pool.uid and last.provisioning is not None:
        status = last.provisioning  # the API server may not have it yet
    return _next_view(view.pool.name, view, nodes, pods, at=at, memory=status)


def _set_aside(_error: Exception, view: PoolView, *_: object) -> PoolView:
    """Return the pool with all that its template says, and with the starts so far."""
    return replace(view, provisioning=view.pool.status.provisioning)


provisioned_view = Step(_provisioned_view, _set_aside)


@reused_until
def _next_view(
    _name: str,
    view: PoolView,
    nodes: tuple[Node, ...],
    pods: PoolPods,
    *,
    at: datetime,
    memory: ProvisioningStatus | None,
) -> Until[PoolView]:
    """Return a pool with a template as it is offered, with the starts of its nodes."""
    assert view.pool.spec is not None  # noqa: S101 - it has a template
    template = view.pool.spec.node_template
    assert template is not None  # noqa: S101 - same
    status = _with_starts(memory, template, nodes, pods.bound)
    startable = view.startable
    waits = pods.waiting if startable is not None and startable.count else ()
    status = _without_ended_backoff(status, nodes)
    status = with_guard(status, nodes, pods.bound, at)
    # A node of another product, or one that says so, is not the one that a placeholder asks for.
    own = tuple(node for node in nodes if node.name not in view.odd_nodes)
    needs = not is_backing_off(status, at) and needs_placeholder(
        view, own, waits, pods.events, pods.unplaced, at
    )
    status = with_placeholder(status, own, at, needed=needs)
    due = _start_due(status, nodes, waits, at)
    silent = [node for node in nodes if _lacks_driver(node)]
    late = [node for node in silent if _driver_due(node, status) <= at]
    cause = _cause(waits, pods.events, late)
    if due is not None and due <= at:
        status = _with_failure(status, nodes, cause, at)
    elif cause is not None and waits and is_backing_off(status, at):
        status = status.model_copy(update={"reason": cause[0], "message": cause[1]})
    pulls = [pod for pod in pods.bound if _is_pulling(pod, pods.events)]
    slow = [pod for pod in pulls if pod.bound and pod.bound + SLOW_PULL <= at]
    asked = [pod for pod in waits if pod.created + _FIRST_WORDS <= at]
    moments = [
        due,
        status.resting_until,
        status.guarded_until,
        *(pod.created + KNOWN_AFTER for pod in waits),
        *(_driver_due(node, status) for node in silent),
        *(pod.bound + SLOW_PULL for pod in pulls if pod.bound),
        *(pod.created + _FIRST_WORDS for pod in waits),
    ]
    condition = _Condition(view, template, status, nodes, waits, due, late, slow, cause)
    result = replace(
        _offered(view, status, at),
        provisioning=status,
        nodes_provisioned=condition.verdict(at),
        pods_to_explain=(*asked[:_MAX_ASKED], *slow[:_MAX_ASKED]),
    )
    until = min((each for each in moments if each and each > at), default=FOREVER)
    return Until(result, until, status)


def is_backing_off(status: ProvisioningStatus, at: datetime) -> bool:
    """Return whether a pool offers its existing nodes alone."""
    return status.resting_until is not None and at < status.resting_until


def _offered(view: PoolView, status: ProvisioningStatus, at: datetime) -> PoolView:
    """Return the pool with the learned start, or while it backs off without nodes that may come."""
    if view.startable is None:
        return view
    backs_off = is_backing_off(status, at)
    startable = None if backs_off else replace(view.startable, expected_start=status.expected_start)
    offers = tuple(
        replace(offer, startable=startable) if offer.startable is not None else offer
        for offer in view.offers
    )
    if backs_off:  # hardware without replicas stays offered, so that what waits there stays placed
        offers = tuple(
            replace(
                offer,
                replicas=offer.replicas - offer.startable_replicas,
                startable_replicas=0,
                backoff_until=status.resting_until,
            )
            if offer.startable_replicas
            else offer
            for offer in offers
        )
    return replace(view, startable=startable, offers=offers)


def _with_starts(
    memory: ProvisioningStatus | None,
    template: NodeTemplate,
    nodes: Sequence[Node],
    bound: Sequence[Pod],
) -> ProvisioningStatus:
    """Return the status with the nodes that came for pods that had waited."""
    declared = template.expected_start
    status = memory or ProvisioningStatus(expected_start=declared)
    starts = list(status.recent_starts)
    known = {start.node for start in starts}
    oldest = starts[0].created_at if len(starts) == MAX_STARTS else None
    pods_on = defaultdict[str, list[Pod]](list)
    for pod in bound:
        pods_on[pod.node or ""].append(pod)
    for node in nodes:
        created = node.created
        if created is None or node.name in known or (oldest is not None and created <= oldest):
            continue
        waits = [
            pod.bound - pod.created
            for pod in pods_on[node.name]
            if pod.bound is not None and pod.created < created
        ]
        if waits:
            # What waited through a backoff says little, so a start counts twice the usual at most.
            seconds = min(max(waits), 2 * max(status.expected_start, declared), _MAX_START)
            starts.append(
                NodeStart(
                    node=node.name, created_at=created, seconds=round(seconds.total_seconds())
                )
            )
    starts = sorted(starts, key=lambda start: (start.created_at, start.node))[-MAX_STARTS:]
    expected = max([declared, *(timedelta(seconds=start.seconds) for start in starts)])
    return status.model_copy(update={"expected_start": expected, "recent_starts": tuple(starts)})


def _without_ended_backoff(status: ProvisioningStatus, nodes: Sequence[Node]) -> ProvisioningStatus:
    """Return the status without failures once a node came."""
    existing = sum(has_devices(node) for node in nodes)
    if not status.failures:
        return status
    if existing > status.nodes:
        cleared = ("failed_at", "resting_until", "reason", "message")
        return status.model_copy(update={"failures": 0, "nodes": 0, **dict.fromkeys(cleared)})
    return status.model_copy(update={"nodes": existing})


def _start_due(
    status: ProvisioningStatus, nodes: Sequence[Node], waits: Sequence[Pod], at: datetime
) -> datetime | None:
    """Return by when a node is expected; None where none is waited for, or the pool backs off."""
    since = [status.placeholder_since] if status.placeholder_since is not None else []
    since += [pod.created for pod in waits[:1]]
    if not since or is_backing_off(status, at):
        return None
    # Nodes come one after the other: each gives the next one the whole time.
    came = [node.created for node in nodes if node.created is not None and node.created <= at]
    backoffs = [status.resting_until] if status.resting_until is not None else []
    return max([*since, *came, *backoffs]) + status.expected_start


def _with_failure(
    status: ProvisioningStatus,
    nodes: Sequence[Node],
    cause: tuple[NodesProvisioned, str] | None,
    at: datetime,
) -> ProvisioningStatus:
    """Return the status of a pool that begins to back off."""
    at = at.replace(microsecond=0)
    is_repeated = status.resting_until is not None and at < status.resting_until + MAX_BACKOFF
    failures = status.failures + 1 if is_repeated else 1
    backoff = min(FIRST_BACKOFF * 2 ** min(failures - 1, 8), MAX_BACKOFF)
    reason, words = cause or (NodesProvisioned.NODE_START_TIMED_OUT, "")
    return status.model_copy(
        update={
            "failures": failures,
            "failed_at": at,
            "nodes": sum(has_devices(node) for node in nodes),
            "resting_until": at + backoff,
            "reason": reason,
            "message": words or None,
            "placeholder_since": None,
        }
    )


def _lacks_driver(node: Node) -> bool:
    # While a node is repartitioned it offers no device either.
    return (
        node.schedulable
        and node.created is not None
        and not has_devices(node)
        and TAINT not in node.taints
    )


def _driver_due(node: Node, status: ProvisioningStatus) -> datetime:
    """Return by when a node that exists is expected to offer its devices."""
    return FOREVER if node.created is None else node.created + status.expected_start


def _is_pulling(pod: Pod, events: Mapping[str, tuple[PodEvent, ...]]) -> bool:
    """Return whether no image of a pod was pulled yet, as far as is known."""
    if (
        pod.unmanaged
        or pod.started is not None
        or pod.ended is not None
        or pod.terminating
        or pod.ready_since is not None
        or pod.last_exit is not None
        or pod.waiting_reason is not None
        or pod.batch_run is not None
    ):
        return False
    # A volume that cannot be mounted delays the start of a container, too.
    said = events.get(pod.uid, ())
    return not said or said[0].reason == "Pulling"


def _cause(
    waits: Sequence[Pod], events: Mapping[str, tuple[PodEvent, ...]], late: Sequence[Node]
) -> tuple[NodesProvisioned, str] | None:
    """Return why nodes do not come, with the words of the cloud or the autoscaler."""
    said = [event for pod in waits for event in events.get(pod.uid, ())]
    words = [
        (_NODE_CLAIM.sub("", event.message), event)
        for event in said
        if not _SCHEDULER.search(event.message)
    ]
    for text, event in words:
        if reason := _reason_of(f"{event.reason}: {text}"):
            return reason, text
    if late:
        return NodesProvisioned.DRIVER_MISSING, _without_gpu(late)
    return (NodesProvisioned.NODE_START_TIMED_OUT, words[0][0]) if words else None


def _reason_of(text: str) -> NodesProvisioned | None:
    if _CAPACITY.search(text):
        return NodesProvisioned.INSUFFICIENT_CAPACITY
    return NodesProvisioned.QUOTA_EXCEEDED if _QUOTA.search(text) else None


def _without_gpu(nodes: Sequence[Node]) -> str:
    names = first_names([f"Node/{node.name}" for node in nodes])
    return f"{names} {'is' if len(nodes) == 1 else 'are'} Ready without a GPU"


@dataclass(frozen=True, slots=True)
class _Condition:
    """What the condition NodesProvisioned is made of."""

    view: PoolView
    template: NodeTemplate
    status: ProvisioningStatus
    nodes: Sequence[Node]
    waits: Sequence[Pod]
    due: datetime | None
    late: Sequence[Node]
    slow: Sequence[Pod]
    cause: tuple[NodesProvisioned, str] | None

    def verdict(self, at: datetime) -> StatusVerdict[NodesProvisioned]:
        """Return the first that applies."""
        return next(self._verdicts(at))

    def _verdicts(self, at: datetime) -> Iterator[StatusVerdict[NodesProvisioned]]:
        status, start = self.status, format_duration(self.status.expected_start)
        if is_backing_off(status, at) and status.resting_until is not None:
            reason = NodesProvisioned(status.reason or NodesProvisioned.NODE_START_TIMED_OUT)
            words = f": {status.message}" if status.message else ""
            failures = counted(status.failures, "failed start")
            yield StatusVerdict(
                reason,
                f"no node came within {start} ({failures} in a row){words}. The pool offers its "
                f"existing nodes alone until {_time(status.resting_until)}, or until one comes: "
                f"{_FIX[reason]}",
            )
        if self.due is not None and self.cause is not None:
            reason, words = self.cause
            if reason is not NodesProvisioned.NODE_START_TIMED_OUT:
                message = f"{words}. A node is waited for until {_time(self.due)}: {_FIX[reason]}"
                yield StatusVerdict(reason, message)
        if self.late:
            reason = NodesProvisioned.DRIVER_MISSING
            message = f"{_without_gpu(self.late)} for more than {start}: {_FIX[reason]}"
            yield StatusVerdict(reason, message)
        if differences := list(self._differences()):
            yield StatusVerdict(
                NodesProvisioned.NODES_DIFFER,
                f"{first_names(differences)}: correct spec.nodeTemplate, or the autoscaler's "
                "node pool",
            )
        if self.slow:
            names = first_names(sorted({f"Node/{pod.node}" for pod in self.slow}))
            yield StatusVerdict(
                NodesProvisioned.IMAGE_PULL_SLOW,
                f"{names}: an engine's image has been pulled for more than "
                f"{format_duration(SLOW_PULL)}; use a registry near the nodes, or node images that "
                "have it",
            )
        if self.due is not None:
            pods = counted(len(self.waits), "pod")
            if status.placeholder_since is not None:
                pods = f"a placeholder for {counted(self.template.gpus, 'GPU')}"
            yield StatusVerdict(
                NodesProvisioned.NODES_STARTING,
                f"{pods} waiting for a node, which is expected until {_time(self.due)}",
            )
        exists = f": {self.view.startable.text}" if self.view.startable is not None else ""
        yield StatusVerdict(NodesProvisioned.NODES_AVAILABLE, f"no pod waits for a node{exists}")

    def _differences(self) -> Iterator[str]:
        """Yield how nodes that are younger than the pool differ from its template."""
        spec, template = self.view.pool.spec, self.template
        assert spec is not None  # noqa: S101 - it has a template
        slices = template_node(spec, template).allocatable if template.mig_layout else {}
        for node in self.nodes:
            if node.created is None or node.created <= self.view.pool.created:
                continue
            if not has_devices(node) or TAINT in node.taints:
                continue
            product = node.labels.get(PRODUCT_LABEL, template.product)
            gpus = node.labels.get(COUNT_LABEL, str(template.gpus))
            labels = sorted(
                key for key, value in template.labels.items() if node.labels.get(key) != value
            )
            if product != template.product:
                yield f"Node/{node.name} is {product[:63]} instead of {template.product}"
            elif gpus != str(template.gpus):
                yield f"Node/{node.name} has nvidia.com/gpu.count {gpus[:63]}, not {template.gpus}"
            elif labels:
                yield f"Node/{node.name} lacks the label {labels[0]} of the template"
            elif slices and spec.mig is None and _devices(node.allocatable) != _devices(slices):
                yield f"Node/{node.name} has other slices than the template"


def _devices(allocatable: Mapping[str, int]) -> Iterable[int]:
    """Return the numbers of slices; nodes give their profiles names of their own."""
    return sorted(count for name, count in allocatable.items() if count and name != GPU)


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
