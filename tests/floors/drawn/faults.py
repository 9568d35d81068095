"""What meets in a drawn sequence: each kind with what it may hit, and with how it ends."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    INFERENCE_SERVICES,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tessera.resources.manifest import ObjectKey
from tests.floors.drawn.fleet import DrawnFleet, owned_pods
from tests.floors.fleet import GPU, NAMESPACE, SLICE
from tests.floors.kube import BAD_IMAGE, PodTimes
from tests.repartition.kube import Body

_Act = Callable[[DrawnFleet, str, random.Random], "_Undo | None"]
_Undo = Callable[[], object]
# From and to, in ticks.
_SHORT, _LONG = (2, 24), (10, 80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of event: it begins on one of its targets, and what it returned ends it."""

    name: str
    targets: Callable[[DrawnFleet], Sequence[str]]
    begin: _Act
    ticks: tuple[int, int] = _SHORT
    weight: float = 2


def _cluster(_fleet: DrawnFleet) -> Sequence[str]:
    return ["cluster"]


def _services(fleet: DrawnFleet) -> Sequence[str]:
    return fleet.services()


def _good_services(fleet: DrawnFleet) -> Sequence[str]:
    """Return the services whose spec is none that cannot start or run."""
    return [name for name in fleet.services() if not is_bad(fleet, name)]


def is_bad(fleet: DrawnFleet, service: str) -> bool:
    """Return whether the spec of a service is one that its user has to mend."""
    spec = fleet.spec(service)
    engine, pools = spec.get("engine", {}), spec.get("placement", {}).get("pools", ())
    existing = {name for name, _ in fleet.pool_labels()}
    is_typo = any("typo" in flag for flag in engine.get("extraArgs", ()))
    return engine.get("image") == BAD_IMAGE or is_typo or not existing.issuperset(pools)


def is_gated(fleet: DrawnFleet, service: str) -> bool:
    return bool(fleet.spec(service).get("rollout", {}).get("strategy") == "Gated")


# Users


def _edit(fleet: DrawnFleet, service: str, _rng: random.Random) -> None:
    fleet.change(service, podTemplate={"annotations": {"edit": str(fleet.next_edit())}})


def _change_version(fleet: DrawnFleet, service: str, _rng: random.Random) -> None:
    fleet.change_engine(service, extraArgs=[f"--seed={fleet.next_edit()}"])


def _break(fleet: DrawnFleet, service: str, rng: random.Random) -> _Undo:
    """Give a service what cannot start or is not valid; its user mends it, or takes it back."""
    bad = rng.choice(("image", "image", "flag", "pool"))
    if bad == "image":
        fleet.change_engine(service, image=BAD_IMAGE)
    elif bad == "flag":
        fleet.change_engine(service, extraArgs=["--typo"])
    else:
        fleet.change(service, placement={"pools": ["typo"]})
    mends = rng.random() < 0.6

    def mend() -> None:
        fleet.change_engine(service, image=None)
        if bad == "flag":
            fleet.change_engine(service, extraArgs=None)
        if bad == "pool":
            fleet.change(service, placement=None)
        if mends:
            _edit(fleet, service, rng)

    return mend


def _break_for_good(fleet: DrawnFleet, service: str, _rng: random.Random) -> None:
    fleet.change_engine(service, image=BAD_IMAGE)


def _raise_floor(fleet: DrawnFleet, service: str, rng: random.Random) -> None:
    scaling = fleet.spec(service)["scaling"]
    floor = scaling["minReplicas"] + rng.choice((1, 1, 2))
    maximum = max(floor, scaling["maxReplicas"])
    fleet.change(service, scaling={**scaling, "minReplicas": floor, "maxReplicas": maximum})


def _lower_floor(fleet: DrawnFleet, service: str, _rng: random.Random) -> None:
    fleet.set_floor(service, max(1, fleet.spec(service)["scaling"]["minReplicas"] - 1))


def _create(fleet: DrawnFleet, _target: str, rng: random.Random) -> _Undo | None:
    """Create a service, sometimes with a gate and a typo that is mended later."""
    name = next(name for name in ("chat", "sage", "mail", "code") if name not in fleet.services())
    serve = fleet.serve_gated if rng.random() < 0.6 else fleet.serve
    if rng.random() < 0.5:
        serve(name, rng.choice((1, 2)))
        return None
    serve(name, rng.choice((1, 2)), engine={"image": BAD_IMAGE})
    return lambda: fleet.change_engine(name, image=None)


def _room_for_services(fleet: DrawnFleet) -> Sequence[str]:
    return [NAMESPACE] if len(fleet.services()) < 4 else []


def _create_again(fleet: DrawnFleet, service: str, _rng: random.Random) -> _Undo:
    spec = dict(fleet.spec(service))
    fleet.remove_service(service)
    fleet.judge.forget(Ref(NAMESPACE, service))

    def create() -> None:
        if service not in fleet.services():
            meta = {"name": service, "namespace": NAMESPACE}
            fleet.kube.put(INFERENCE_SERVICES, {"metadata": meta, "spec": spec}, "kubectl")

    return create


def _load(fleet: DrawnFleet, service: str, rng: random.Random) -> _Undo:
    fleet.waiting[service] = rng.choice((5.0, 30.0))
    return lambda: fleet.waiting.pop(service, None)


# Gates


def _ungated(fleet: DrawnFleet) -> Sequence[str]:
    return [name for name in fleet.services() if not is_gated(fleet, name)]


def _gated(fleet: DrawnFleet) -> Sequence[str]:
    return [name for name in fleet.services() if is_gated(fleet, name)]


def _turn_gate_on(fleet: DrawnFleet, service: str, rng: random.Random) -> None:
    if not _gates(fleet):
        fleet.put_gate()
    if rng.random() < 0.3:
        _change_version(fleet, service, rng)
    fleet.change(service, rollout={"strategy": "Gated", "gateRef": "answers"})


def _turn_gate_off(fleet: DrawnFleet, service: str, _rng: random.Random) -> None:
    fleet.change(service, rollout=None)


def _skip_gate(fleet: DrawnFleet, service: str, _rng: random.Random) -> None:
    skip = {"by": "ann", "reason": "an outage"}
    rollout = fleet.spec(service)["rollout"]
    fleet.change(service, rollout={**rollout, "skipGate": skip})


def _gates(fleet: DrawnFleet) -> Sequence[str]:
    return [key.name for key in fleet.objects(QUALITY_GATES)]


def _delete_gate(fleet: DrawnFleet, _gate: str, _rng: random.Random) -> _Undo:
    fleet.remove_gate()
    return fleet.put_gate


def _refuse_versions(fleet: DrawnFleet, _gate: str, rng: random.Random) -> _Undo:
    verdict = rng.choice(("Failed", "Inconclusive"))
    fleet.kube.gate_verdict = {"verdict": verdict, "message": "a loss of 12 points"}
    return partial(setattr, fleet.kube, "gate_verdict", {})


def _lose_suite(fleet: DrawnFleet, _gate: str, _rng: random.Random) -> _Undo:
    fleet.kube.gate_problem = {"state": "suiteNotFound", "message": "ConfigMap/suite: not found"}
    return partial(setattr, fleet.kube, "gate_problem", {})


def _edit_gate(fleet: DrawnFleet, _gate: str, rng: random.Random) -> None:
    fleet.put_gate(maxDropPoints=rng.choice(("1", "2", "5")))


def _discard(kind: str) -> _Act:
    def delete(fleet: DrawnFleet, name: str, _rng: random.Random) -> None:
        fleet.kube.discard(ObjectKey(kind, NAMESPACE, name))

    return delete


def _revisions(fleet: DrawnFleet) -> Sequence[str]:
    return [key.name for key in fleet.revisions()]


def _claims(fleet: DrawnFleet) -> Sequence[str]:
    return [key.name for key in fleet.claims()]


def _gate_jobs(fleet: DrawnFleet) -> Sequence[str]:
    return [key.name for key in fleet.gate_jobs()]


def _kill_job(fleet: DrawnFleet, name: str, _rng: random.Random) -> None:
    pod = ObjectKey(PODS.plural, NAMESPACE, f"{name}-x")
    if pod in fleet.kube.objects and not fleet.kube.has_ended(pod):
        fleet.kube.begin_deletion(pod)


# Nodes and pods


def _nodes(fleet: DrawnFleet) -> Sequence[str]:
    return [name for name in fleet.kube.nodes() if name not in fleet.kube.node_lifecycle.away]


def _silence(fleet: DrawnFleet, node: str, _rng: random.Random) -> _Undo:
    fleet.kube.node_lifecycle.leave(node)
    return lambda: fleet.kube.node_lifecycle.come_back(node)


def _lose_node(fleet: DrawnFleet, node: str, rng: random.Random) -> _Undo | None:
    lost = fleet.kube.node(node)
    label, product = lost.labels["pool"], lost.labels["nvidia.com/gpu.product"]
    fleet.lose_node(node)
    name = f"{node}-again"
    if rng.random() < 0.4:
        return None
    return lambda: fleet.add_node(label, product=product, devices=lost.allocatable, name=name)


def _cordon(fleet: DrawnFleet, node: str, _rng: random.Random) -> _Undo:
    fleet.cordon(node)
    return lambda: fleet.cordon(node, cordoned=False) if node in fleet.kube.nodes() else None


def _taint(fleet: DrawnFleet, node: str, _rng: random.Random) -> _Undo:
    fleet.taint(node)
    return lambda: fleet.taint(node, tainted=False) if node in fleet.kube.nodes() else None


def _untainted(fleet: DrawnFleet) -> Sequence[str]:
    return [name for name in _nodes(fleet) if not fleet.kube.node(name).taints]


def _fail(fleet: DrawnFleet, pod: str, _rng: random.Random) -> None:
    fleet.kube.fail(ObjectKey(PODS.plural, NAMESPACE, pod))


def _crash(fleet: DrawnFleet, pod: str, _rng: random.Random) -> None:
    key = ObjectKey(PODS.plural, NAMESPACE, pod)
    if fleet.kube.objects[key]["spec"]["containers"][0]["image"] != BAD_IMAGE:
        fleet.kube.crash(key)


def _delete_pod(fleet: DrawnFleet, pod: str, _rng: random.Random) -> None:
    key = ObjectKey(PODS.plural, NAMESPACE, pod)
    fleet.kube.pod_losses(key)
    fleet.kube.begin_deletion(key)


def _delete_deployment(fleet: DrawnFleet, name: str, _rng: random.Random) -> None:
    sizes = {each.uid for each in fleet.kube.replica_sets(fleet.deployment(name))}
    fleet.kube.discard(fleet.deployment(name))
    for key, _ in list(fleet.kube.pods()):
        if fleet.kube.owner_uid(key) in sizes:
            fleet.kube.pod_losses(key)
            fleet.kube.begin_deletion(key)


def _slow_engines(fleet: DrawnFleet, _target: str, _rng: random.Random) -> _Undo:
    before, fleet.kube.times = fleet.kube.times, PodTimes(start=(60, 100), end=(20, 25))
    return partial(setattr, fleet.kube, "times", before)


# Devices and pools


def _labels(fleet: DrawnFleet) -> Sequence[str]:
    return fleet.labels()


def _take_device(fleet: DrawnFleet, label: str, rng: random.Random) -> _Undo | None:
    nodes = (fleet.kube.node(name) for name in fleet.kube.nodes())
    resources = {
        name for node in nodes if node.labels["pool"] == label for name in node.allocatable
    }
    resource = rng.choice(sorted(resources))
    fleet.take_devices(label, resource=resource, priority=rng.choice((0, 9)))
    return (lambda: fleet.free_devices(label)) if rng.random() < 0.6 else None


def _take_freed_devices(fleet: DrawnFleet, label: str, rng: random.Random) -> _Undo:
    fleet.kube.takers.add(label)
    stays = rng.random() < 0.4

    def end() -> None:
        fleet.kube.takers.discard(label)
        if not stays:
            fleet.free_devices(label)

    return end


def _free(fleet: DrawnFleet, label: str, _rng: random.Random) -> None:
    fleet.free_devices(label)


def _taken(fleet: DrawnFleet) -> Sequence[str]:
    return fleet.taken_labels()


def _unnamed_pools(fleet: DrawnFleet) -> Sequence[str]:
    """Return the pools that no service names."""
    specs = [fleet.spec(service) for service in fleet.services()]
    named = {pool for spec in specs for pool in spec.get("placement", {}).get("pools", ())}
    return [name for name, _ in fleet.pool_labels() if name not in named]


def _pool(fleet: DrawnFleet, name: str) -> Body:
    body: Body = fleet.kube.objects[ObjectKey(ACCELERATOR_POOLS.plural, "", name)]
    return body


def _pools(fleet: DrawnFleet) -> Sequence[str]:
    return fleet.pools()


def _rename_pool(fleet: DrawnFleet, pool: str, _rng: random.Random) -> None:
    fleet.rename_pool(pool, f"{pool}-x"[:40])


def _remove_pool(fleet: DrawnFleet, pool: str, _rng: random.Random) -> _Undo:
    spec = _pool(fleet, pool)["spec"]
    fleet.kube.discard(ObjectKey(ACCELERATOR_POOLS.plural, "", pool))

    def put() -> None:
        if spec["nodeSelector"]["pool"] not in dict(fleet.pool_labels()).values():
            fleet.kube.put(ACCELERATOR_POOLS, {"metadata": {"name": pool}, "spec": spec}, "kubectl")

    return put


def _pool_labels(fleet: DrawnFleet) -> Sequence[str]:
    return [label for _, label in fleet.pool_labels()]


def _set_price(fleet: DrawnFleet, label: str, price: str) -> None:
    for name, other in fleet.pool_labels():
        if other == label:
            prices = [{"from": "2026-01-01", "perGPUHour": price}]
            spec = {**_pool(fleet, name)["spec"], "prices": prices}
            fleet.kube.put(ACCELERATOR_POOLS, {"metadata": {"name": name}, "spec": spec}, "kubectl")


def _change_price(fleet: DrawnFleet, label: str, rng: random.Random) -> None:
    _set_price(fleet, label, rng.choice(("1.10", "2.50", "5.00")))


def _misprice(fleet: DrawnFleet, label: str, _rng: random.Random) -> _Undo:
    _set_price(fleet, label, "1e999")
    return lambda: _set_price(fleet, label, "2.20")


# Money, quotas and other writers


def _without_budget(fleet: DrawnFleet) -> Sequence[str]:
    return [] if fleet.has_budget() else [NAMESPACE]


def _with_budget(fleet: DrawnFleet) -> Sequence[str]:
    return [NAMESPACE] if fleet.has_budget() else []


def _limit(fleet: DrawnFleet, _target: str, rng: random.Random) -> _Undo | None:
    closed = {"window": "Month", "amount": "0.01"}
    kinds: list[tuple[list[dict[str, str]], str | None]] = [
        ([closed], None),
        ([{**closed, "tier": "OnDemand"}], None),
        ([{"window": "Month", "amount": "100000"}], rng.choice(("1", "2"))),
    ]
    limits, gpus = rng.choice(kinds)
    fleet.set_budget(limits, gpus)
    fleet.closed_at = dict(fleet.replicas())
    return fleet.remove_budget if rng.random() < 0.7 else None


def _remove_limits(fleet: DrawnFleet, _target: str, _rng: random.Random) -> None:
    fleet.remove_budget()


def _quota_resources(fleet: DrawnFleet) -> Sequence[str]:
    if fleet.kube.quotas:
        return []
    return [resource for resource in (GPU, SLICE) if fleet.devices_in_use(resource)]


def _set_quota(fleet: DrawnFleet, resource: str, rng: random.Random) -> _Undo | None:
    fleet.set_quota(fleet.devices_in_use(resource) + rng.choice((0, 0, 1)), resource)
    return fleet.remove_quota if rng.random() < 0.7 else None


def _running_deployments(fleet: DrawnFleet) -> Sequence[str]:
    return [key.name for key in fleet.kube.deployments() if fleet.kube.strategy(key).replicas]


def _autoscale(fleet: DrawnFleet, name: str, rng: random.Random) -> _Undo:
    """Let somebody's HorizontalPodAutoscaler hold a Deployment; half of them agree with it."""
    key = fleet.deployment(name)
    replicas = fleet.kube.strategy(key).replicas if rng.random() < 0.5 else rng.randint(1, 4)
    fleet.autoscale(key, replicas)
    return lambda: fleet.end_autoscaler(key)


def _scale_by_hand(fleet: DrawnFleet, name: str, rng: random.Random) -> None:
    fleet.kube.scale_as(fleet.deployment(name), rng.randint(1, 4), "kubectl")


# The operator, the API server and clocks


def _restart(fleet: DrawnFleet, _target: str, _rng: random.Random) -> None:
    fleet.restart_requested = True


def _late_controllers(fleet: DrawnFleet, _target: str, _rng: random.Random) -> _Undo:
    fleet.late_controllers = 0.5
    return partial(setattr, fleet, "late_controllers", 0.0)


def _late_news(fleet: DrawnFleet, _target: str, rng: random.Random) -> _Undo:
    fleet.kube.watch_lag = timedelta(seconds=rng.choice((5, 10, 30)))
    return partial(setattr, fleet.kube, "watch_lag", timedelta())


def _refuse_statuses(fleet: DrawnFleet, _target: str, rng: random.Random) -> _Undo:
    fleet.kube.refused_statuses = rng.choice((0.5, 1.0))
    return partial(setattr, fleet.kube, "refused_statuses", 0.0)


_WITH_STATUS = (INFERENCE_SERVICES, QUALITY_GATES, TENANT_BUDGETS, DEPLOYMENTS)


def _statuses(fleet: DrawnFleet) -> Sequence[str]:
    return [f"{key.plural}/{key.name}" for kind in _WITH_STATUS for key in fleet.objects(kind)]


def _lose_status(fleet: DrawnFleet, target: str, _rng: random.Random) -> None:
    plural, _, name = target.partition("/")
    key = next(each for each in fleet.kube.objects if (each.plural, each.name) == (plural, name))
    fleet.erase_status(key)


def _step_clock(fleet: DrawnFleet, _target: str, rng: random.Random) -> _Undo:
    minutes = rng.choice((-5, -5, 60, -60))
    fleet.kube.step_clock(timedelta(minutes=minutes))
    return lambda: fleet.kube.step_clock(timedelta(minutes=-minutes))


def _let_time_pass(fleet: DrawnFleet, _target: str, rng: random.Random) -> None:
    fleet.pause = rng.choice((4, 10, 30))


KINDS: tuple[Kind, ...] = (
    Kind(name="edit", targets=_services, begin=_edit, weight=6),
    Kind(name="version", targets=_services, begin=_change_version, weight=4),
    Kind(name="broken", targets=_good_services, begin=_break, ticks=_LONG, weight=5),
    Kind(name="broken-for-good", targets=_good_services, begin=_break_for_good, weight=1),
    Kind(name="floor-raised", targets=_services, begin=_raise_floor),
    Kind(name="floor-lowered", targets=_services, begin=_lower_floor, weight=1),
    Kind(name="created", targets=_room_for_services, begin=_create, ticks=_LONG),
    Kind(name="created-again", targets=_services, begin=_create_again, weight=1),
    Kind(name="load", targets=_services, begin=_load),
    Kind(name="gate-on", targets=_ungated, begin=_turn_gate_on),
    Kind(name="gate-off", targets=_gated, begin=_turn_gate_off, weight=1),
    Kind(name="gate-skipped", targets=_gated, begin=_skip_gate, weight=1),
    Kind(name="gate-deleted", targets=_gates, begin=_delete_gate),
    Kind(name="gate-edited", targets=_gates, begin=_edit_gate, weight=1),
    Kind(name="gate-refuses", targets=_gates, begin=_refuse_versions, ticks=_LONG),
    Kind(name="suite-lost", targets=_gates, begin=_lose_suite, ticks=_LONG),
    Kind(name="revision-deleted", targets=_revisions, begin=_discard("controllerrevisions")),
    Kind(name="claim-deleted", targets=_claims, begin=_discard("persistentvolumeclaims")),
    Kind(name="job-deleted", targets=_gate_jobs, begin=_discard("jobs")),
    Kind(name="job-killed", targets=_gate_jobs, begin=_kill_job),
    Kind(name="node-silent", targets=_nodes, begin=_silence, ticks=_LONG, weight=4),
    Kind(name="node-lost", targets=_nodes, begin=_lose_node, ticks=_LONG, weight=3),
    Kind(name="node-cordoned", targets=_nodes, begin=_cordon, ticks=_LONG),
    Kind(name="node-tainted", targets=_untainted, begin=_taint, ticks=_LONG),
    Kind(name="pod-fails", targets=owned_pods, begin=_fail, weight=3),
    Kind(name="engine-exits", targets=owned_pods, begin=_crash),
    Kind(name="pod-deleted", targets=owned_pods, begin=_delete_pod),
    Kind(name="deployment-deleted", targets=_running_deployments, begin=_delete_deployment),
    Kind(name="slow-engines", targets=_cluster, begin=_slow_engines, weight=1),
    Kind(name="device-taken", targets=_labels, begin=_take_device, weight=3),
    Kind(name="freed-devices-taken", targets=_labels, begin=_take_freed_devices, weight=3),
    Kind(name="devices-freed", targets=_taken, begin=_free),
    Kind(name="pool-renamed", targets=_unnamed_pools, begin=_rename_pool),
    Kind(name="pool-gone", targets=_pools, begin=_remove_pool),
    Kind(name="price-changed", targets=_pool_labels, begin=_change_price),
    Kind(name="price-of-no-currency", targets=_pool_labels, begin=_misprice, weight=0.3),
    Kind(name="limit", targets=_without_budget, begin=_limit, ticks=_LONG, weight=3),
    Kind(name="limits-removed", targets=_with_budget, begin=_remove_limits, weight=1),
    Kind(name="quota", targets=_quota_resources, begin=_set_quota, ticks=_LONG),
    Kind(name="autoscaler", targets=_running_deployments, begin=_autoscale, weight=4),
    Kind(name="scaled-by-hand", targets=_running_deployments, begin=_scale_by_hand),
    Kind(name="operator-restarted", targets=_cluster, begin=_restart, weight=3),
    Kind(name="late-controllers", targets=_cluster, begin=_late_controllers),
    Kind(name="late-news", targets=_cluster, begin=_late_news),
    Kind(name="statuses-refused", targets=_cluster, begin=_refuse_statuses),
    Kind(name="status-lost", targets=_statuses, begin=_lose_status),
    Kind(name="clock-steps", targets=_cluster, begin=_step_clock),
    Kind(name="time-passes", targets=_cluster, begin=_let_time_pass, weight=3),
)
KINDS_BY_NAME = {kind.name: kind for kind in KINDS}
