"""What a turn does about layouts: a question to the planner, and orders for every pool."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from tessera.api.mig import Mig, MigStatus
from tessera.domain.draft import Proposal
from tessera.domain.kept import LastCallCache, StableTupleCache
from tessera.domain.pools import PoolView
from tessera.domain.reasons import Discovered, LayoutReady, StatusVerdict
from tessera.domain.ref import Ref
from tessera.domain.repartition.backend import Capabilities, GeometryBackend
from tessera.domain.repartition.backends import backend_of
from tessera.domain.repartition.facts import Ground
from tessera.domain.repartition.grounds import grounds, kept_grounds
from tessera.domain.repartition.leaving import kept_up
from tessera.domain.repartition.orders import Orders, Tenant
from tessera.domain.repartition.question import Question
from tessera.domain.repartition.rollout import Scene, carry_on
from tessera.domain.repartition.target import Adopted, adopt
from tessera.domain.repartition.tenants import KeptTenants, tenants
from tessera.domain.repartition.window import closed
from tessera.domain.repartition.wish import KeptQuestion, question
from tessera.domain.snapshot import Pod, Snapshot

_MANAGER = "mig.managerNamespace"
_Backends: TypeAlias = Mapping[str, GeometryBackend]


class _Site(NamedTuple):
    """What is there of a pool."""

    mig: Mig
    grounds: tuple[Ground, ...]
    backend: GeometryBackend
    tenants: tuple[Tenant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What the last turn did for the plan of a pool, and what it looked at."""

    scene: Scene
    shut: str | None
    orders: Orders

    def holds(self, scene: Scene, shut: str | None) -> bool:
        """Whether it is what this turn does."""
        old = self.scene
        status = self.orders.status
        idle = not (scene.status.units or self.orders.asks or (status and status.units))
        return (
            idle
            and old.grounds is scene.grounds
            and old.tenants is scene.tenants
            and old.own is scene.own
            and self.shut == shut
            and old.backend == scene.backend
            and old.mig == scene.mig
            and old.status == scene.status
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Repartitions:
    """Of all pools that have `spec.mig`, by name."""

    question: Question | None = None
    grounds: Mapping[str, tuple[Ground, ...]] = field(default_factory=dict)
    orders: Mapping[str, Orders] = field(default_factory=dict)
    tenants: Mapping[str, frozenset[Ref]] = field(default_factory=dict)
    """Services with slices of the pool, or with slices planned there."""


class KeptLayouts:
    """What earlier turns found of layouts, by the identity of what it was made of."""

    def __init__(self) -> None:
        self.ground = kept_grounds()
        self.question = KeptQuestion()
        self.own = LastCallCache(_refs)
        self.there: Mapping[str, tuple[Ground, ...]] = {}
        self.can: Mapping[str, Capabilities] = {}
        self._grounds: dict[str, StableTupleCache[Ground]] = defaultdict(StableTupleCache)
        self.tenants: dict[str, KeptTenants] = defaultdict(KeptTenants)
        self.carried: dict[str, Carried] = {}

    def grounds(
        self, views: Sequence[PoolView], snapshot: Snapshot
    ) -> Mapping[str, tuple[Ground, ...]]:
        """Of each pool; the same mapping as long as nothing in it changed."""
        found = {
            view.pool.name: self._grounds[view.pool.name](
                grounds(view, snapshot.nodes, snapshot.layouts, self.ground)
            )
            for view in views
        }
        self.ground.retain({(pool, one.name) for pool, there in found.items() for one in there})
        old = self.there
        if found.keys() != old.keys() or any(found[name] is not old[name] for name in found):
            self.there = found
        return self.there

    def capabilities(self, backends: _Backends) -> Mapping[str, Capabilities]:
        """Likewise."""
        found = {name: backend.capabilities for name, backend in backends.items()}
        if found != self.can:
            self.can = found
        return self.can


def _refs(pods: Sequence[Pod]) -> frozenset[Ref]:
    return frozenset(pod.ref for pod in pods)


def repartition(
    snapshot: Snapshot,
    views: Sequence[PoolView],
    drafts: Mapping[Ref, Proposal],
    kept: KeptLayouts | None = None,
) -> Repartitions:
    """Nothing where no pool lets its GPUs be cut."""
    migs = {
        view.pool.name: view.pool.spec.mig
        for view in views
        if view.pool.spec is not None and view.pool.spec.mig is not None
    }
    if not migs:
        return Repartitions()
    kept = kept or KeptLayouts()
    managed = {view.pool.name: view for view in views if view.pool.name in migs}
    there = kept.grounds(tuple(managed.values()), snapshot)
    backends = {name: backend_of(mig, there[name]) for name, mig in migs.items()}
    can = kept.capabilities(backends)
    known = [view for view in managed.values() if view.product is not None]
    asked = question(known, there, can, drafts, snapshot, kept.question)
    living = {
        name: tenants(snapshot, view, drafts, asked, kept.tenants[name])
        for name, view in managed.items()
    }
    sites = {name: _Site(migs[name], there[name], backends[name], living[name]) for name in managed}
    told = {
        name: _orders(snapshot, view, sites[name], asked, kept) for name, view in managed.items()
    }
    return Repartitions(
        question=asked,
        grounds=there,
        orders=told,
        tenants={name: frozenset(one.service for one in found) for name, found in living.items()},
    )


def _orders(
    snapshot: Snapshot,
    view: PoolView,
    site: _Site,
    asked: Question,
    kept: KeptLayouts,
) -> Orders:
    """A plan that was made for something else than what is there now is not adopted. One that is
    new is only written down: services take their places by it in the next turn."""
    mig, there, backend, living = site
    if (obstacle := _obstacle(snapshot, view, mig)) is not None:
        return _waiting(obstacle, view.pool.status.mig, site)
    solved = snapshot.layout_solution
    same = solved is not None and (solved.question is asked or solved.question == asked)
    current = solved if same else None
    adopted = adopt(view, current, there, backend.capabilities, snapshot.at)
    known = view.pool.status.mig
    if adopted.status.target != (known.target if known else None):
        return _begun(snapshot, adopted, site)
    orders = _carried(
        kept,
        Scene(
            pool=view.pool.name,
            mig=mig,
            status=adopted.status,
            grounds=there,
            tenants=living,
            backend=backend,
            own=kept.own(snapshot.pods),
            at=snapshot.at,
        ),
    )
    verdict = _verdict(snapshot, orders, adopted.verdict, there)
    contradicted = _contradicted(there) if verdict.reason.is_true else None
    return replace(orders, verdict=contradicted or verdict)


def _carried(kept: KeptLayouts, scene: Scene) -> Orders:
    """With no unit in work, before and after, and nothing asked for, the moment counts for the
    maintenance window alone: the orders are those of the last turn then."""
    shut = closed(scene.mig.maintenance_window, scene.at)
    old = kept.carried.get(scene.pool)
    if old is not None and old.holds(scene, shut):
        return old.orders
    orders = carry_on(scene)
    kept.carried[scene.pool] = Carried(scene=scene, shut=shut, orders=orders)
    return orders


def _contradicted(there: Sequence[Ground]) -> StatusVerdict[LayoutReady] | None:
    """A node that is left alone for what it says of itself is not as planned."""
    lies = [ground for ground in there if ground.disagrees]
    if not lies:
        return None
    message = f"{lies[0].name}: {lies[0].disagrees}"
    others = f"; {len(lies) - 1} other nodes, too" if len(lies) > 1 else ""
    return StatusVerdict(LayoutReady.INCONSISTENT_LABELS, message + others)


def _begun(snapshot: Snapshot, adopted: Adopted, site: _Site) -> Orders:
    plan = adopted.status.target
    name = plan.name if plan is not None else ""
    begins = StatusVerdict(
        LayoutReady.PLANNING, f"the plan {name} of {snapshot.at:%H:%M:%S} begins"
    )
    return _waiting(_contradicted(site.grounds) or begins, adopted.status, site)


def _waiting(verdict: StatusVerdict[LayoutReady], status: MigStatus | None, site: _Site) -> Orders:
    """Nothing goes on for now: whoever has to leave is still there until more is said of him."""
    doomed, leaving = kept_up(site.tenants)
    return Orders(
        verdict=verdict,
        status=status,
        tainted=frozenset(unit.node for unit in status.units) if status else frozenset(),
        doomed=doomed,
        leaving=leaving,
    )


def _obstacle(snapshot: Snapshot, view: PoolView, mig: Mig) -> StatusVerdict[LayoutReady] | None:
    """Nothing is begun in a pool that is not what it should be, nor with a backend that this
    installation does not have. Devices that are away for a while are no reason."""
    if view.discovered.reason not in (Discovered.DEVICES_FOUND, Discovered.NO_DEVICES):
        return StatusVerdict(LayoutReady.NOT_DISCOVERED, view.discovered.message)
    if mig.backend in snapshot.mig_backends or (mig.mode == "static" and not mig.layout):
        return None
    value = "mig.enabled" if mig.backend == "agent" or not snapshot.mig_backends else _MANAGER
    return StatusVerdict(
        LayoutReady.BACKEND_UNAVAILABLE,
        f"spec.mig.backend {mig.backend} needs the value {value} of the chart; {view.nodes} "
        "nodes are left as they are",
    )


def _verdict(
    snapshot: Snapshot,
    orders: Orders,
    of_plan: StatusVerdict[LayoutReady] | None,
    there: Sequence[Ground],
) -> StatusVerdict[LayoutReady]:
    """What holds up the work goes first, then what is wrong with the plan."""
    for pod in sorted(orders.evict):
        if (said := snapshot.blocked_evictions.get(pod)) is not None:
            return StatusVerdict(
                LayoutReady.DISRUPTION_BUDGET,
                f"{pod} cannot be evicted: {said}; its budget has to allow 1 disruption",
            )
    if snapshot.layout_write_errors and (orders.asks or orders.tainted):
        others = len(snapshot.layout_write_errors) - 1
        more = f"; and {others} more" if others else ""
        return StatusVerdict(LayoutReady.APPLY_FAILED, snapshot.layout_write_errors[0] + more)
    if orders.verdict.reason is LayoutReady.PLANNING and snapshot.solver_error:
        return StatusVerdict(LayoutReady.PLANNING, snapshot.solver_error)
    waits = orders.verdict.reason.is_true or orders.verdict.reason is LayoutReady.PLANNING
    told = of_plan if waits and of_plan is not None else orders.verdict
    whole = sum(ground.uncut for ground in there)
    if waits and whole and not any(ground.cards or ground.disagrees for ground in there):
        return StatusVerdict(
            LayoutReady.MIG_MODE_DISABLED,
            f"{whole} GPUs are not in MIG mode and are used whole; switch it on on drained nodes "
            "(nvidia-smi -mig 1, or the label nvidia.com/mig.config=all-enabled) to have them cut",
        )
    return told
