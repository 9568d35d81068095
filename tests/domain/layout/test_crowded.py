"""GPUs that cannot be emptied keep their layouts, and every other plan can begin."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.layout.crowded import crowded_gpus
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.snapshot import Pod
from tests.builders import MEDIUM, a_pod
from tests.layout_builders import (
    AGENT,
    MANAGER,
    a_fleet,
    a_mig_gpu,
    a_mig_node,
    a_mig_service,
    adopt_plan,
    layout_problem_of,
)
from tests.properties import examples

LABELS_ONLY = replace(MANAGER, knows_pods=False)
HALVES = ("3g.40gb@0", "3g.40gb@4")
WHOLE = ("7g.80gb@0",)


def a_problem(
    layouts: Sequence[Sequence[str]],
    can: Capabilities,
    used: int,
    *,
    floor: int | None = None,
    downtime: bool = False,
) -> LayoutProblem:
    """Build nodes with two GPUs each, whose first slices are used by a service with this floor."""
    pods: list[Pod] = []
    nodes: list[MigNode] = []
    free = used
    for number in range(0, len(layouts), 2):
        gpus = []
        for index, slices in enumerate(layouts[number : number + 2]):
            positions = []
            for position in slices:
                name = f"chat-{len(pods)}"
                positions.append(f"{position}=team-a/{name}" if free else position)
                if free:
                    profile = position.partition("@")[0]
                    pods.append(
                        a_pod(
                            name,
                            "chat",
                            f"a100-{profile.replace('.', '-')}",
                            node=f"a100-{number // 2}",
                            devices={f"nvidia.com/mig-{profile}": 1},
                        )
                    )
                    free -= 1
            gpus.append(a_mig_gpu(index, *positions))
        nodes.append(a_mig_node(*gpus, name=f"a100-{number // 2}"))
    floor = used if floor is None else floor
    scaling = {"minReplicas": floor, "maxReplicas": max(used, floor, 1)}
    chat = replace(a_mig_service("chat", scaling=scaling), allows_downtime=downtime)
    fleet = a_fleet(chat, mig_nodes=nodes, pods=tuple(pods))
    return layout_problem_of(fleet, nodes, can)


@pytest.mark.parametrize(
    ("layouts", "can", "used", "crowded"),
    [
        ([HALVES] * 4, MANAGER, 7, 4),
        ([HALVES] * 4, MANAGER, 6, 0),
        ([HALVES] * 4, AGENT, 8, 0),
        # Without an agent a node is emptied as a whole.
        ([HALVES] * 4, LABELS_ONLY, 5, 4),
        ([HALVES] * 4, LABELS_ONLY, 4, 0),
        # One free slice empties the GPU with a single one, which then takes replicas of others.
        ([WHOLE, HALVES, HALVES, HALVES], MANAGER, 6, 0),
        ([WHOLE, HALVES, HALVES, HALVES], MANAGER, 7, 4),
    ],
)
def test_a_gpu_is_crowded_whose_slices_outnumber_the_free_ones(
    layouts: Sequence[Sequence[str]], can: Capabilities, used: int, crowded: int
) -> None:
    assert len(crowded_gpus(a_problem(layouts, can, used), grows=True)) == crowded


def test_replicas_beyond_the_floor_make_room() -> None:
    assert crowded_gpus(a_problem([HALVES] * 2, MANAGER, 4, floor=2), grows=True) == frozenset()
    assert crowded_gpus(a_problem([HALVES] * 2, MANAGER, 4, downtime=True), grows=True) == set()


@settings(max_examples=examples(25), deadline=None)
@given(
    st.lists(st.sampled_from([HALVES, WHOLE]), min_size=2, max_size=4),
    st.sampled_from([MANAGER, LABELS_ONLY]),
    st.integers(1, 8),
)
def test_every_plan_can_begin(
    layouts: Sequence[Sequence[str]], can: Capabilities, used: int
) -> None:
    problem = a_problem(layouts, can, min(used, sum(map(len, layouts))))
    plan = solve(problem).pools["a100"].plan
    targets = {
        f"a100/{node.node}/{gpu.gpu:02}": gpu.slices for node in plan.nodes for gpu in node.gpus
    }
    free = sum(part.service is None for gpu in problem.gpus for part in gpu.slices)
    slices = Counter[str]()
    changed = set[str]()
    for gpu in problem.gpus:
        group = gpu.name if can.knows_pods else gpu.node
        slices[group] += len(gpu.slices)
        if Counter(part.profile for part in gpu.slices) != Counter(targets[gpu.name]):
            changed.add(group)
    assert not changed or any(slices[group] <= free for group in changed), changed


def test_a_new_service_without_room_is_named_and_moves_no_other() -> None:
    node = a_mig_node(a_mig_gpu(0, *(f"{at}=team-a/chat-{at[-1]}" for at in HALVES)))
    devices = {"nvidia.com/mig-3g.40gb": 1}
    pods = tuple(
        a_pod(f"chat-{at[-1]}", "chat", "a100-3g-40gb", node="a100-0", devices=devices)
        for at in HALVES
    )
    fleet = a_fleet(
        a_mig_service("chat"), a_mig_service("code", MEDIUM), mig_nodes=[node], pods=pods
    )
    adoption = adopt_plan(fleet, [node], MANAGER)
    assert adoption.verdict is not None
    assert adoption.verdict.message.startswith("unmet demand of 1 service: team-a/code")
    assert adoption.status.target is not None
    assert adoption.status.target.nodes[0].gpus[0].slices == ("3g.40gb", "3g.40gb")
