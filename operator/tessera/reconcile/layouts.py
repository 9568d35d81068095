"""What is ordered for the layouts of pools -> writes: taints, asks of backends, evictions."""

from collections.abc import Awaitable, Callable, Iterator, Mapping

from tessera.domain.repartition.backend import Ask
from tessera.domain.repartition.backends.mig_manager import standing
from tessera.domain.repartition.facts import TAINT, NodeLayout
from tessera.domain.repartition.turn import Repartitions
from tessera.domain.snapshot import Node, Ref
from tessera.ports import Cluster, ClusterError, DisruptionBudgetError, NotFoundError
from tessera.reconcile.store import Store
from tessera.resources import repartition
from tessera.resources.kinds import NODE_LAYOUTS, NODES
from tessera.resources.manifest import Key, Manifest


class Layouts:
    """Carries out orders that stand in the pools' statuses already."""

    def __init__(
        self, cluster: Cluster, store: Store, *, namespace: str | None, begin: Callable[[], None]
    ) -> None:
        """`namespace` is that of mig-manager's configuration, None where there is none; `begin` is
        called before a write."""
        self._cluster = cluster
        self._store = store
        self._namespace = namespace
        self._begin = begin
        self._configured: Mapping[str, object] | None = None
        self.held: dict[Ref, str] = {}
        """Pods that could not be evicted in the last turn, and what was said."""
        self.problems: list[str] = []
        """What was refused in the last turn."""

    async def carry_out(self, told: Repartitions, refused: frozenset[str]) -> None:
        """Orders of pools whose status was `refused` wait. One refusal stops nothing else; what it
        kept from happening is asked for again."""
        self.problems, self.held = [], {}
        orders = [one for pool, one in told.orders.items() if pool not in refused]
        keep = {node for one in told.orders.values() for node in one.tainted}
        tainted = {node for one in orders for node in one.tainted}
        for node in self._nodes():
            there = TAINT in node.taints
            if node.name in tainted and not there:
                await self._attempt(self._taint(node.name, there=True))
            elif there and node.name not in keep and not refused:
                await self._attempt(self._taint(node.name, there=False))
        asks = {node: ask for one in orders for node, ask in one.asks.items()}
        await self._configure(told, asks)
        for name, ask in sorted(asks.items()):
            await self._attempt(self._ask(name, ask))
        for one in orders:
            for ref, uid in sorted(one.evict.items()):
                await self._attempt(self._evict(ref, uid))

    def _nodes(self) -> Iterator[Node]:
        for seen in self._store.all(NODES).values():
            if isinstance(seen.value, Node):
                yield seen.value

    async def _configure(self, told: Repartitions, asks: Mapping[str, Ask]) -> None:
        """Mig-manager's file, where anything of ours is in it."""
        named = standing(ground for there in told.grounds.values() for ground in there)
        used = named or any(ask.configs for ask in asks.values())
        if self._namespace is None or not used:
            return
        wanted = repartition.configuration(self._namespace, asks.values(), named)
        if wanted.body != self._configured:
            await self._attempt(self._apply_configuration(wanted))

    async def _apply_configuration(self, wanted: Manifest) -> None:
        self._begin()
        await self._cluster.apply(wanted)
        self._configured = wanted.body

    async def _taint(self, node: str, *, there: bool) -> None:
        await self._mark(node, {}, {TAINT: there})

    async def _mark(
        self, node: str, labels: Mapping[str, str | None], taints: Mapping[str, bool]
    ) -> None:
        self._begin()
        self._store.put(NODES, await self._cluster.patch_node(node, labels, taints))

    async def _ask(self, node: str, ask: Ask) -> None:
        if ask.layout is not None:
            key = Key(NODE_LAYOUTS.plural, "", node)
            seen = self._store.all(NODE_LAYOUTS).get(key)
            there = seen.value if seen is not None else None
            if isinstance(there, NodeLayout) and there.spec != ask.layout:
                self._begin()
                applied = await self._cluster.apply(repartition.node_layout(node, ask.layout))
                self._store.put(NODE_LAYOUTS, applied)
        if ask.labels:
            await self._mark(node, ask.labels, {})

    async def _evict(self, ref: Ref, uid: str) -> None:
        self._begin()
        try:
            await self._cluster.evict(ref, uid)
        except DisruptionBudgetError as error:
            self.held[ref] = str(error)

    async def _attempt(self, write: Awaitable[object]) -> None:
        try:
            await write
        except NotFoundError:
            return
        except ClusterError as error:
            self.problems.append(str(error))
