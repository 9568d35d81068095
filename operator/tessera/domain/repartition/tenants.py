"""Services on the slices of a pool, as a rollout of layouts looks at them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeAlias

from tessera.domain.draft import Proposal, min_replicas_of
from tessera.domain.drain import is_drained
from tessera.domain.kept import KeyedCache, StableTupleCache
from tessera.domain.mig.boards import GpuModel, find_gpu_model
from tessera.domain.mig.demand import InstanceType
from tessera.domain.pools import PoolView
from tessera.domain.ref import Ref
from tessera.domain.repartition.devices import profile_of
from tessera.domain.repartition.orders import Replica, Tenant
from tessera.domain.repartition.question import Question
from tessera.domain.snapshot import Pod, Snapshot

_Speeds: TypeAlias = Mapping[InstanceType, float]
_UNKNOWN: _Speeds = {}


class _Home(NamedTuple):
    """What of a pool counts for those who sit there."""

    pool: str
    board: GpuModel | None
    members: frozenset[str]


class KeptTenants:
    """Those of one pool as they were last, by service."""

    def __init__(self) -> None:
        self.all = StableTupleCache[Tenant]()
        self._home: _Home | None = None
        self._tenant: KeyedCache[Ref, [_Home, Proposal, _Speeds], Tenant | None] = KeyedCache(
            _timeless
        )

    def home(self, view: PoolView) -> _Home:
        """The same object as long as it is equal."""
        board = find_gpu_model(view.product) if view.product is not None else None
        home = _Home(view.pool.name, board, view.node_names)
        if self._home is None or home != self._home:
            self._home = home
        return self._home

    def tenant(
        self, snapshot: Snapshot, home: _Home, draft: Proposal, speeds: _Speeds
    ) -> Tenant | None:
        """Whose replica drains is looked at in every turn."""
        if any(pod.draining_since is not None for pod in draft.objects.pods):
            return _tenant(
                home,
                draft,
                speeds,
                lambda pod, limit: is_drained(pod, snapshot.in_flight, snapshot.at, limit),
            )
        return self._tenant(draft.service.ref, home, draft, speeds)

    def only(self, drafts: Mapping[Ref, Proposal]) -> None:
        """Forget services that are gone."""
        self._tenant.retain(drafts.keys())


def tenants(
    snapshot: Snapshot,
    view: PoolView,
    drafts: Mapping[Ref, Proposal],
    question: Question,
    kept: KeptTenants | None = None,
) -> tuple[Tenant, ...]:
    """Everybody with a replica on slices of the pool, or with slices planned there, by name."""
    speeds = {wish.service.name: wish.service.throughput for wish in question.wishes}
    kept = kept or KeptTenants()
    home = kept.home(view)
    found = [
        kept.tenant(snapshot, home, drafts[ref], speeds.get(str(ref), _UNKNOWN))
        for ref in sorted(drafts)
    ]
    kept.only(drafts)
    return kept.all(tuple(one for one in found if one is not None))


def _tenant(
    home: _Home,
    draft: Proposal,
    speeds: _Speeds,
    empty: Callable[[Pod, timedelta], bool],
) -> Tenant | None:
    """A replica counts for no more than a planned one, so that a floor in tokens per second is one
    in replicas too."""
    spec, choice = draft.service.spec, draft.placement.choice
    if spec is None:
        return None
    limit = spec.drain.timeout
    replicas = tuple(_replicas(home, draft, lambda pod: empty(pod, limit)))
    here = choice is not None and choice.offer.pool == home.pool
    profile = choice.offer.hardware.profile if choice is not None and here else None
    if not replicas and profile is None:
        return None
    capacity = {one.profile: 1.0 for one in replicas if one.profile is not None}
    capacity |= {
        kind.profile: speed for kind, speed in speeds.items() if kind.gpu_model == home.pool
    }
    each = min(capacity.values(), default=0.0)
    if choice is not None and profile is not None:
        each = capacity[profile] = choice.fit.limits.tokens_per_second
    wanted = draft.scale.replicas
    return Tenant(
        service=draft.service.ref,
        replicas=replicas,
        floor=min(min_replicas_of(spec), wanted) * each,
        capacity={name: min(speed, each) for name, speed in capacity.items()},
        wanted=wanted if profile is not None else 0,
        profile=profile,
        former=_former(replicas, profile),
        downtime=draft.service.allows_downtime,
    )


def _former(replicas: Sequence[Replica], planned: str | None) -> str | None:
    """The profile of most of its other replicas."""
    found = Counter(
        one.profile
        for one in replicas
        if one.node is not None and one.profile is not None and one.profile != planned
    )
    return max(sorted(found), key=lambda one: found[one], default=None)


def _timeless(home: _Home, draft: Proposal, speeds: _Speeds) -> Tenant | None:
    """Where nobody drains the moment does not count."""
    return _tenant(home, draft, speeds, lambda pod, limit: is_drained(pod, {}, pod.created, limit))


def _replicas(home: _Home, draft: Proposal, empty: Callable[[Pod], bool]) -> Iterator[Replica]:
    """Its pods on the pool's slices, and those that wait for one."""
    mine = {one.variant for one in draft.objects.workloads}
    for pod in draft.objects.pods:
        profile = _profile(home.board, pod)
        there = pod.node in home.members if pod.node is not None else pod.variant in mine
        if profile is None or not there or pod.ended is not None:
            continue
        yield Replica(
            pod=pod.ref,
            uid=pod.uid,
            node=pod.node,
            profile=profile,
            ready=pod.takes_requests,
            leaving=pod.terminating or pod.draining_since is not None,
            deleted=pod.terminating,
            empty=empty(pod),
        )


def _profile(board: GpuModel | None, pod: Pod) -> str | None:
    """Of the slice that a pod asks for; None when it asks for none."""
    found = (profile_of(board, resource) for resource in pod.devices) if board else ()
    return next((profile for profile in found if profile is not None), None)
