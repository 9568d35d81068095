"""Options and marks of all tests, and which of them run in the same worker.

What waits for `--full` (mark `full`) follows these rules; everything else is in `make test` or
`make test-e2e`, as `tests/parts.py` divides it:

1. Further random cases, kill points, rounds, upgrades, backends, kinds and clouds of what the
   short run does once.
2. Tests that mostly wait for a timer of the cluster or the operator: renewals, stalls, quiet
   periods, silent watches, dead nodes, the soak. The decisions behind them have tests with the time
   as an argument.
3. Some task pages of the documentation, each in a cluster of its own.
4. Edges of the simulated world itself, which no other test comes to. Most other tests of that world
   wait too while it is as it was when they last passed (`make test-world`).
5. Scenes in a world of which a test without a world has the decision, and another scene of a push
   the way from the cluster and back: `docs/tasks/develop.md` lists them.

The short run always starts a world, serves a model, kills a batch, repartitions GPUs and types
pages.
"""

import gc

import grpc.aio
import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.rows import ROWS, missing_names, row_of

pytest_plugins = [
    "tests.parts",
    "tests.generation.coverage",
    "tests.durations",
    "tests.hostile.score",
    "tests.unchanged_world",
]

# What helpers assert says what it saw, as what tests assert does.
pytest.register_assert_rewrite(
    *("chart_tests", "faults", "hostile", "promises", "scenarios", "world.testing"),
    *("tests.batch_runner", "tests.clients", "tests.faults", "tests.gateway", "tests.lab"),
)

# What collecting tests makes stays until the end: to look through it for garbage is in vain.
gc.disable()

# Without this, the thread of grpc.aio ends with the last channel or server: perhaps in the garbage
# collector, which then waits for a thread that waits for an event loop that a test has closed.
grpc.aio.init_grpc_aio()


# Without a deadline for a single case, since machines are shared.
hypothesis.settings.register_profile("push", deadline=None, max_examples=25)
hypothesis.settings.register_profile("full", deadline=None, max_examples=500)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")
    parser.addoption("--vllm", action="store_true", help="run real vLLM on the CPU; minutes")
    parser.addoption("--full", action="store_true", help="all seeds and moments; takes far longer")


def pytest_configure(config: pytest.Config) -> None:
    """Properties are tried on 20 times as many random cases with `--full`."""
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "push")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test that uses a world, however indirectly; some wait for `--full`."""
    needs_engine = pytest.mark.skip(reason="only with --vllm (make test-vllm)")
    for item in items:
        if "world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.world)
        # The folder of a test is among its keywords, and one is called vllm.
        if item.get_closest_marker("vllm") and not config.getoption("--vllm"):
            item.add_marker(needs_engine)
    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if "full" in item.keywords])
        items[:] = [item for item in items if "full" not in item.keywords]
    order = {name: index for index, name in enumerate(ROWS)}
    items.sort(key=lambda item: order.get(row_of(item.nodeid), len(order)))


def pytest_collection_finish() -> None:
    """Collect garbage again, but not among what is there now."""
    gc.freeze()
    # Looking less often than by default saves a twentieth of the processor time.
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End what the tests of a row share with its last one: a world that waits computes too."""
    row = row_of(item.nodeid)
    if nextitem is not None and row in ROWS and row != row_of(nextitem.nodeid):
        item.session._setupstate.teardown_exact(None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With `-n`: the tests of a group go to one worker.

    The option `--dist loadgroup` would say the same with marks, but xdist 3.8 ignores it with
    pytest 9.2 (pytest-xdist issue 1386).
    """
    missing = missing_names(config.rootpath)
    assert not missing, f"ROWS names what does not exist: {missing}"
    return _GroupScheduling(config, log)


class _GroupScheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return row_of(nodeid)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
