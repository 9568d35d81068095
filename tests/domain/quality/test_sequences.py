"""Random sequences of edits, verdicts and losses: the version in force serves, whatever happens."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.builders import a_pod
from tests.domain.quality.gated_fleet import (
    a_gated_fleet,
    an_always_open_window,
    version_of,
)
from tests.domain.variant_fleet import CHAT
from tests.properties import examples

_FLOOR = 2
_WINDOW = 3


class GatePlayer:
    """Plays a sequence of events against a fleet, and judges each cycle."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a test
        self.fleet = a_gated_fleet(devices=self.rng.choice((2, 3, 3, 4)))
        self.rollout = self.rng.choice(({}, an_always_open_window()))
        self.excused = 0
        """Replicas that somebody else took, until the floor is there again."""
        self.change = 0
        self.caching: bool | None = None
        """The edit that changes latency alone."""
        self.log: list[str] = []

    def play(self) -> None:
        events: list[Callable[[], None]] = [
            self.edit,
            self.edit,
            self.edit_latency,
            self.scale,
            self.pass_candidate,
            self.pass_candidate,
            self.fail_candidate,
            self.fleet.restart_operator,
            self.fleet.lose_status,
            self.evict,
            self.take_device,
            self.break_candidate,
            self.lose_gate,
        ]
        for _ in range(7):
            event = self.rng.choice(events)
            self.log.append(event.__name__)
            event()
            self.run(self.rng.choice((1, 3, 6)))
        self.settle()

    # Events

    def edit(self) -> None:
        self.change = self.rng.randrange(4)
        self._write()

    def edit_latency(self) -> None:
        self.caching = self.rng.choice((None, True, False))
        self._write()

    def engine(self) -> dict[str, Any]:
        options = {"extraArgs": [f"--seed={self.change}"]} if self.change else {}
        return options if self.caching is None else {**options, "prefixCaching": self.caching}

    def scale(self) -> None:
        self._write(labels={"edit": str(self.rng.randrange(9))})

    def _write(self, **metadata: dict[str, str]) -> None:
        self.fleet.edit(engine=self.engine(), rollout=self.rollout, podTemplate=metadata)

    def pass_candidate(self) -> None:
        self._decide("Passed")

    def fail_candidate(self) -> None:
        self._decide("Failed")

    def _decide(self, reason: str) -> None:
        if self.fleet.state.phase == "Candidate" and self.fleet.state.candidate is not None:
            self.fleet.decide_on_candidate(reason)

    def evict(self) -> None:
        pods = [
            pod for pod in self.fleet.pods.values() if pod.service == CHAT and not pod.terminating
        ]
        if not pods:
            return
        pod = self.rng.choice(pods)
        del self.fleet.pods[pod.ref]
        self.excused += pod.takes_requests

    def take_device(self) -> None:
        name = f"notebook-{len(self.log)}"
        others = [pod for pod in self.fleet.pods.values() if pod.unmanaged]
        if others:
            del self.fleet.pods[others[0].ref]
            return
        pod = a_pod(
            name,
            "",
            "a100-1gpu",
            devices={"nvidia.com/gpu": 1},
            node=None,
            bound=None,
            ready_since=None,
            unschedulable="0/1 nodes are available",
        )
        self.fleet.pods[pod.ref] = pod

    def break_candidate(self) -> None:
        broken = self.rng.choice((True, False))
        self.fleet.is_broken = lambda record: (
            broken and record is not None and version_of(record) not in self.fleet.promoted
        )

    def lose_gate(self) -> None:
        self.fleet.has_gate = not self.fleet.has_gate

    # Judging

    def run(self, cycles: int) -> None:
        for _ in range(cycles):
            self.fleet.cycle()
            self._judge()

    def _judge(self) -> None:
        fleet = self.fleet
        serving = sum(fleet.serving().values())
        if serving >= _FLOOR:
            self.excused = 0
        # One may be away where no device is free, as in any rollout in place.
        assert serving >= _FLOOR - 1 - self.excused
        assert fleet.serving().keys() <= fleet.promoted
        tried = {
            version_of(workload.record)
            for workload in fleet.workloads.values()
            if workload.replicas
            and workload.record is not None
            and version_of(workload.record) not in fleet.promoted
        }
        assert len(tried) <= 1
        assert not fleet.lost
        is_waiting = fleet.state.phase in {"Candidate", "Refused"}
        spec = fleet.plans[CHAT].service.spec
        assert spec is not None
        stable = fleet.state.stable
        assert not is_waiting or stable is None or (spec.engine == stable.spec.engine)

    def settle(self) -> None:
        """End what goes on: with a gate, without foreign pods, by a verdict."""
        fleet = self.fleet
        fleet.has_gate = True
        fleet.is_broken = lambda _: False
        for pod in [pod for pod in fleet.pods.values() if pod.unmanaged]:
            del fleet.pods[pod.ref]
        for _ in range(40):
            fleet.cycle(15)
            self._judge()
            if (tried := fleet.gated.pod) is not None and tried.containers_ready:
                self._decide(self.rng.choice(("Passed", "Failed")))
            elif fleet.state.phase in {"Stable", "Refused"} and self._is_quiet():
                break
        stable = fleet.state.stable
        assert stable is not None
        if fleet.state.phase == "Candidate":
            assert fleet.gated.missing_device is not None
        assert fleet.serving().keys() == {stable.digest}
        assert len(fleet.revisions) <= _WINDOW + 2
        self.expect_size()

    def expect_size(self) -> None:
        """Fail unless the service has its replicas and nothing else."""
        assert sum(self.fleet.serving().values()) == len(self.fleet.pods) == _FLOOR
        assert len(self.fleet.workloads) == 1

    def _is_quiet(self) -> bool:
        is_whole = sum(self.fleet.serving().values()) == len(self.fleet.pods) == _FLOOR
        return is_whole and len(self.fleet.workloads) == 1


@pytest.mark.parametrize("seed", range(examples(24)))
def test_the_version_in_force_serves_whatever_happens(seed: int) -> None:
    player = GatePlayer(seed)
    try:
        player.play()
    except AssertionError as error:
        raise AssertionError(f"{player.log}\n{player.fleet.describe()}") from error
