"""Services on the slices of a pool, as a rollout of layouts looks at them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeAlias

from tessera.domain.draft import Draft, floor_of
from tessera.domain.drain import is_empty
from tessera.domain.kept import Each, Same
from tessera.domain.mig.boards import Board, board_of
from tessera.domain.mig.demand import Kind
from tessera.domain.pools import PoolView
from tessera.domain.ref import Ref
from tessera.domain.repartition.devices import profile_of
from tessera.domain.repartition.orders import Replica, Tenant
from tessera.domain.repartition.question import Question
from tessera.domain.snapshot import Pod, Snapshot

_Speeds: TypeAlias = Mapping[Kind, float]
_UNKNOWN: _Speeds = {}


class KeptTenants:
    """Those of one pool as they were last, by service."""

    def __init__(self) -> None:
        self.all = Same[Tenant]()
        self._members: frozenset[str] = frozenset()
        self._tenant: Each[
            Ref, [str, str | None, frozenset[str], Draft, _Speeds], Tenant | None
        ] = Each(_timeless)

    def tenant(
        self, snapshot: Snapshot, view: PoolView, draft: Draft, speeds: _Speeds
    ) -> Tenant | None:
        """Whose replica drains is looked at in every turn."""
        if any(pod.draining_since is not None for pod in draft.holding.pods):
            return _tenant(
                view.pool.name,
                view.product,
                view.members,
                draft,
                speeds,
                lambda pod, limit: is_empty(pod, snapshot.in_flight, snapshot.at, limit),
            )
        if view.members != self._members:
            self._members = view.members
        return self._tenant(
            draft.service.ref, view.pool.name, view.product, self._members, draft, speeds
        )

    def only(self, drafts: Mapping[Ref, Draft]) -> None:
        """Forget services that are gone."""
        self._tenant.only(drafts.keys())


def tenants(
    snapshot: Snapshot,
    view: PoolView,
    drafts: Mapping[Ref, Draft],
    question: Question,
    kept: KeptTenants | None = None,
) -> tuple[Tenant, ...]:
    """Everybody with a replica on slices of the pool, or with slices planned there, by name."""
    speeds = {wish.service.name: wish.service.throughput for wish in question.wishes}
    kept = kept or KeptTenants()
    found = [
        kept.tenant(snapshot, view, drafts[ref], speeds.get(str(ref), _UNKNOWN))
        for ref in sorted(drafts)
    ]
    kept.only(drafts)
    return kept.all(tuple(one for one in found if one is not None))


def _tenant(
    pool: str,
    product: str | None,
    members: Collection[str],
    draft: Draft,
    speeds: _Speeds,
    empty: Callable[[Pod, timedelta], bool],
) -> Tenant | None:
    """A replica counts for no more than a planned one, so that a floor in tokens per second is one
    in replicas too."""
    spec, choice = draft.service.spec, draft.placement.choice
    if spec is None:
        return None
    limit = spec.drain.timeout
    board = board_of(product) if product is not None else None
    replicas = tuple(_replicas(board, members, draft, lambda pod: empty(pod, limit)))
    here = choice is not None and choice.offer.pool == pool
    profile = choice.offer.hardware.profile if choice is not None and here else None
    if not replicas and profile is None:
        return None
    capacity = {one.profile: 1.0 for one in replicas if one.profile is not None}
    capacity |= {kind.profile: speed for kind, speed in speeds.items() if kind.board == pool}
    each = min(capacity.values(), default=0.0)
    if choice is not None and profile is not None:
        each = capacity[profile] = choice.fit.limits.tokens_per_second
    wanted = draft.scale.replicas
    return Tenant(
        service=draft.service.ref,
        replicas=replicas,
        floor=min(floor_of(spec), wanted) * each,
        capacity={name: min(speed, each) for name, speed in capacity.items()},
        wanted=wanted if profile is not None else 0,
        profile=profile,
        former=_former(replicas, profile),
        downtime=draft.service.downtime,
    )


def _former(replicas: Sequence[Replica], planned: str | None) -> str | None:
    """The profile of most of its other replicas."""
    found = Counter(
        one.profile
        for one in replicas
        if one.node is not None and one.profile is not None and one.profile != planned
    )
    return max(sorted(found), key=lambda one: found[one], default=None)


def _timeless(
    pool: str, product: str | None, members: Collection[str], draft: Draft, speeds: _Speeds
) -> Tenant | None:
    """Where nobody drains the moment does not count."""
    return _tenant(
        pool,
        product,
        members,
        draft,
        speeds,
        lambda pod, limit: is_empty(pod, {}, pod.created, limit),
    )


def _replicas(
    board: Board | None, members: Collection[str], draft: Draft, empty: Callable[[Pod], bool]
) -> Iterator[Replica]:
    """Its pods on the pool's slices, and those that wait for one."""
    mine = {one.variant for one in draft.holding.workloads}
    for pod in draft.holding.pods:
        profile = _profile(board, pod)
        there = pod.node in members if pod.node is not None else pod.variant in mine
        if profile is None or not there or pod.ended is not None:
            continue
        yield Replica(
            pod=pod.ref,
            uid=pod.uid,
            node=pod.node,
            profile=profile,
            ready=pod.takes_requests,
            leaving=pod.leaving or pod.draining_since is not None,
            deleted=pod.leaving,
            empty=empty(pod),
        )


def _profile(board: Board | None, pod: Pod) -> str | None:
    """Of the slice that a pod asks for; None when it asks for none."""
    found = (profile_of(board, resource) for resource in pod.devices) if board else ()
    return next((profile for profile in found if profile is not None), None)
