"""The observers and judges of fault sequences find what is wrong."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tessera.api.ref import Ref
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED
from tests.fault_sequences.batch_player import published_rows
from tests.fault_sequences.layout_faults import LAYOUT_FAULTS
from tests.fault_sequences.layout_fleet import LayoutFleet
from tests.fault_sequences.layout_player import FleetObserver, end_findings, layout_sequence
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS


@asynccontextmanager
async def observed_fleet() -> AsyncIterator[tuple[LayoutFleet, FleetObserver]]:
    """Return a fleet that is quiet, and has been looked at once."""
    scenario = SCENARIOS["little room"]
    fleet = LayoutFleet.begin(BACKENDS["agent"], scenario, seed=0)
    try:
        scenario.begin(fleet)
        await fleet.run_until_quiet()
        observer = FleetObserver(fleet)
        observer.look()
        yield fleet, observer
    finally:
        await fleet.close()


async def test_a_replica_that_goes_and_a_paused_device_plugin_are_found() -> None:
    async with observed_fleet() as (fleet, observer):
        assert (observer.findings, end_findings(fleet)) == ([], [])
        key = next(key for key, pod in fleet.kube.pods() if pod.service.name == "code")
        fleet.kube.begin_deletion(key)
        fleet.label("a100-0", **{DEVICE_PLUGIN_LABEL: PAUSED})
        observer.look()
        assert "team-a/code has 0 ready of 1" in observer.findings[0]
        assert end_findings(fleet) == [f"a100-0 is left with {DEVICE_PLUGIN_LABEL}={PAUSED}"]


async def test_a_replica_that_a_fault_itself_takes_down_is_excused() -> None:
    async with observed_fleet() as (fleet, observer):
        fleet.faulty_kube.lose(
            next(key for key, pod in fleet.kube.pods() if pod.service.name == "code")
        )
        observer.look()
        assert observer.findings == []


async def test_one_replica_that_a_rollout_in_place_takes_is_excused_and_no_second_one() -> None:
    async with observed_fleet() as (fleet, observer):
        service = Ref("team-a", "chat")
        first, second = [
            key for key, pod in fleet.kube.pods() if pod.service == service and pod.takes_requests
        ][:2]
        fleet.faulty_kube.end_for_rollout(first, in_place=True)
        observer.look()
        assert observer.findings == []
        fleet.faulty_kube.end_for_rollout(second, in_place=True)
        observer.look()
        assert f"{service} has 0 ready of 2, 1 of them lost" in observer.findings[0]


def test_rows_of_both_files_are_read_with_their_answers(tmp_path: Path) -> None:
    body = {"choices": [{"message": {"content": "echo a"}}]}
    answered = {"custom_id": "a", "response": {"body": body}, "error": None}
    failed = {"custom_id": "b", "response": None, "error": {"code": "x"}}
    (tmp_path / "out.jsonl").write_text(f"{json.dumps(answered)}\n")
    (tmp_path / "out.errors.jsonl").write_text(f"{json.dumps(failed)}\n")
    assert published_rows(tmp_path) == [("a", "echo a"), ("b", None)]


def test_a_seed_names_its_faults_and_every_fault_is_drawn() -> None:
    assert layout_sequence("agent", 7) == layout_sequence("agent", 7)
    for backend in BACKENDS:
        drawn = {
            fault.name for seed in range(1, 201) for fault in layout_sequence(backend, seed).faults
        }
        possible = {
            fault.name
            for fault in LAYOUT_FAULTS
            if fault.backends is None or backend in fault.backends
        }
        assert drawn == possible
