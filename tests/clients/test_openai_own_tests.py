"""The tests that openai-python has of its own, against the gateway before simulated engines.

They were written for a server that has every path of OpenAI's and accepts every value. Those that
fail are named, with reasons, in openai_exceptions.toml.
"""

import asyncio
import os
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from environments import environment, source
from tests.clients.running import CHAT, EMBEDDINGS, offered, simulators
from tests.gateway.harness import a_directory, an_api_key
from tests.gateway.test_gateway_process import a_process

pytestmark = [pytest.mark.anyio, pytest.mark.full]

# The key and the models of those tests.
KEY = "My API Key"
CHAT_MODELS = ("chat", "gpt-6-astra", "gpt-3.5-turbo-instruct")
EMBEDDING_MODELS = ("embeddings", "text-embedding-3-small")
FOLDER = "tests/api_resources"
GROUPS = {
    "chat": f"{FOLDER}/chat/test_completions.py",
    "completions": f"{FOLDER}/test_completions.py",
    "embeddings": f"{FOLDER}/test_embeddings.py",
    "models": f"{FOLDER}/test_models.py",
}
EXCEPTIONS = tomllib.loads(
    Path(__file__).with_name("openai_exceptions.toml").read_text(encoding="utf-8")
)
MIN_SHARE = 0.8


_OPERATION = re.compile(r"(?:method|raw_response|streaming_response|path_params)_([a-z]+)")


@dataclass(frozen=True, slots=True)
class Case:
    group: str
    name: str
    """`method_create`, for example."""
    passed: bool
    detail: str

    @property
    def operation(self) -> str:
        match = _OPERATION.match(self.name)
        assert match is not None, self.name
        return f"{self.group}.{match[1]}"

    @property
    def is_offered(self) -> bool:
        return self.operation not in EXCEPTIONS["not_offered"]


async def run_openai_tests(url: str, folder: Path) -> list[Case]:
    """Run the cases with loose validation, for the synchronous and the asynchronous client."""
    python = await asyncio.to_thread(environment, "openai-tests") / "bin" / "python"
    directory = await asyncio.to_thread(source, "openai-tests", "openai")
    report = folder / "report.xml"
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider"),
        *("-o", "addopts=", "-k", "loose", f"--junitxml={report}", *GROUPS.values()),
        cwd=directory,
        env={**os.environ, "TEST_API_BASE_URL": f"{url}/v1"},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode in (0, 1), output.decode()
    groups = {path.removesuffix(".py").replace("/", "."): name for name, path in GROUPS.items()}
    return [
        Case(
            group=groups[element.attrib["classname"].rpartition(".")[0]],
            name=element.attrib["name"].partition("[")[0].removeprefix("test_"),
            passed=not len(element),
            detail=element[0].attrib["message"] if len(element) else "",
        )
        for element in ElementTree.parse(report).iter("testcase")  # noqa: S314 - pytest wrote it
    ]


async def test_most_of_them_pass_and_each_exception_has_a_reason(tmp_path: Path) -> None:
    async with simulators(tmp_path, CHAT, EMBEDDINGS) as (chat, embeddings):
        directory = a_directory(
            offered(chat, *CHAT_MODELS),
            offered(embeddings, *EMBEDDING_MODELS),
            keys=(an_api_key(KEY),),
        )
        async with a_process(tmp_path, directory) as gateway:
            cases = await run_openai_tests(gateway.url, tmp_path)
    for group in GROUPS:
        counts = Counter(case.passed for case in cases if case.group == group)
        print(f"{group}: {counts[True]} passed, {counts[False]} failed")
    passed = sum(case.passed for case in cases if case.is_offered)
    offered_count = sum(case.is_offered for case in cases)
    print(f"of operations that the gateway has: {passed} of {offered_count} passed")

    failed = [case for case in cases if not case.passed]
    for case in failed:
        print(f"failed: {case.group}.{case.name}: {case.detail}")
    refused = {f"{case.group}.{case.name}" for case in failed if case.is_offered}
    assert refused == EXCEPTIONS["refused"].keys()
    not_offered = {case.operation for case in failed if not case.is_offered}
    assert not_offered == EXCEPTIONS["not_offered"].keys()
    assert passed >= MIN_SHARE * offered_count
