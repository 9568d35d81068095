"""Asks an engine all cases of a configuration and keeps what is compared."""

import json
from collections.abc import Sequence

import httpx

from tests.conformance import cases, configurations, seen
from tests.conformance.cases import Case
from tests.conformance.configurations import Configuration
from tests.conformance.engines import Running, key
from tests.conformance.seen import Facts

# Facts by the case: `plain/completion`, or `plain/metric vllm:…`.
Observed = dict[str, Facts]


def cases_of(given: Configuration, adapter: str) -> Sequence[Case]:
    """All cases of a configuration, in their order."""
    cases_by_name = {
        configurations.PLAIN.name: (*cases.PLAIN, *cases.PLAIN_MORE),
        configurations.RICH.name: (*cases.rich(adapter), *cases.rich_more(adapter)),
        configurations.TIGHT.name: cases.TIGHT,
    }
    return cases_by_name[given.name]


async def observe(engine: Running, given: Configuration, adapter: str) -> Observed:
    """What the engine answers to every case, and then the form of its metrics."""
    observed: Observed = {}
    for case in cases_of(given, adapter):
        observed[f"{given.name}/{case.name}"] = seen.answer(await ask(engine, given, case))
    shown = (await engine.http.get("/metrics")).text
    for name, facts in seen.metrics(shown).items():
        observed[f"{given.name}/metric {name}"] = facts
    return observed


async def ask(engine: Running, given: Configuration, case: Case) -> httpx.Response:
    """One request."""
    headers = {**(key(given) if case.key else {}), **case.headers}
    content: str | None = None
    if case.body is not None:
        content = case.body if isinstance(case.body, str) else json.dumps(case.body)
        headers = {"Content-Type": "application/json", **headers}
    return await engine.http.request(case.method, case.path, content=content, headers=headers)
