"""The language of what meets: users, tenants, clouds and others, each with when it ends."""

from collections.abc import Sequence

from tests.fault_sequences.language import Fault
from tests.floors.fleet import GPU, SLICE, FloorFleet
from tests.floors.kube import PodTimes


def _services(fleet: FloorFleet) -> Sequence[str]:
    return fleet.services()


def _fix(fleet: FloorFleet, service: str) -> None:
    fleet.edit_template(service, "fixed")


def _take_back(fleet: FloorFleet, service: str) -> None:
    fleet.edit(service, engine=None)


def _edit(fleet: FloorFleet, service: str) -> None:
    fleet.edit_template(service, fleet.kube.moment)


def _renamable_pools(fleet: FloorFleet) -> Sequence[str]:
    """Return the pools that no service names."""
    named = {
        pool
        for service in fleet.services()
        for pool in fleet.spec(service).get("placement", {}).get("pools", ())
    }
    return [pool for pool in fleet.pools() if pool not in named]


def _rename(fleet: FloorFleet, pool: str) -> None:
    fleet.rename_pool(pool, f"{pool}-x")


def _take_one(fleet: FloorFleet, label: str) -> None:
    fleet.take_devices(
        label, resource=fleet.resource(label), priority=fleet.kube.rng.choice((0, 9))
    )


def _use_up_month(fleet: FloorFleet, _target: str) -> None:
    fleet.set_budget([{"window": "Month", "amount": "0.01"}])


def _use_up_tier(fleet: FloorFleet, _target: str) -> None:
    fleet.set_budget([{"window": "Month", "amount": "0.01", "tier": "OnDemand"}])


def _limit_gpus(fleet: FloorFleet, _target: str) -> None:
    fleet.set_budget([{"window": "Month", "amount": "100000"}], gpus="1")


def _without_budget(fleet: FloorFleet) -> Sequence[str]:
    return [] if fleet.has_budget() else ["team-a"]


def _remove_budget(fleet: FloorFleet, _target: str) -> None:
    fleet.remove_budget()


def _without_quota(fleet: FloorFleet) -> Sequence[str]:
    """Return what a quota can count of what runs."""
    if fleet.kube.quotas:
        return []
    return [resource for resource in (GPU, SLICE) if fleet.devices_in_use(resource)]


def _set_quota(fleet: FloorFleet, resource: str) -> None:
    room = fleet.kube.rng.choice((0, 0, 1))
    fleet.set_quota(fleet.devices_in_use(resource) + room, resource)


def _remove_quota(fleet: FloorFleet, _target: str) -> None:
    fleet.remove_quota()


def _running_deployments(fleet: FloorFleet) -> Sequence[str]:
    return [key.name for key in fleet.kube.deployments() if fleet.kube.strategy(key).replicas]


def _autoscale(fleet: FloorFleet, deployment: str) -> None:
    fleet.autoscale(fleet.deployment(deployment), fleet.kube.rng.randint(1, 3))


def _end_autoscaler(fleet: FloorFleet, deployment: str) -> None:
    fleet.end_autoscaler(fleet.deployment(deployment))


def _scale_once(fleet: FloorFleet, deployment: str) -> None:
    key = fleet.deployment(deployment)
    fleet.kube.scale_as(key, fleet.kube.rng.randint(1, 4), "kubectl")


def _burst(fleet: FloorFleet, service: str) -> None:
    fleet.waiting[service] = fleet.kube.rng.choice((5.0, 30.0))


def _end_burst(fleet: FloorFleet, service: str) -> None:
    fleet.waiting.pop(service, None)


def _restart(fleet: FloorFleet, _target: str) -> None:
    fleet.restart_requested = True


def _nodes(fleet: FloorFleet) -> Sequence[str]:
    nodes = fleet.kube.nodes()
    return nodes if len(nodes) > 1 else []


def _lose_node(fleet: FloorFleet, node: str) -> None:
    fleet.lose_node(node)


def _late(fleet: FloorFleet, _target: str) -> None:
    fleet.late_controllers = 0.5


def _on_time(fleet: FloorFleet, _target: str) -> None:
    fleet.late_controllers = 0.0


def _slow(fleet: FloorFleet, _target: str) -> None:
    fleet.kube.times = PodTimes(start=(60, 100), end=(20, 25))


def _cluster(_fleet: FloorFleet) -> Sequence[str]:
    return ["cluster"]


EVENTS: tuple[Fault[FloorFleet], ...] = (
    Fault(name="edit", targets=_services, begin=_edit),
    Fault(
        name="bad-then-fix",
        targets=_services,
        begin=FloorFleet.break_template,
        end=_fix,
        seconds=(20, 400),
    ),
    Fault(
        name="bad-then-back",
        targets=_services,
        begin=FloorFleet.break_template,
        end=_take_back,
        seconds=(20, 400),
    ),
    Fault(name="bad-then-nobody", targets=_services, begin=FloorFleet.break_template),
    Fault(name="pool-renamed", targets=_renamable_pools, begin=_rename),
    Fault(name="gpu-taken", targets=FloorFleet.labels, begin=_take_one),
    Fault(
        name="gpu-taken-and-freed",
        targets=FloorFleet.labels,
        begin=_take_one,
        end=FloorFleet.free_devices,
        seconds=(20, 400),
    ),
    Fault(name="gpus-freed", targets=FloorFleet.taken_labels, begin=FloorFleet.free_devices),
    Fault(name="month-used-up", targets=_without_budget, begin=_use_up_month),
    Fault(
        name="month-used-up-and-raised",
        targets=_without_budget,
        begin=_use_up_month,
        end=_remove_budget,
        seconds=(60, 600),
    ),
    Fault(name="tier-used-up", targets=_without_budget, begin=_use_up_tier),
    Fault(name="gpus-limited", targets=_without_budget, begin=_limit_gpus),
    Fault(name="quota", targets=_without_quota, begin=_set_quota),
    Fault(
        name="quota-for-a-while",
        targets=_without_quota,
        begin=_set_quota,
        end=_remove_quota,
        seconds=(60, 600),
    ),
    Fault(
        name="autoscaler",
        targets=_running_deployments,
        begin=_autoscale,
        end=_end_autoscaler,
        seconds=(60, 900),
    ),
    Fault(name="scaled-by-hand", targets=_running_deployments, begin=_scale_once),
    Fault(name="burst", targets=_services, begin=_burst, end=_end_burst, seconds=(15, 90)),
    Fault(name="operator-restarted", targets=_cluster, begin=_restart),
    Fault(name="node-lost", targets=_nodes, begin=_lose_node),
    Fault(name="late-controllers", targets=_cluster, begin=_late, end=_on_time, seconds=(60, 300)),
    Fault(name="slow-engines", targets=_cluster, begin=_slow),
)
