"""Objects of other people are parsed into bounded values, whatever they hold."""

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.adapters.kube.object_parsing import is_plan_input, parse_object
from tessera.domain.names import COST_ANNOTATION, SERVICE_LABEL, SERVING_GATE, VARIANT_LABEL
from tessera.domain.observed.snapshot import Node, Pod
from tessera.resources.api_resources import KINDS, NODES, PODS

TIMES = st.sampled_from(
    ["2026-11-20T12:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-20T12:00:00"]
)
COUNTS = st.one_of(
    st.integers(0, 10**18).map(str),
    st.sampled_from(["3k", "1Ki", "1e3", "7E", "9E", "0", "1.0", "999Ei", "9e99"]),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["9" * 5000, "True", "False", "None", "NaN", "Infinity", "1e999999999"]),
)
LEAVES = st.one_of(TEXTS, TIMES, COUNTS, st.none(), st.booleans(), st.integers(), st.floats())
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["Ready", "PodScheduled", "ContainersReady", "DisruptionTarget", SERVING_GATE]
            ),
            "status": st.sampled_from(["True", "False", "Unknown"]),
        },
        optional={"lastTransitionTime": TIMES, "message": TEXTS, "reason": TEXTS},
    ),
    max_size=4,
)
TERMINATED = st.fixed_dictionaries(
    {"exitCode": st.integers(-(2**31), 2**31 - 1)},
    optional={"message": TEXTS, "reason": TEXTS, "finishedAt": TIMES},
)
STATES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"terminated": TERMINATED}),
    st.fixed_dictionaries({"running": st.fixed_dictionaries({"startedAt": TIMES})}),
    st.fixed_dictionaries({"waiting": st.dictionaries(st.sampled_from(["reason"]), TEXTS)}),
)
CONTAINER_STATUSES = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["engine", "run", "check"]), "state": STATES}),
    max_size=3,
)
LABELS = st.dictionaries(
    st.sampled_from(
        [
            *(SERVICE_LABEL, VARIANT_LABEL, "tessera.dev/batch", "tessera.dev/attempt"),
            *("tessera.dev/model-job", "nvidia.com/gpu.count", "pod-template-hash"),
        ]
    ),
    TEXTS,
)
DEVICES = st.dictionaries(
    st.sampled_from(["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "cpu", "memory"]), COUNTS
)
CONTAINERS = st.lists(
    st.fixed_dictionaries({"resources": st.fixed_dictionaries({"limits": DEVICES})}), max_size=3
)
METADATA = st.fixed_dictionaries(
    {
        "name": st.just("x"),
        "namespace": st.just("evil"),
        "uid": st.just("uid"),
        "resourceVersion": st.just("7"),
        "creationTimestamp": TIMES,
    },
    optional={
        "labels": LABELS,
        "annotations": st.dictionaries(st.sampled_from([COST_ANNOTATION, "note"]), TEXTS),
        "deletionTimestamp": TIMES,
        "generation": st.integers(0, 2**63 - 1),
        "ownerReferences": st.just(
            [{"kind": "ReplicaSet", "name": "x", "uid": "u", "controller": True}]
        ),
    },
)
LEGAL_PODS = st.fixed_dictionaries(
    {
        "metadata": METADATA,
        "spec": st.fixed_dictionaries({"containers": CONTAINERS}, optional={"nodeName": TEXTS}),
        "status": st.fixed_dictionaries(
            {},
            optional={
                "phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
                "conditions": CONDITIONS,
                "containerStatuses": CONTAINER_STATUSES,
                "initContainerStatuses": CONTAINER_STATUSES,
                "podIP": TEXTS,
            },
        ),
    }
)
LEGAL_NODES = st.fixed_dictionaries(
    {
        "metadata": METADATA,
        "status": st.fixed_dictionaries({"allocatable": DEVICES, "conditions": CONDITIONS}),
    }
)
SPAN = (datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC))


@given(LEGAL_PODS)
def test_every_pod_that_the_api_server_accepts_is_a_bounded_value(body: dict[str, Any]) -> None:
    device = {"name": "gpu", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    containers = [*body["spec"]["containers"], device]
    body = body | {"spec": body["spec"] | {"containers": containers}}
    pod = parse_object(PODS, body).plan_input
    assert isinstance(pod, Pod)
    times = (pod.created, pod.bound, pod.ended, pod.ready_since, pod.draining_since)
    assert all(SPAN[0] <= time <= SPAN[1] for time in times if time is not None)
    assert abs(pod.deletion_cost) < 2**31
    texts = (pod.container_message, pod.unschedulable or "", pod.waiting_reason or "")
    assert max(map(len, texts)) <= 4096


@given(LEGAL_NODES)
def test_every_node_that_the_api_server_accepts_is_a_bounded_value(body: dict[str, Any]) -> None:
    node = parse_object(NODES, body).plan_input
    assert isinstance(node, Node)
    assert all(0 <= count <= 1024 for count in node.allocatable.values())


@st.composite
def illegal_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Build an object of which one part, at any depth, is something else."""
    body = copy.deepcopy(draw(st.one_of(LEGAL_PODS, LEGAL_NODES)))
    parent: Any = body
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = draw(st.sampled_from(keys))
        child = parent[key]
        if (
            not isinstance(child, dict | list)
            or not child
            or (parent is not body and draw(st.booleans()))
        ):
            break
        parent = child
    if not (parent is body.get("metadata") and key in ("name", "namespace")):
        parent[key] = draw(JSON)
    if not isinstance(body["metadata"], dict):
        body["metadata"] = {"name": "x"}
    return body


@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_plan_input(kind)], ids=str)
@given(body=illegal_bodies())
def test_no_object_raises(kind: Any, body: dict[str, Any]) -> None:
    observed = parse_object(kind, body)
    hash(observed.service)
    assert observed.key.name == "x"
