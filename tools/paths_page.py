"""The page of HTTP paths: those of vLLM as captured, of the simulator and of the gateway."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from aiohttp import web

from tessera.domain.gateway.schema_cost import (
    MAX_COMPILER_SECONDS,
    MAX_LEVELS,
    MAX_NESTING,
    MAX_SCHEMA_BYTES,
)
from tessera.gateway.bodies.listed_fields import MAX_BAD_WORDS_BYTES, MAX_TOKEN_IDS
from tessera.gateway.bodies.parsing import RequestFields
from tessera.gateway.paths import OWN_PATHS, PATHS
from tessera_lab.sim.assembly import assemble_engine
from tessera_lab.sim.launch.engine_config import VERSION, load_config

PAGE = "docs/reference/paths.md"
_FACTS = Path(__file__).parents[1] / f"operator/tessera/domain/data/vllm-{VERSION}.json"
# Pages about the API, with no function of it.
_DOCUMENTATION = ("/docs", "/openapi.json", "/redoc")
_HEAD = f"""\
# Paths

Which HTTP paths a default server of vLLM {VERSION} has (captured from a running one), which
`tessera-sim` and which the gateway. What the gateway does not have answers 404: it would change an
engine, or show more than one tenant's requests. `/v1/responses` keeps nothing, so a response cannot
be read later. A path that the engine of a model lacks answers 404 through the gateway, too, with
the paths that it has: they depend on [what the model returns](../tasks/embeddings.md).

Every path of the gateway that reaches an engine authenticates, admits and records its requests.
[gateway-openapi.json](gateway-openapi.json) describes the gateway's in OpenAPI 3.1.

| Path | vLLM {VERSION} | tessera-sim | gateway |
| --- | --- | --- | --- |
"""
_MOST = [MAX_TOKEN_IDS[name] for name in ("allowed_token_ids", "logit_bias", "stop_token_ids")]
_FIELDS = f"""
## Fields of a model that several tenants may use

A request for a model with `spec.access.tenants` or `public` has no fields but these; another one is
refused with 400 and its name. `cache_salt` is replaced by one of the tenant, unless the service has
`access.sharedPrefixCache`, and `priority` is 0 at least. Images and clips in it have no `uuid`,
nothing in it is a tensor, and `chat_template_kwargs` has neither `chat_template` nor `tokenize`.
A model of one tenant alone gets all fields as they were sent.

Of these fields an engine compiles `response_format`, `structured_outputs`, `text`, `output_config`,
`output_format`, `functions`, and `tools` where `tool_choice` is required or names one, or where one
is `strict`. Together they have {MAX_SCHEMA_BYTES:,} bytes at most, {MAX_LEVELS} levels of schemas
and {MAX_NESTING} of JSON, and take a compiler {MAX_COMPILER_SECONDS} s at most, by
[their price](../decisions/price-of-schemas.md) of lengths, patterns and grammars. Messages define
no tools. The sampler has room for a number of tokens: `allowed_token_ids` {_MOST[0]}, `logit_bias`
{_MOST[1]}, `stop_token_ids` {_MOST[2]}, and for `bad_words` in {MAX_BAD_WORDS_BYTES} bytes of JSON.

| Paths | Fields |
| --- | --- |
"""


def page() -> str:
    """Return the page."""
    vllm = set(json.loads(_FACTS.read_text(encoding="utf-8"))["routes"])
    vllm = {each for each in vllm if not each.split()[1].startswith(_DOCUMENTATION)}
    vllm = {each for each in vllm if not each.startswith("HEAD ")}
    simulator = asyncio.run(_simulator_paths())
    gateway = {f"POST {path}" for path in PATHS} | set(OWN_PATHS)
    rows = sorted(vllm | simulator | gateway, key=lambda each: each.split()[::-1])
    columns = (vllm, simulator, gateway)
    lines = (
        " | ".join((f"| `{row}`", *("yes" if row in column else "" for column in columns))) + " |"
        for row in rows
    )
    return _HEAD + "\n".join(lines) + "\n" + _FIELDS + "\n".join(_listed_fields()) + "\n"


def _listed_fields() -> Iterator[str]:
    """Yield a row for each list of fields, with its paths."""
    paths: dict[tuple[str, ...], list[str]] = {}
    for path, item in PATHS.items():
        fields = item.listed.type
        assert issubclass(fields, RequestFields)  # noqa: S101 - of all paths
        names = set(fields.__struct_fields__).difference(fields.unlisted_fields)
        paths.setdefault(tuple(sorted(names)), []).append(path)
    for listed, listing in paths.items():
        yield f"| {_code(listing)} | {_code(listed)} |"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


async def _simulator_paths() -> set[str]:
    engine = assemble_engine(load_config(["meta-llama/Llama-3.2-1B-Instruct"], {}))
    resources = (route for route in engine.app.router.routes() if route.method != "HEAD")
    return {f"{route.method} {_path(route)}" for route in resources}


def _path(route: web.AbstractRoute) -> str:
    assert route.resource is not None  # noqa: S101 - each path of the simulator has one
    return route.resource.canonical
