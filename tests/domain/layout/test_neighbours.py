"""Who grows or comes makes no neighbour dearer, and a person is asked before others move."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from tessera.api.mig import MigPlan
from tessera.api.pool_reasons import LayoutReady
from tessera.domain.layout.adoption import PlanAdoption, adopt
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Snapshot, Workload
from tests.builders import MEDIUM, NOW, SMALL, a_pod, a_service, a_spec, a_workload
from tests.layout_builders import (
    AGENT,
    a_fleet,
    a_mig_gpu,
    a_mig_node,
    a_planned_pool,
    layout_problem_of,
    proposals_of,
    views_of,
    with_status,
)

TINY = "hf://Qwen/Qwen2.5-0.5B-Instruct"


class Placed(NamedTuple):
    """A service with its replicas on slices."""

    service: ObservedService
    pods: tuple[Pod, ...]
    workload: Workload


def placed(
    name: str,
    profile: str,
    running: int,
    wanted: int | None = None,
    *,
    uri: str = TINY,
    mig: str = "Auto",
    **spec: Any,
) -> Placed:
    """Build a service `team-b/mail` with this number of replicas on slices of one profile."""
    namespace, _, short = name.partition("/")
    ref, variant = Ref(namespace, short), f"a100-{profile.replace('.', '-')}"
    replicas = running if wanted is None else wanted
    scaling = {} if "scaling" in spec else {"replicas": replicas}
    service = replace(
        a_service(short, a_spec(uri, placement={"mig": mig}, **scaling, **spec)), ref=ref
    )
    pods = tuple(
        replace(
            a_pod(
                f"{short}-{index}",
                short,
                variant,
                node="a100-0",
                devices={f"nvidia.com/mig-{profile}": 1},
            ),
            ref=Ref(namespace, f"{short}-{index}"),
            service=ref,
        )
        for index in range(running)
    )
    workload = replace(
        a_workload(replicas, short, variant), ref=Ref(namespace, f"{short}-{variant}"), service=ref
    )
    return Placed(service, pods, workload)


def fleet_of(*parts: Placed, node: MigNode, mode: str = "Propose") -> Snapshot:
    return a_fleet(
        *(part.service for part in parts),
        pools=(a_planned_pool(mode=mode),),
        mig_nodes=[node],
        pods=tuple(pod for part in parts for pod in part.pods),
        workloads=tuple(part.workload for part in parts),
    )


def adopted(
    fleet: Snapshot, node: MigNode, *, gateways: bool = True, problem: LayoutProblem | None = None
) -> PlanAdoption:
    problem = problem or layout_problem_of(fleet, [node], gateways=gateways)
    [view] = views_of(fleet)
    return adopt(view, solve(problem), problem, [node], AGENT, fleet.at)


def places(plan: MigPlan | None) -> dict[str, dict[str, int]]:
    assigned: dict[str, dict[str, int]] = {}
    for each in plan.services if plan is not None else ():
        assigned.setdefault(each.service, {})[each.profile] = each.replicas
    return assigned


# GPU 0 is full, and the other one is whole and free.
FULL = a_mig_node(
    a_mig_gpu(
        0,
        "1g.10gb@0=team-a/chat-0",
        "1g.10gb@1=team-a/chat-1",
        "1g.10gb@2=team-b/mail-0",
        "1g.10gb@3=team-b/svc1-0",
        "3g.40gb@4=team-b/svc2-0",
    ),
    whole_gpus=1,
)
PLAIN = (
    placed("team-b/svc1", "1g.10gb", 1, mig="Existing"),
    placed("team-b/svc2", "3g.40gb", 1, uri=SMALL, mig="Existing"),
)


def growing_chat(mode: str, *others: Placed) -> Snapshot:
    chat = placed("team-a/chat", "1g.10gb", 2, 3, uri=SMALL)
    return fleet_of(
        chat, *(others or (placed("team-b/mail", "1g.10gb", 1),)), *PLAIN, node=FULL, mode=mode
    )


@pytest.mark.parametrize("mode", ["Propose", "Auto"])
def test_who_wants_more_takes_the_dearer_place_at_once(mode: str) -> None:
    adoption = adopted(growing_chat(mode), FULL)
    assert places(adoption.status.target) == {
        "team-a/chat": {"1g.10gb": 2, "whole": 1},
        "team-b/mail": {"1g.10gb": 1},
    }
    assert (adoption.verdict, adoption.status.proposed) == (None, None)


@pytest.mark.parametrize("mode", ["Propose", "Auto"])
def test_without_a_gateway_who_wants_more_waits_and_its_neighbour_stays(mode: str) -> None:
    adoption = adopted(growing_chat(mode), FULL, gateways=False)
    assert places(adoption.status.target)["team-b/mail"] == {"1g.10gb": 1}
    assert adoption.verdict is not None
    assert adoption.verdict.reason is LayoutReady.INSUFFICIENT_CAPACITY
    assert "team-a/chat 2057 of 3086 tokens/s" in adoption.verdict.message


def test_services_of_one_tenant_are_neighbours_too() -> None:
    node = replace(FULL, gpus=(a_mig_gpu(0, *_positions("team-a")),))
    parts = (
        placed("team-a/chat", "1g.10gb", 2, 3, uri=SMALL),
        placed("team-a/mail", "1g.10gb", 1),
        *PLAIN,
    )
    target = adopted(fleet_of(*parts, node=node), node).status.target
    assert places(target)["team-a/mail"] == {"1g.10gb": 1}


def _positions(tenant: str) -> list[str]:
    return [
        f"{instance.placement.profile}@{instance.placement.start}="
        f"{tenant if holder.name.startswith('mail') else holder.namespace}/{holder.name}"
        for instance in FULL.gpus[0].instances
        for holder in instance.holders
    ]


def test_a_service_that_restarts_keeps_its_slice() -> None:
    """Its new pod waits while the old one ends, and its slice is free for so long."""
    gpu = a_mig_gpu(0, *(each for each in _positions("team-b") if "mail" not in each), "1g.10gb@2")
    node = replace(FULL, gpus=(gpu,))
    mail = placed("team-b/mail", "1g.10gb", 1)
    waiting = mail._replace(pods=(replace(mail.pods[0], node=None, ready_since=None),))
    parts = (placed("team-a/chat", "1g.10gb", 2, uri=SMALL), waiting, *PLAIN)
    problem = layout_problem_of(fleet_of(*parts, node=node), [node], gateways=True)
    limits = {demand.service.name: demand.max_hourly_nanos for demand in problem.demands}
    assert limits == {"team-a/chat": 535714286, "team-b/mail": 267857143}


def test_a_service_that_lost_its_device_may_go_anywhere() -> None:
    gpu = a_mig_gpu(0, *(each for each in _positions("team-b") if "mail" not in each))
    node = replace(FULL, gpus=(gpu,))
    mail = placed("team-b/mail", "1g.10gb", 1)
    waiting = mail._replace(pods=(replace(mail.pods[0], node=None, ready_since=None),))
    target = adopted(
        fleet_of(
            placed("team-a/chat", "1g.10gb", 2, uri=SMALL), waiting, *PLAIN, node=node, mode="Auto"
        ),
        node,
    ).status.target
    # The slice is made again, which costs no more.
    assert places(target)["team-b/mail"] == {"1g.10gb": 1}
    locked = replace(node, gpus=(replace(gpu, fault="ResetRequired"),))
    target = adopted(
        fleet_of(
            placed("team-a/chat", "1g.10gb", 2, uri=SMALL),
            waiting,
            *PLAIN,
            node=locked,
            mode="Auto",
        ),
        locked,
    ).status.target
    assert places(target)["team-b/mail"] == {"whole": 1}


# A slice 3g.40gb has room on no GPU until somebody moves.
SPREAD = a_mig_node(
    a_mig_gpu(0, "1g.10gb@0=team-a/chat-0", "1g.10gb@4=team-a/chat-1"),
    a_mig_gpu(1, *(f"1g.10gb@{at}=team-b/mail-{at}" for at in range(5)), "1g.10gb@5", "1g.10gb@6"),
)


def growing_news(mode: str, *others: Placed) -> Snapshot:
    chat = placed("team-a/chat", "1g.10gb", 2, uri=SMALL)
    mail = placed("team-b/mail", "1g.10gb", 5)
    news = placed("team-c/news", "3g.40gb", 0, 1, uri=MEDIUM)
    new = replace(fleet_of(chat, mail, node=SPREAD, mode=mode))
    services = (*new.services, news.service, *(each.service for each in others))
    return replace(new, services=services)


def test_what_moves_somebody_waits_and_lists_moves_and_prices() -> None:
    adoption = adopted(growing_news("Propose"), SPREAD)
    proposed = adoption.status.proposed
    assert proposed is not None
    changes = {
        each.service: (each.moves, each.per_hour_before, each.per_hour_after)
        for each in proposed.changes
    }
    assert changes == {
        "team-a/chat": (1, Decimal("0.535714286"), Decimal("0.535714286")),
        "team-c/news": (0, Decimal(0), Decimal("0.928571429")),
    }
    assert places(adoption.status.target) == {
        "team-a/chat": {"1g.10gb": 2},
        "team-b/mail": {"1g.10gb": 5},
    }
    assert adoption.verdict is not None
    assert adoption.verdict.reason is LayoutReady.AWAITING_APPROVAL
    assert "(team-a/chat 1 replica, 0.54 -> 0.54 USD per hour)" in adoption.verdict.message
    assert places(adopted(growing_news("Auto"), SPREAD).status.target) == places(proposed)


def test_a_proposal_keeps_its_name_while_its_content_stays() -> None:
    """A service that takes a free slice meanwhile is none of its content."""
    fleet = growing_news("Propose")
    first = adopted(fleet, SPREAD).status
    assert first.proposed is not None
    more = growing_news("Propose", placed("team-c/doze", "1g.10gb", 0, 1))
    later = replace(with_status(more, first), at=NOW + timedelta(minutes=4))
    second = adopted(later, SPREAD).status
    assert second.proposed is not None
    assert places(second.target)["team-c/doze"] == {"1g.10gb": 1}
    assert second.proposed.services != first.proposed.services
    assert (second.proposed.name, second.proposed.at) == (first.proposed.name, NOW)

    pools = tuple(
        replace(pool, approved_plan=first.proposed.name) for pool in with_status(more, second).pools
    )
    approved = adopted(replace(later, pools=pools), SPREAD).status
    assert approved.proposed is None
    assert places(approved.target) == places(second.proposed)
    # By then it has the name of all of its content, so that it is not adopted again.
    settled = with_status(replace(later, pools=pools), approved)
    assert adopted(settled, SPREAD).status == approved


def test_a_sleeper_keeps_no_place_from_who_runs() -> None:
    node = replace(
        FULL,
        gpus=(a_mig_gpu(0, *_positions("team-b")[:2], *_positions("team-b")[3:], "1g.10gb@2"),),
    )
    doze = placed(
        "team-b/doze",
        "1g.10gb",
        0,
        uri=TINY,
        scaling={"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "60s"}},
    )
    chat = placed("team-a/chat", "1g.10gb", 2, 3, uri=SMALL)
    for mode in ("Propose", "Auto"):
        fleet = fleet_of(chat, doze, *PLAIN, node=node, mode=mode)
        proposals = dict(proposals_of(fleet, gateways=True))
        asleep = proposals[doze.service.ref]
        proposals[doze.service.ref] = replace(asleep, scale=replace(asleep.scale, replicas=0))
        problem = layout_problem(
            views_of(fleet), {"a100": [node]}, {"a100": AGENT}, proposals, fleet, gateways=True
        )
        target = adopted(fleet, node, problem=problem).status.target
        assert places(target) == {"team-a/chat": {"1g.10gb": 3}, "team-b/doze": {"whole": 1}}
