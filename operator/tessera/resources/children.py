"""Every object that a plan wants to exist."""

from collections.abc import Iterator
from itertools import groupby

from tessera.domain.plan import Allotment, Plan
from tessera.resources.deployment import deployment
from tessera.resources.manifest import Manifest
from tessera.resources.namespace import account, isolation, monitor
from tessera.resources.service import disruption_budget, front

_BUDGETED = 2
"""From so many replicas on a disruption budget helps; with one it would block every node drain."""


def of_service(allotment: Allotment) -> tuple[Manifest, ...]:
    """The objects of one service; none while there is nothing decided for it."""
    choice, spec = allotment.choice, allotment.service.spec
    if choice is None or spec is None:
        return ()
    told = [
        front(allotment.service),
        deployment(allotment, spec, choice, dict(choice.offer.node_selector)),
    ]
    if allotment.scale.replicas >= _BUDGETED:
        told.append(disruption_budget(allotment.service))
    return tuple(told)


def made_of(allotment: Allotment) -> tuple[object, ...]:
    """All that the objects of a service depend on: equal parts make equal objects."""
    service = allotment.service
    return (
        service.uid,
        service.spec,
        allotment.choice,
        allotment.drain.keep,
        allotment.surge,
        allotment.scale.replicas >= _BUDGETED,
    )


def of_namespaces(
    plan: Plan, *, visitors: tuple[str, ...], monitored: bool
) -> Iterator[tuple[str, tuple[Manifest, ...]]]:
    """The shared objects of every namespace in which something is placed."""
    in_order = (plan.allotments[ref] for ref in sorted(plan.allotments))
    for namespace, group in groupby(in_order, key=lambda one: one.service.ref.namespace):
        allotments = list(group)
        if any(allotment.choice for allotment in allotments):
            services = [allotment.service for allotment in allotments]
            told = [account(services), isolation(services, visitors)]
            if monitored:
                told.append(monitor(services))
            yield namespace, tuple(told)
