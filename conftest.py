"""Options and marks of all tests, and which of them run in the same worker.

What waits for `--full` (mark `full`) follows these rules; everything else is in `make test`:

1. Further random cases, kill points, rounds, upgrades, backends, kinds and clouds of what the
   short run does once.
2. Tests that mostly wait for a timer of the cluster or the operator: renewals, stalls, quiet
   periods, silent watches, dead nodes, the soak. The decisions behind them have tests with the time
   as an argument.
3. Task pages of the documentation; the short run types the tutorial.
4. Edges of the simulated world itself, which no other test comes to.

The short run always starts a world, serves a model, kills a batch, repartitions GPUs and types a
page.
"""

from pathlib import Path

import grpc.aio
import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.generation.coverage", "tests.hostile.score", "tests.second_play"]

# Without this, the thread of grpc.aio ends with the last channel or server: perhaps in the garbage
# collector, which then waits for a thread that waits for an event loop that a test has closed.
grpc.aio.init_grpc_aio()

ROOT = Path(__file__).parent
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
        "e2e/scenarios/test_bill.py",
        "e2e/scenarios/test_commands.py",
        "e2e/scenarios/test_crashes.py",
        "e2e/scenarios/test_drift.py",
        "e2e/scenarios/test_metrics.py",
        "e2e/scenarios/test_users.py",
    ),
    ("tests/faults/",),
    ("e2e/chart_tests/",),
    ("e2e/repartition/",),
    ("e2e/faults/",),
    ("e2e/hostile/",),
    ("e2e/soak/",),
    ("e2e/docs_tests/",),
    ("e2e/scenarios/test_batches.py",),
    ("e2e/scenarios/test_lifecycle.py",),
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

# Without a deadline for a single case, since machines are shared.
hypothesis.settings.register_profile("short", deadline=None)
hypothesis.settings.register_profile("full", deadline=None, max_examples=500)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")
    parser.addoption("--vllm", action="store_true", help="run real vLLM on the CPU; minutes")
    parser.addoption("--full", action="store_true", help="all seeds and moments; takes far longer")


def pytest_configure(config: pytest.Config) -> None:
    """Properties are tried on five times as many random cases with `--full`."""
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test that uses a world, however indirectly; some wait for `--full`."""
    waits = pytest.mark.skip(reason="only with --full")
    needs_engine = pytest.mark.skip(reason="only with --vllm (make test-vllm)")
    for item in items:
        if "world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.world)
        if "full" in item.keywords and not config.getoption("--full"):
            item.add_marker(waits)
        if "vllm" in item.keywords and not config.getoption("--vllm"):
            item.add_marker(needs_engine)
    order = {names[0]: index for index, names in enumerate(GROUPS)}
    items.sort(key=lambda item: order.get(_worker_group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With `-n`: the tests of a group go to one worker.

    The option `--dist loadgroup` would say the same with marks, but xdist 3.8 ignores it with
    pytest 9.2 (pytest-xdist issue 1386).
    """
    missing = [name for names in GROUPS for name in names if not (ROOT / name).exists()]
    assert not missing, f"GROUPS names what does not exist: {missing}"
    return _GroupScheduling(config, log)


class _GroupScheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _worker_group(nodeid)


def _worker_group(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return next((names[0] for names in GROUPS if path.startswith(names)), path)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
