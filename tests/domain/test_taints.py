"""Which taints keep a pod off the nodes that it may use, and what lets it there."""

from dataclasses import replace

import pytest

from tessera.domain.observed.snapshot import Node, Pod, PodToleration, Taint
from tessera.domain.observed.taints import with_taints_named
from tests.builders import a_node, a_pod, a_pool

SKU = Taint("sku", "gpu", "NoSchedule")
TAINTED = replace(a_node(whole=1), barring_taints=(SKU,))
POOLS = (a_pool(),)
NEW, OLD = "1 node had untolerated taint(s)", "1 node had untolerated taint {sku: gpu}"


def a_stuck_pod(text: str = NEW, *tolerations: PodToleration, selects: bool = True) -> Pod:
    selector = (("pool", "a100"),) if selects else ()
    return a_pod(unschedulable=text, node_selector=selector, tolerations=tolerations)


def named(pod: Pod, *nodes: Node) -> str | None:
    (result,) = with_taints_named((pod,), nodes or (TAINTED,), POOLS)
    return result.unschedulable


@pytest.mark.parametrize("text", [NEW, OLD])
def test_the_taint_and_the_pool_are_named(text: str) -> None:
    assert named(a_stuck_pod(text)) == (
        "1 node had untolerated taint sku=gpu:NoSchedule; add it to spec.tolerations of "
        "AcceleratorPool/a100, or remove it"
    )


def test_a_pod_that_runs_on_any_node_needs_one_without_the_taint() -> None:
    assert named(a_stuck_pod(selects=False)) == (
        "1 node had untolerated taint sku=gpu:NoSchedule; it needs a node without such a taint"
    )


@pytest.mark.parametrize(
    "toleration",
    [
        PodToleration("sku", "", "gpu", "NoSchedule"),
        PodToleration("sku", "Equal", "gpu", ""),
        PodToleration("sku", "Exists", "", "NoSchedule"),
        PodToleration("", "Exists", "", ""),
    ],
)
def test_a_taint_that_the_pod_tolerates_is_not_named(toleration: PodToleration) -> None:
    assert named(a_stuck_pod(NEW, toleration)) == NEW


@pytest.mark.parametrize(
    "toleration",
    [
        PodToleration("sku", "Equal", "cpu", "NoSchedule"),
        PodToleration("sku", "Equal", "gpu", "NoExecute"),
        PodToleration("other", "Exists", "", ""),
    ],
)
def test_another_toleration_does_not_help(toleration: PodToleration) -> None:
    assert "sku=gpu:NoSchedule" in str(named(a_stuck_pod(NEW, toleration)))


def test_nodes_of_other_pools_are_not_asked() -> None:
    other = replace(a_node("b100", whole=1), barring_taints=(Taint("b", "", "NoSchedule"),))
    assert "sku=gpu" in str(named(a_stuck_pod(), other, TAINTED))
    assert "b:NoSchedule" not in str(named(a_stuck_pod(), other, TAINTED))


def test_a_pod_that_lacks_something_else_stays() -> None:
    pod = a_stuck_pod("1 node without enough free nvidia.com/gpu")
    assert with_taints_named((pod,), (TAINTED,), POOLS) == (pod,)
