"""Take over the facts of genai-prices: provider_facts.py PACKAGE DATE.

PACKAGE is the folder `genai_prices` of an unpacked wheel, DATE the day on which that version was
published. Only facts are taken over: where a provider answers, where its answers have counts and
what its models cost, one line for each provider and model. `dialects.json` is for gateways,
`provider-prices.json` for the command line alone; both carry the notice of the package's license.
No process of Tessera loads the package.

An extractor of the package is for one of our protocols if it reads the object `usage` and

- `prompt_tokens` and `completion_tokens`: OpenAIChat, as in
  https://platform.openai.com/docs/api-reference/chat/object;
- `input_tokens`, of which `input_tokens_details` are a part: OpenAIResponses, as in
  https://platform.openai.com/docs/api-reference/responses/object;
- `input_tokens`, to which cached tokens are added: AnthropicMessages, as in
  https://platform.claude.com/docs/en/api/messages.

The others are for protocols that gateways do not speak.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

DATA = Path(__file__).parents[1] / "operator/tessera/domain/data"
NAME = "genai-prices"

# Counts by the package's words; those of other media have no price here.
COUNTS: Mapping[str, str] = {
    "input_tokens": "input",
    "cache_read_tokens": "cached",
    "cache_write_tokens": "cacheWrite",
    "cache_write_1h_tokens": "longCacheWrite",
    "output_tokens": "output",
    "output_reasoning_tokens": "reasoning",
    "web_searches": "searches",
}
# Flavors that say which of two extractors of one protocol is meant: the first that there is.
FLAVORS = ("chat", "responses", "anthropic", "default")
# The package's pattern fits any host that begins so.
HOSTS: Mapping[str, str] = {"moonshotai": r"https://api\.moonshot\.(?:ai|cn)"}
# Prices by the package's words, and how many of ours are one of its.
PRICES: Mapping[str, tuple[str, int]] = {
    "input_mtok": ("input", 1),
    "cache_read_mtok": ("cachedInput", 1),
    "cache_write_mtok": ("cacheWrite", 1),
    "cache_write_1h_mtok": ("longCacheWrite", 1),
    "output_mtok": ("output", 1),
    "output_reasoning_mtok": ("reasoning", 1),
    "web_searches_kcount": ("search", 1000),
    "requests_kcount": ("perRequest", 1000),
}
# Providers whose bill is in another currency; the package converts it at a rate of its own.
CONVERTED = {"zhipuai"}
# What follows a pattern: another label of the host would be somebody else's.
BOUNDARY = "(?=[:/]|$)"


def load(package: Path) -> ModuleType:
    """Return the package's data, without its other modules, which need packages of their own."""
    bare = ModuleType(package.name)
    bare.__path__ = [str(package)]
    sys.modules[package.name] = bare
    return importlib.import_module(f"{package.name}.data")


def protocol_of(extractor: Any) -> str | None:
    """Return which of our protocols an extractor reads; None for none of them."""
    if extractor.root != "usage":
        return None
    paths = {(_path(mapping), mapping.dest) for mapping in extractor.mappings}
    if {(("prompt_tokens",), "input_tokens"), (("completion_tokens",), "output_tokens")} <= paths:
        return "OpenAIChat"
    if not {(("input_tokens",), "input_tokens"), (("output_tokens",), "output_tokens")} <= paths:
        return None
    if (("cache_read_input_tokens",), "input_tokens") in paths:
        return "AnthropicMessages"
    is_response = (("input_tokens_details", "cached_tokens"), "cache_read_tokens") in paths
    return "OpenAIResponses" if is_response or extractor.api_flavor == "responses" else None


def _path(mapping: Any) -> tuple[str, ...]:
    """Return the names of fields; what an item of a list has is none of our protocols'."""
    path = (mapping.path,) if isinstance(mapping.path, str) else tuple(mapping.path)
    return path if all(isinstance(part, str) for part in path) else ()


def counts(extractors: Iterable[Any]) -> dict[str, list[dict[str, Any]]]:
    """Return where answers have counts, by protocol."""
    places: dict[str, list[dict[str, Any]]] = {}
    for extractor in sorted(extractors, key=_preference):
        protocol = protocol_of(extractor)
        if protocol is not None and protocol not in places:
            places[protocol] = [
                {"path": _path(mapping), "count": COUNTS[mapping.dest]}
                for mapping in extractor.mappings
                if mapping.dest in COUNTS
            ]
    return dict(sorted(places.items()))


def _preference(extractor: Any) -> int:
    flavor = extractor.api_flavor
    return FLAVORS.index(flavor) if flavor in FLAVORS else len(FLAVORS)


def host(pattern: str) -> str:
    """Return the pattern of a base URL so that it ends where the host or a part of its path does.

    What stands for any text is bounded to the letters of one host or one part of a path.
    """
    pattern = re.sub(r"\((\?:)?/\|\$\)$", "", pattern)
    pattern = pattern.replace("(https?://)?", "https://", 1)
    for loose, strict in (
        ("[^.]*", "[a-z0-9-]+"),
        (r"(.*\.)?", r"(?:[a-z0-9-]+\.)*"),
        ("[^/]+", "[a-z0-9._~-]+"),
    ):
        pattern = pattern.replace(loose, strict)
    return pattern + BOUNDARY


def dialect_rows(providers: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the row of each provider; of two of one host the one with more models."""
    by_host: dict[str, Any] = {}
    for provider in sorted(providers, key=lambda each: -len(each.models)):
        by_host.setdefault(host(HOSTS.get(provider.id, provider.api_pattern)), provider)
    rows = [
        {"name": provider.id, "host": pattern, "counts": counts(provider.extractors or ())}
        for pattern, provider in by_host.items()
    ]
    return sorted(rows, key=lambda row: row["name"])


def match(clause: Any) -> str:
    """Return a regular expression that is found in the names that a clause fits, in lower case."""
    kind = type(clause).__name__
    if kind == "ClauseOr":
        return "|".join(dict.fromkeys(match(each) for each in clause.or_))
    if kind == "ClauseAnd":
        # All of them are looked for from the beginning on.
        return "^" + "".join(f"(?=.*(?:{match(each)}))" for each in clause.and_)
    if kind == "ClauseRegex":
        pattern: str = clause.regex
        return pattern
    [text] = vars(clause).values()
    text = re.sub(r"([.+*?()\[\]{}|^$\\])", r"\\\1", text.lower())
    begin = "^" if kind in ("ClauseEquals", "ClauseStartsWith") else ""
    return f"{begin}{text}{'$' if kind in ('ClauseEquals', 'ClauseEndsWith') else ''}"


def price(prices: Any) -> dict[str, Any] | None:
    """Return the standard prices of a model; None for a model that answers without text.

    A step has every price of tokens, also of those that do not change.
    """
    values = {name: value for name, value in vars(prices).items() if value is not None}
    if not values.keys() >= {"input_mtok", "output_mtok"}:
        return None
    known = {name: values[name] for name in PRICES if name in values}
    starts = {tier.start for value in known.values() for tier in getattr(value, "tiers", ())}
    steps = [
        {"aboveInputTokens": start}
        | {
            PRICES[name][0]: _amount(_value_above(value, start), PRICES[name][1])
            for name, value in known.items()
            if name.endswith("_mtok")
        }
        for start in sorted(starts)
    ]
    facts: dict[str, Any] = {
        PRICES[name][0]: _amount(getattr(value, "base", value), PRICES[name][1])
        for name, value in known.items()
    }
    others = sorted(name for name in values.keys() - PRICES.keys() if name.endswith("_mtok"))
    return (
        facts
        | ({"steps": steps} if steps else {})
        | ({"others": [_words(name) for name in others]} if others else {})
    )


def _value_above(value: Any, start: int) -> Decimal:
    tiers = [tier.price for tier in getattr(value, "tiers", ()) if tier.start <= start]
    amount: Decimal = tiers[-1] if tiers else getattr(value, "base", value)
    return amount


def _amount(value: Decimal, of: int) -> str:
    return f"{round(value / of, 9).normalize():f}"


def _words(name: str) -> str:
    return name.removesuffix("_mtok").replace("_", " ")


def dated_prices(model: Any) -> list[dict[str, Any]]:
    """Return the prices by the day from which on they hold, the oldest first.

    Prices by the hour become the dearest of each kind, with the hours of the others.
    """
    if not isinstance(model.prices, list):
        facts = price(model.prices)
        return [] if facts is None else [facts]
    by_hour = [each for each in model.prices if hasattr(each.constraint, "start_time")]
    entries = []
    for entry in model.prices:
        facts = price(entry.prices)
        if entry in by_hour or facts is None:
            continue
        begin = getattr(entry.constraint, "start_date", None)
        hours = [
            f"{each.constraint.start_time:%H:%M}-{each.constraint.end_time:%H:%M}"
            for each in by_hour
        ]
        for each in by_hour:
            facts = _dearest(facts, price(each.prices) or {})
        entries.append(
            ({} if begin is None else {"from": begin.isoformat()})
            | ({"hours": hours} if hours else {})
            | facts
        )
    return entries


def _dearest(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    if "steps" in first or "steps" in second:
        raise ValueError("steps that change by the hour have no form in the table")
    return {
        name: max(first.get(name, "0"), second.get(name, "0"), key=Decimal)
        for name in dict.fromkeys((*first, *second))
    }


def price_rows(providers: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for each model that answers with text, in the order in which they are tried."""
    rows = [
        {"provider": provider.id, "model": model.id, "match": match(model.match)}
        | ({"context": model.context_window} if model.context_window else {})
        | {"prices": dated_prices(model)}
        for provider in sorted(providers, key=lambda each: each.id)
        for model in provider.models
        if provider.id not in CONVERTED
    ]
    return [row for row in rows if row["prices"]]


def price_pages(providers: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return the page with the prices of each provider, and whose models it sells besides."""
    return {
        provider.id: {"page": provider.pricing_urls[0]}
        | ({"sells": names} if (names := provider.fallback_model_providers) else {})
        for provider in sorted(providers, key=lambda each: each.id)
        if provider.id not in CONVERTED
    }


def encode(header: Mapping[str, object], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a file with one line for each row."""
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in header.items()]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return "{\n" + ",\n".join(parts) + ',\n"rows": [\n' + lines + "\n]\n}\n"


def main(package: Path, day: date) -> None:
    metadata = next(package.parent.glob(f"{package.name}-*.dist-info"))
    version = metadata.name.removeprefix(f"{package.name}-").removesuffix(".dist-info")
    notice = (metadata / "licenses/LICENSE").read_text(encoding="utf-8").strip()
    header = {
        "package": NAME,
        "version": version,
        "date": day.isoformat(),
        "license": notice,
    }
    providers = load(package).providers
    pages = {"providers": price_pages(providers)}
    for name, extra, rows in (
        ("dialects.json", {}, dialect_rows(providers)),
        ("provider-prices.json", pages, price_rows(providers)),
    ):
        text = encode({**header, **extra}, rows)
        (DATA / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows)} rows, {len(text.encode())} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), date.fromisoformat(sys.argv[2]))
