"""Options and marks of all tests."""

import hypothesis
import pytest

hypothesis.settings.register_profile("shared machines", deadline=None)
hypothesis.settings.load_profile("shared machines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")
    parser.addoption("--vllm", action="store_true", help="run real vLLM on the CPU; minutes")
    parser.addoption("--full", action="store_true", help="all seeds and moments; takes far longer")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whoever asks for a world, however indirectly, is marked by it; some wait for `--full`."""
    waits = pytest.mark.skip(reason="only with --full")
    needs_engine = pytest.mark.skip(reason="only with --vllm (make test-vllm)")
    for item in items:
        if "world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.world)
        if "full" in item.keywords and not config.getoption("--full"):
            item.add_marker(waits)
        if "vllm" in item.keywords and not config.getoption("--vllm"):
            item.add_marker(needs_engine)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
