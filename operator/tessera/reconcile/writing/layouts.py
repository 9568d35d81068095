"""Write what the plan decided for pools: statuses, taints, backend requests and evictions."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from tessera.domain.hardware.pools import PoolView
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, NODE_LAYOUTS
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.domain.mig_backends.gpu_clients import restart_device_plugin
from tessera.domain.mig_backends.mig_manager import referenced_configs
from tessera.domain.names import DISRUPT_ANNOTATION, GUARD_ANNOTATION
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.snapshot import Node, Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.cycle import Repartitions
from tessera.domain.repartition.evictions import BlockedEviction
from tessera.domain.status.pool import pool_status
from tessera.ports import DisruptionBudgetError
from tessera.reconcile.observe import plan_inputs
from tessera.reconcile.store import Store
from tessera.reconcile.writing.writer import SupersededError, Writer, WriteStep, attempt
from tessera.resources import mig_objects
from tessera.resources.api_resources import NODES
from tessera.resources.manifest import ObjectKey

log = logging.getLogger("tessera")

# A replica whose drain took too long has this long to exit, whatever its grace period.
_EXIT_SECONDS = 10


class LayoutApplier:
    """Writes the statuses of pools, and carries out their actions."""

    def __init__(self, writer: Writer, store: Store, *, namespace: str | None) -> None:
        """Create an applier; `namespace` has mig-manager's ConfigMap, None if it is not used."""
        self._writer = writer
        self._store = store
        self._namespace = namespace
        self._applied_config: Mapping[str, object] | None = None
        self.blocked_evictions: dict[Ref, BlockedEviction] = {}
        """Pods that could not be evicted when that was tried last."""
        self.problems: list[str] = []
        """Errors of writes in the last cycle."""

    async def apply(self, snapshot: Snapshot, plan: Plan) -> None:
        """Write the statuses of pools, which announce layouts before they change, then the actions.

        Of a pool whose status is refused no action is written.
        """
        refused = frozenset(
            [
                view.pool.name
                for view in plan.pools
                if await self.write_pool_status(snapshot, plan, view)
            ]
        )
        problems = self.problems
        await self._guard_nodes(plan, refused)
        try:
            await self.write_actions(plan.repartitions, refused, snapshot.at)
        except SupersededError:
            self.problems = problems
            raise

    @WriteStep
    async def write_pool_status(self, snapshot: Snapshot, plan: Plan, view: PoolView) -> list[str]:
        status = pool_status(view, plan.repartitions.actions.get(view.pool.name), snapshot.at)
        if status == view.pool.status:
            return []
        ref = Ref("", view.pool.name)
        return await self._writer.apply_status(ACCELERATOR_POOLS, ref, status)

    @WriteStep
    async def write_actions(
        self, repartitions: Repartitions, refused: frozenset[str], at: datetime
    ) -> None:
        """Write the actions of all pools, except of those whose status was `refused`.

        A failed write stops no other: it is repeated in the next cycle.
        """
        self.problems = []
        pool_actions = [
            actions for pool, actions in repartitions.actions.items() if pool not in refused
        ]
        displaced = {pod for actions in pool_actions for pod in actions.displaced}
        self.blocked_evictions = {
            pod: blocked for pod, blocked in self.blocked_evictions.items() if pod in displaced
        }
        requests = {
            node: request for actions in pool_actions for node, request in actions.requests.items()
        }
        # Taints come first: requests and evictions rely on them.
        await self._update_nodes(pool_actions, refused, at)
        # A node of a pool whose status is not written may be in the middle of a refresh.
        for name, labels in sorted(repartitions.plugin_refreshes.items() if not refused else ()):
            self.problems += await attempt(self._writer.patch_node(name, labels, {}))
        for name in sorted(repartitions.retired_layouts):
            key = ObjectKey(NODE_LAYOUTS.plural, "", name)
            self.problems += await attempt(self._writer.delete(NODE_LAYOUTS, key))
        self.problems += await self._configure(repartitions, requests)
        for name, request in sorted(requests.items()):
            self.problems += await self._send_request(name, request)
        for actions in pool_actions:
            for ref, uid in sorted(actions.evictions.items()):
                if ref not in actions.deletions:
                    self.problems += await self._evict(ref, uid, at)
            for ref, uid in sorted(actions.deletions.items()):
                self.problems += await attempt(self._writer.delete_pod(ref, uid, _EXIT_SECONDS))

    @WriteStep
    async def _guard_nodes(self, plan: Plan, refused: frozenset[str]) -> None:
        """Have nodes left alone until a pod uses them, before the placeholder on them ends."""
        guarded = {
            view.provisioning.guarded_node
            for view in plan.pools
            if view.provisioning is not None and view.pool.name not in refused
        }
        for node in plan_inputs(self._store, NODES, Node):
            needs_guard = node.name in guarded
            if needs_guard != node.guarded and (needs_guard or not refused):
                value = "true" if needs_guard else None
                annotations = {DISRUPT_ANNOTATION: value, GUARD_ANNOTATION: value}
                if problems := await attempt(self._writer.annotate_node(node.name, annotations)):
                    log.warning("node %s: %s", node.name, "; ".join(problems))

    async def _update_nodes(
        self, pool_actions: Sequence[PoolActions], refused: frozenset[str], at: datetime
    ) -> None:
        """Set taints, and take back what no plan needs any more, whatever became of its pool."""
        tainted = {node for actions in pool_actions for node in actions.tainted_nodes}
        for node in plan_inputs(self._store, NODES, Node):
            is_tainted, needs_taint = TAINT in node.taints, node.name in tainted
            # A node may belong to a pool whose status is not written: while there is one, no taint
            # is removed.
            if needs_taint != is_tainted and (needs_taint or not refused):
                taint = self._writer.patch_node(node.name, {}, {TAINT: needs_taint})
                self.problems += await attempt(taint)
            if labels := restart_device_plugin(node, at):
                self.problems += await attempt(self._writer.patch_node(node.name, labels, {}))

    @WriteStep
    async def _configure(
        self, repartitions: Repartitions, requests: Mapping[str, BackendRequest]
    ) -> None:
        """Apply mig-manager's ConfigMap before the labels that name its entries."""
        referenced = referenced_configs(
            node for nodes in repartitions.nodes.values() for node in nodes
        )
        # A ConfigMap without an entry of Tessera's is not created.
        used = referenced or any(request.configs for request in requests.values())
        if self._namespace is None or not used:
            return
        manifest = mig_objects.configuration(self._namespace, requests.values(), referenced)
        if manifest.body != self._applied_config:
            await self._writer.send(manifest)
            self._applied_config = manifest.body

    @WriteStep
    async def _send_request(self, node: str, request: BackendRequest) -> None:
        layout_spec = request.layout_spec
        if layout_spec is not None:
            key = ObjectKey(NODE_LAYOUTS.plural, "", node)
            observed = self._store.all(NODE_LAYOUTS).get(key)
            current = observed.plan_input if observed is not None else None
            if isinstance(current, ObservedNodeLayout) and current.spec != layout_spec:
                await self._writer.apply(mig_objects.node_layout(node, layout_spec))
        if request.labels:
            await self._writer.patch_node(node, request.labels, {})

    @WriteStep
    async def _evict(self, ref: Ref, uid: str, at: datetime) -> None:
        previous = self.blocked_evictions.get(ref)
        try:
            await self._writer.evict(ref, uid)
        except DisruptionBudgetError as error:
            since = previous.since if previous is not None else at
            self.blocked_evictions[ref] = BlockedEviction(str(error), since)
        else:
            self.blocked_evictions.pop(ref, None)
