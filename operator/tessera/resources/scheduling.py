"""Scheduling of engine pods: onto the nodes of their pool, spread if possible."""

from collections.abc import Iterable

from kubernetes.client import V1LabelSelector, V1PodSpec, V1Toleration, V1TopologySpreadConstraint

from tessera.api.accelerator_pool import Toleration
from tessera.domain.names import SERVICE_LABEL
from tessera.resources import engine
from tessera.resources import platform as surroundings
from tessera.resources import spot_scheduling as spot

_SPREAD_KEYS = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")


def bind_to_pool(
    pod: V1PodSpec, template: engine.EngineTemplate, *, unreachable_seconds: int | None = None
) -> V1PodSpec:
    """Return the pod bound to the pool of the choice, with the pool's selector and tolerations.

    The pod leaves an unreachable node after `unreachable_seconds`, or the default; a spot node
    sooner.
    """
    offer = template.choice.offer
    on_spot = offer.tier == "Spot"
    pod.node_selector = dict(offer.node_selector)
    pod.tolerations = tolerations(offer.tolerations, on_spot=on_spot)
    if unreachable_seconds is not None and not on_spot:
        pod.tolerations += engine.unreachable_tolerations(unreachable_seconds)
    pod.runtime_class_name = offer.runtime_class_name
    pod.scheduler_name = offer.scheduler_name
    platform = template.version.platform
    pod.priority_class_name = surroundings.priority_class(template.spec, platform)
    return pod


def tolerations(pool_tolerations: Iterable[Toleration], *, on_spot: bool) -> list[V1Toleration]:
    """Return the tolerations that allow a pod on the nodes of a pool."""
    return [
        # The taint that usually keeps other pods off GPU nodes.
        V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),
        *(V1Toleration.model_validate(toleration.manifest) for toleration in pool_tolerations),
        *(spot.tolerations() if on_spot else ()),
    ]


def spread_constraints(service: str) -> list[V1TopologySpreadConstraint]:
    """Return soft constraints that spread the replicas of one template over nodes and zones."""
    # They are set for a single replica too, where they mean nothing: adding them with the second
    # replica would change the template and restart the first.
    return [
        V1TopologySpreadConstraint(
            max_skew=1,
            topology_key=key,
            when_unsatisfiable="ScheduleAnyway",
            label_selector=V1LabelSelector(match_labels={SERVICE_LABEL: service}),
            match_label_keys=["pod-template-hash"],
        )
        for key in _SPREAD_KEYS
    ]
