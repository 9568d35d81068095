"""Counts of the Deployments of a variant: whatever happens, their own moves cost one replica."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tessera.domain.observed.snapshot import Pod, Ref, Workload
from tessera.domain.rollout.template_rollout import (
    START_TOLERANCE,
    OlderTemplate,
    RolloutCounts,
    TemplateRollout,
)
from tests.builders import NOW, a_pod, a_workload, at
from tests.properties import examples

EXPECTED_START = timedelta(minutes=1)
STEP = timedelta(seconds=30)


@dataclass
class Template:
    """A Deployment and its replicas; each is the time since which it has a device, or None."""

    name: str
    can_start: bool
    replicas: int = 0
    pods: dict[str, Pod] = field(default_factory=dict)
    was_ready: bool = False

    @property
    def workload(self) -> Workload:
        return a_workload(
            self.replicas, template_digest=self.name, ref=Ref("team-a", f"chat-{self.name}")
        )

    @property
    def ready(self) -> int:
        return sum(pod.takes_requests for pod in self.pods.values())


@dataclass
class Variant:
    """The Deployments of a variant on so many devices, of which others may take some."""

    desired: int
    devices: int
    templates: list[Template]
    thieves: int = 0
    refused: bool = False
    """A quota admits no pod beyond the desired ones."""
    now: timedelta = timedelta()
    created: int = 0
    withdrawn: set[str] = field(default_factory=set)
    newest: int = 0
    """Index of the template that is wanted."""

    @property
    def ready(self) -> int:
        return sum(each.ready for each in self.templates)

    @property
    def used(self) -> int:
        pods = [pod for each in self.templates for pod in each.pods.values()]
        return sum(pod.node is not None for pod in pods) + self.thieves

    def rollout(self) -> TemplateRollout:
        newest = self.templates[self.newest]
        older = [each for each in self.templates if each is not newest and self._exists(each)]
        return TemplateRollout(
            workload=newest.workload if self._exists(newest) else None,
            pods=list(newest.pods.values()),
            older=[
                OlderTemplate(
                    workload=each.workload,
                    pods=list(each.pods.values()),
                    usable_nodes=frozenset(pod.node for pod in each.pods.values() if pod.node),
                )
                for each in older
            ],
            desired=self.desired,
            at=NOW + self.now,
            has_capacity=self.devices - self.thieves > self.desired,
        )

    def _exists(self, template: Template) -> bool:
        return template.name in self.existing

    existing: set[str] = field(default_factory=set)

    def plan(self) -> RolloutCounts:
        """Decide, and let the controllers do it: replicas that leave are drained at once."""
        rollout, newest = self.rollout(), self.templates[self.newest]
        # The status has the last one alone.
        self.withdrawn &= {newest.name}
        if not newest.was_ready and rollout.is_overdue(EXPECTED_START, None):
            self.withdrawn.add(newest.name)
        counts = rollout.counts(
            may_step=True,
            may_take=self.ready >= self.desired,
            may_leave=max(0, self.ready - self.desired) + (self.ready >= self.desired),
            is_withdrawn=newest.name in self.withdrawn and bool(rollout.older),
        )
        by_name = {f"chat-{each.name}": each for each in self.templates}
        for ref, count in counts.older.items():
            by_name[ref.name].replicas = count
        for ref in counts.removable:
            assert not by_name[ref.name].pods
            self.existing.discard(by_name[ref.name].name)
        if counts.newest or self._exists(newest):
            self.existing.add(newest.name)
            newest.replicas = counts.newest
        self._scale()
        return counts

    def _scale(self) -> None:
        for template in self.templates:
            order = sorted(
                template.pods.values(), key=lambda p: (p.node is None, not p.ready_since)
            )
            for pod in order[::-1][: max(0, len(order) - template.replicas)]:
                del template.pods[pod.ref.name]
        for template in self.templates:
            for _ in range(template.replicas - len(template.pods)):
                if self.refused and sum(len(e.pods) for e in self.templates) >= self.desired:
                    break
                self.created += 1
                name = f"{template.name}-{self.created}"
                template.pods[name] = a_pod(
                    name,
                    created=at(self.now.total_seconds()),
                    ready_since=None,
                    containers_ready=False,
                    serving=None,
                )

    def pass_time(self) -> None:
        """Bind what fits, and let what is bound get ready."""
        self.now += STEP
        for template in self.templates:
            for name, pod in template.pods.items():
                if pod.node is None and self.used < self.devices:
                    template.pods[name] = replace(pod, node="a100-0", bound=NOW + self.now)
                elif pod.node is not None and template.can_start and pod.ready_since is None:
                    template.was_ready = True
                    template.pods[name] = replace(
                        pod, ready_since=NOW + self.now, containers_ready=True, serving=True
                    )

    def fail(self, index: int) -> None:
        """One of the replicas is not ready any more for a while."""
        pods = [(t, name) for t in self.templates for name in t.pods]
        if pods:
            template, name = pods[index % len(pods)]
            pod = template.pods[name]
            template.pods[name] = replace(pod, ready_since=None, containers_ready=False)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """Decide once, with what always holds of it, and let time pass."""
        before = self.ready
        counts = self.plan()
        assert self.ready >= min(self.desired, before) - 1, "its own acts took two replicas"
        if self.devices - self.thieves > self.desired and not self.refused:
            assert self.ready >= min(self.desired, before), "with a free device none may leave"
        assert counts.newest + sum(counts.older.values()) <= self.desired + 1
        self.pass_time()


def a_variant(desired: int, spare: int, *can_start: bool) -> Variant:
    """Return a variant whose replicas are of the first template, and to have the last one."""
    names = [Template(f"t{index}", starts) for index, starts in enumerate((True, *can_start))]
    variant = Variant(desired, desired + spare, names)
    variant.existing.add("t0")
    variant.run(4)
    assert variant.ready == desired
    return variant


def edited(variant: Variant, index: int) -> None:
    variant.newest = index


@st.composite
def happenings(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = st.one_of(
        st.tuples(st.just("edit"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("steal"), st.integers(0, 2)),
        st.tuples(st.just("give back"), st.just(0)),
        st.tuples(st.just("quota"), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
    )
    return draw(st.lists(kinds, max_size=12))


@given(
    desired=st.integers(1, 4),
    spare=st.integers(0, 3),
    can_start=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    course=happenings(),
    last=st.integers(0, 3),
)
@example(  # Of those that wait for a device none serves: the only replica is of a bad edit.
    desired=1,
    spare=0,
    can_start=(False, True, True),
    course=[("edit", 1), ("wait", 4)],
    last=0,
)
@example(  # The oldest Deployment is empty, and only the next one can give way.
    desired=1,
    spare=0,
    can_start=(True, True, True),
    course=[("edit", 1), ("wait", 3)],
    last=2,
)
@example(  # A replica that served for long fails for a moment: its template did start.
    desired=1,
    spare=2,
    can_start=(True, True, False),
    course=[("edit", 3), ("wait", 30), ("edit", 0), ("fail", 0)],
    last=0,
)
@settings(max_examples=examples(100))
def test_its_own_acts_cost_one_replica_and_in_the_end_all_are_of_the_newest_that_starts(
    desired: int,
    spare: int,
    can_start: tuple[bool, bool, bool],
    course: list[tuple[str, int]],
    last: int,
) -> None:
    variant = a_variant(desired, spare, *can_start)
    for kind, number in (*course, ("give back", 0), ("quota", 0), ("edit", last)):
        _happen(variant, kind, number)
    variant.run(150 + 20 * desired)
    newest = variant.templates[last]
    event(f"starts: {newest.can_start}")
    assert variant.ready == desired
    if newest.can_start:
        assert newest.ready == desired
        assert variant.existing == {newest.name}
    else:
        assert newest.replicas == 0
        assert not newest.pods


def _happen(variant: Variant, kind: str, number: int) -> None:
    match kind:
        case "edit":
            edited(variant, number)
        case "fail":
            variant.fail(number)
        case "steal":
            variant.thieves = min(number, variant.devices - variant.used + variant.thieves)
        case "give back":
            variant.thieves = 0
        case "quota":
            variant.refused = bool(number)
        case _:
            variant.run(number)


@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize("desired", [1, 2, 4])
def test_a_template_that_starts_replaces_one_replica_after_the_other(
    desired: int, spare: int
) -> None:
    variant = a_variant(desired, spare, True)
    edited(variant, 1)
    least = desired
    for _ in range(12 * desired):
        variant.step()
        least = min(least, variant.ready)
    assert least == desired - (spare == 0)
    assert variant.templates[1].ready == desired
    assert variant.existing == {"t1"}


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("desired", [1, 2])
def test_a_template_that_does_not_start_is_withdrawn_and_the_one_of_before_restored(
    desired: int, spare: int
) -> None:
    variant = a_variant(desired, spare, False)
    edited(variant, 1)
    steps = (EXPECTED_START + START_TOLERANCE) // STEP
    variant.run(steps)
    assert variant.withdrawn == set()
    variant.run(6)
    assert variant.withdrawn == {"t1"}
    assert (variant.ready, variant.templates[1].replicas) == (desired, 0)
    assert variant.existing == {"t0", "t1"}


def test_the_deployment_of_before_is_kept_until_the_newest_was_ready_once() -> None:
    empty = OlderTemplate(workload=a_workload(0), pods=())
    rollout = TemplateRollout(
        workload=a_workload(1, template_digest="two"),
        pods=(),
        older=(empty,),
        desired=1,
        at=NOW,
        has_capacity=True,
    )
    before = rollout.counts(may_step=True, may_take=True, may_leave=1, is_withdrawn=False)
    assert before.removable == ()
    ready = replace(rollout, pods=(a_pod("chat-2", template="two"),))
    after = ready.counts(may_step=True, may_take=True, may_leave=1, is_withdrawn=False)
    assert after.removable == (empty.workload.ref,)


def test_without_a_device_for_all_a_step_in_place_counts_what_all_older_templates_have() -> None:
    """Of 4 desired replicas 3 have a device: two of the oldest template, one of the next."""
    first, second, third = (a_pod(f"chat-{index}", node="a100-0") for index in range(3))
    nodes = frozenset({"a100-0"})
    oldest = OlderTemplate(workload=a_workload(2), pods=(first, second), usable_nodes=nodes)
    next_ = OlderTemplate(
        workload=a_workload(1, ref=Ref("team-a", "chat-two")), pods=(third,), usable_nodes=nodes
    )
    waiting = a_pod("chat-3", ready_since=None, containers_ready=False)
    rollout = TemplateRollout(
        workload=a_workload(1, ref=Ref("team-a", "chat-three")),
        pods=(waiting,),
        older=(oldest, next_),
        desired=4,
        shortage=1,
        at=NOW,
        has_capacity=False,
    )
    counts = rollout.counts(may_step=True, may_take=True, may_leave=1, is_withdrawn=False)
    assert counts.older == {oldest.workload.ref: 1, next_.workload.ref: 1}


def test_the_surge_of_another_controller_takes_no_room_from_the_newest_template() -> None:
    """An older Deployment has a pod of a second ReplicaSet that never gets ready."""
    pods = (a_pod("chat-0"), a_pod("chat-1"), a_pod("chat-2", template="two", ready_since=None))
    rollout = TemplateRollout(
        workload=None,
        pods=(),
        older=(OlderTemplate(workload=a_workload(2), pods=pods),),
        desired=2,
        at=NOW,
        has_capacity=True,
    )
    assert rollout.counts(may_step=True, may_take=True, may_leave=1, is_withdrawn=False).newest == 1


def test_a_successor_that_is_ready_lets_none_go_while_others_of_the_service_are_away() -> None:
    old = OlderTemplate(workload=a_workload(1), pods=(a_pod("chat-0"),))
    rollout = TemplateRollout(
        workload=a_workload(1, template_digest="two"),
        pods=(a_pod("chat-1", template="two"),),
        older=(old,),
        desired=1,
        at=NOW,
        has_capacity=True,
    )
    for may_leave in (0, 1):
        counts = rollout.counts(
            may_step=True, may_take=True, may_leave=may_leave, is_withdrawn=False
        )
        assert counts.older == {old.workload.ref: 1 - may_leave}


def test_only_replicas_without_a_node_are_unplaced_where_none_is_replaced() -> None:
    waiting = a_pod("chat-1", node=None, bound=None, ready_since=None)
    rollout = TemplateRollout(
        workload=a_workload(2),
        pods=(a_pod("chat-0", node="node-1"), waiting),
        older=(),
        desired=2,
        at=NOW,
        has_capacity=False,
    )
    assert rollout.unplaced == 1
