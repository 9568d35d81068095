"""Which tests run in the same worker, and what processor time each row of them may take."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """Files and folders whose tests share a world, or take long; others are handed out by file."""

    names: tuple[str, ...]
    cpu_seconds: int | None = None
    """What it takes on a push on two quiet cores, with the world that it shares."""


# By their first names, the longest first.
ROWS = {
    row.names[0]: row
    for row in (
        Row(("e2e/promises/",), cpu_seconds=85),
        Row(
            (
                "e2e/scenarios/test_demos.py",
                "e2e/scenarios/test_models.py",
                "e2e/scenarios/test_no_readings.py",
                "e2e/scenarios/test_streams.py",
                "e2e/scenarios/test_upgrade.py",
            ),
            cpu_seconds=170,
        ),
        Row(("e2e/scenarios/test_demo_commands.py",), cpu_seconds=150),
        Row(
            (
                "e2e/scenarios/test_autoscalers.py",
                "e2e/scenarios/test_bill.py",
                "e2e/scenarios/test_commands.py",
                "e2e/scenarios/test_crashes.py",
                "e2e/scenarios/test_drift.py",
                "e2e/scenarios/test_history.py",
                "e2e/scenarios/test_metrics.py",
                "e2e/scenarios/test_scale_down.py",
                "e2e/scenarios/test_users.py",
            ),
            cpu_seconds=80,
        ),
        Row(
            (
                "e2e/chart_tests/test_certificates.py",
                "e2e/chart_tests/test_deployment_policies.py",
                "e2e/chart_tests/test_gateway.py",
                "e2e/chart_tests/test_namespaces.py",
                "e2e/chart_tests/test_policies.py",
                "e2e/chart_tests/test_release_lifecycle.py",
            ),
            cpu_seconds=120,
        ),
        Row(
            (
                "e2e/scenarios/test_affinity.py",
                "e2e/scenarios/test_batches.py",
                "e2e/scenarios/test_gateway.py",
                "e2e/scenarios/test_lifecycle.py",
            ),
            cpu_seconds=100,
        ),
        Row(
            (
                "e2e/scenarios/test_floors.py",
                "e2e/scenarios/test_nodes_on_demand.py",
                "e2e/scenarios/test_tiers.py",
            ),
            cpu_seconds=60,
        ),
        Row(("tests/faults/",), cpu_seconds=100),
        Row(("e2e/faults/",), cpu_seconds=40),
        Row(("e2e/repartition/",), cpu_seconds=10),
        Row(("e2e/hostile/",), cpu_seconds=35),
        Row(("e2e/soak/",), cpu_seconds=5),
        Row(("e2e/docs_tests/",), cpu_seconds=180),
        Row(
            (
                "e2e/world_tests/test_world_container_lifecycle.py",
                "e2e/world_tests/test_world_containers.py",
                "e2e/world_tests/test_world_devices.py",
                "e2e/world_tests/test_world_lifetime.py",
                "e2e/world_tests/test_world_nodes.py",
                "e2e/world_tests/test_world_services.py",
                "e2e/world_tests/test_world_workloads.py",
            ),
            # After a change of the world; else its smoke tests take 5 s.
            cpu_seconds=35,
        ),
        Row(
            (
                "tests/adapters/",
                "tests/node_agent/test_process.py",
                "tests/contract/test_cluster.py",
            ),
            cpu_seconds=50,
        ),
        Row(("tests/repartition/test_killed.py",)),
        Row(("tests/domain/repartition/test_rollout_properties.py",)),
        Row(("tests/domain/budget/test_properties.py",)),
    )
}


def row_of(nodeid: str) -> str:
    """Return the first name of the row of a test; its file where it is in none."""
    path = nodeid.partition("::")[0]
    return next((name for name, row in ROWS.items() if path.startswith(row.names)), path)


def missing_names(root: Path) -> list[str]:
    """Return the names of rows that do not exist."""
    return [name for row in ROWS.values() for name in row.names if not (root / name).exists()]
