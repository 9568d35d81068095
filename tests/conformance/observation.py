"""Sends all cases of a configuration to an engine, and collects the compared facts."""

import json
from collections.abc import Sequence

import httpx

from tests.conformance import cases, configurations, observed_facts
from tests.conformance.cases import EngineCase
from tests.conformance.configurations import Configuration
from tests.conformance.engines import EngineProcess, key
from tests.conformance.observed_facts import Facts

# Facts by the case: `plain/completion`, or `plain/metric vllm:…`.
Observed = dict[str, Facts]


def cases_of(configuration: Configuration, adapter: str) -> Sequence[EngineCase]:
    """Return all cases of a configuration, in order."""
    cases_by_name = {
        configurations.PLAIN.name: (*cases.PLAIN, *cases.PLAIN_MORE),
        configurations.RICH.name: (*cases.rich(adapter), *cases.rich_more(adapter)),
        configurations.TIGHT.name: cases.TIGHT,
    }
    return cases_by_name[configuration.name]


async def observe(engine: EngineProcess, configuration: Configuration, adapter: str) -> Observed:
    """Observe the responses to all cases, and then the form of the metrics."""
    observed: Observed = {}
    for case in cases_of(configuration, adapter):
        observed[f"{configuration.name}/{case.name}"] = observed_facts.answer(
            await ask(engine, configuration, case)
        )
    shown = (await engine.http.get("/metrics")).text
    for name, facts in observed_facts.metrics(shown).items():
        observed[f"{configuration.name}/metric {name}"] = facts
    return observed


async def ask(
    engine: EngineProcess, configuration: Configuration, case: EngineCase
) -> httpx.Response:
    """Send one case."""
    headers = {**(key(configuration) if case.key else {}), **case.headers}
    content: str | None = None
    if case.body is not None:
        content = case.body if isinstance(case.body, str) else json.dumps(case.body)
        headers = {"Content-Type": "application/json", **headers}
    return await engine.http.request(case.method, case.path, content=content, headers=headers)
