"""Which tests run in the same worker."""

from pathlib import Path

# Files and folders of which each row runs in one worker, the longest first. The tests of a row
# share a world, or take long; other tests are handed out file by file.
GROUPS = (
    (
        "e2e/scenarios/test_demos.py",
        "e2e/scenarios/test_models.py",
        "e2e/scenarios/test_no_readings.py",
        "e2e/scenarios/test_streams.py",
        "e2e/scenarios/test_upgrade.py",
    ),
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
    (
        "e2e/chart_tests/test_certificates.py",
        "e2e/chart_tests/test_gateway.py",
        "e2e/chart_tests/test_namespaces.py",
        "e2e/chart_tests/test_policies.py",
        "e2e/chart_tests/test_release_lifecycle.py",
    ),
    (
        "e2e/scenarios/test_batches.py",
        "e2e/scenarios/test_gateway.py",
        "e2e/scenarios/test_lifecycle.py",
    ),
    ("tests/faults/",),
    ("e2e/faults/",),
    ("e2e/repartition/",),
    ("e2e/hostile/",),
    ("e2e/soak/",),
    ("e2e/docs_tests/",),
    (
        "e2e/world_tests/test_world_container_lifecycle.py",
        "e2e/world_tests/test_world_containers.py",
        "e2e/world_tests/test_world_devices.py",
        "e2e/world_tests/test_world_lifetime.py",
        "e2e/world_tests/test_world_nodes.py",
        "e2e/world_tests/test_world_services.py",
        "e2e/world_tests/test_world_workloads.py",
    ),
    ("tests/adapters/", "tests/node_agent/test_process.py", "tests/contract/test_cluster.py"),
    ("tests/repartition/test_killed.py",),
    ("tests/domain/repartition/test_rollout_properties.py",),
    ("tests/domain/budget/test_properties.py",),
)


def row_of(nodeid: str) -> str:
    """Return the first name of the row of a test; its file where it is in none."""
    path = nodeid.partition("::")[0]
    return next((names[0] for names in GROUPS if path.startswith(names)), path)


def missing_names(root: Path) -> list[str]:
    """Return the names of rows that do not exist."""
    return [name for names in GROUPS for name in names if not (root / name).exists()]
