"""What the answer of a provider says of its bill: tokens, and what is billed beside them.

General rules always run. The row of a dialect adds to them, and where a row or the parts disagree
with the total of an answer, the total holds. A value that cannot be a count is as if it were not
there.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from tessera.domain.charge.prices import NO_EXTRAS, BilledExtras
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.providers.dialects import PLAIN, Count, Dialect, OwnCost
from tessera.gateway.bodies.json_values import NULL, each_item
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.refusals import RequestError

_MAX_TOKENS = 10**9
# Longest object of counts that is read; providers' have some hundred bytes.
_MAX_BYTES = 2**12
# Choices in which counts are looked for: more of them have counts of all beside them.
_MAX_CHOICES = 16
# Names from the object of counts to a count.
_MAX_DEPTH = 3
_USAGE = b'"usage"'
# The names of fields with the provider's own cost have this in common.
_COST, _COST_MARK = "cost", b"cost"
# Beside its cost OpenRouter says whether it was asked with a key of another provider.
_OWN_KEY = "is_byok"
_MAX_NANOS = 10**15
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError)

_Path = tuple[str, ...]
# The places of counts in all dialects. Those with one name here have the same number, or one.
GENERAL_PATHS: Mapping[_Path, str] = {
    ("prompt_tokens",): "prompt",
    ("input_tokens",): "input",
    ("completion_tokens",): "completion",
    ("output_tokens",): "completion",
    ("total_tokens",): "total",
    ("prompt_tokens_details", "cached_tokens"): "cached",
    ("input_tokens_details", "cached_tokens"): "cached",
    ("cached_tokens",): "cached",
    ("prompt_cache_hit_tokens",): "cached",
    ("cache_read_input_tokens",): "cache_read",
    ("cache_creation_input_tokens",): "cache_creation",
    ("cache_creation", "ephemeral_5m_input_tokens"): "short_write",
    ("cache_creation", "ephemeral_1h_input_tokens"): "long_write",
    ("prompt_tokens_details", "cache_write_tokens"): "written",
    ("input_tokens_details", "cache_write_tokens"): "written",
    ("completion_tokens_details", "reasoning_tokens"): "reasoning",
    ("output_tokens_details", "reasoning_tokens"): "reasoning",
    ("output_tokens_details", "thinking_tokens"): "reasoning",
    ("reasoning_tokens",): "reasoning",
    ("server_tool_use", "web_search_requests"): "searches",
}
# OpenRouter's, in USD, and xAI's, whose name has its unit.
_OWN_COSTS = (OwnCost(path=("cost",)), OwnCost(path=("cost_in_usd_ticks",), per_usd=10**10))


class _Place(msgspec.Struct, gc=False):
    usage: msgspec.Raw = NULL


class UsagePlaces(msgspec.Struct, gc=False):
    """The places of an answer or an event that may have counts."""

    choices: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    message: msgspec.Raw = NULL
    response: msgspec.Raw = NULL
    x_groq: msgspec.Raw = NULL

    def usages(self) -> Iterator[msgspec.Raw]:
        """Yield the objects with counts."""
        yield self.usage
        for place in (self.message, self.response, self.x_groq):
            if not is_null(place):
                yield _usage_of(place)
        if _USAGE in bytes(self.choices):
            try:
                for choice in islice(each_item(memoryview(self.choices)), _MAX_CHOICES):
                    yield _usage_of(choice)
            except _UNREADABLE:
                return


_place = msgspec.json.Decoder(_Place)
_places = msgspec.json.Decoder(UsagePlaces)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any = msgspec.json.Decoder()


def _usage_of(place: msgspec.Raw | memoryview) -> msgspec.Raw:
    try:
        return _place.decode(place).usage
    except _UNREADABLE:
        return NULL


class AnswerBill(NamedTuple):
    """What the answer of a provider is billed by, as far as its counts say."""

    counts: TokenCounts | None
    """None where it has none."""
    extras: BilledExtras
    is_doubtful: bool = False
    """A count is missing, or more than all counts of which it is a part."""
    own_nanos: int | None = None
    """What it costs as the provider says, in nano-units of USD; None where it does not."""
    disagrees: bool = False
    """It has not the counts that the dialect of the provider has."""


NO_BILL = AnswerBill(None, NO_EXTRAS)


@dataclass(slots=True)
class Meters:
    """What the answers of a provider cost by its own count, and by the prices of its models."""

    own_nanos: int = 0
    compared_nanos: int = 0
    """By the prices of the models, of the same answers; nano-units of USD."""
    disagreed: bool = False
    """An answer had not the counts that the dialect of the provider has."""


class _Parts(NamedTuple):
    """Tokens by their names, of which some may stand beside those of the prompt and the answer."""

    prompt: int
    completion: int
    cached: int
    writes: int
    reasoning: int
    total: int
    are_caches_beside: bool
    """The names are Anthropic's, of whose `input_tokens` those of caches are no part."""


class _Sums(NamedTuple):
    input: int
    output: int
    unexplained: int = 0
    is_doubtful: bool = False


class UsageReader:
    """Reads the counts of one answer, which may come in parts and more than once, and may grow."""

    def __init__(self, path: str, dialect: Dialect = PLAIN, prompt_tokens: int = 0) -> None:
        """Take the path of the request, and what its prompt has if the provider does not say."""
        self._row = dialect.counts.get(PROTOCOLS[path], ())
        self._row_paths = {each.path for each in self._row}
        self._prompt_tokens = prompt_tokens
        self._dialect_costs = dialect.own_costs
        self._rest_is_reasoning = dialect.rest_is_reasoning
        # The largest value of each path of the row, and of each name of the general ones.
        self._values: dict[_Path, int] = {}
        self._named: dict[str, int] = {}
        self._own_nanos: int | None = None
        self.has_cost = False
        """The provider may say what the answer costs."""

    def read_event(self, data: bytes) -> None:
        """Read an event, in which counts may stand in several places."""
        with contextlib.suppress(*_UNREADABLE):
            self.read(_places.decode(data))

    def read(self, places: UsagePlaces) -> None:
        """Read the counts of an answer or an event; of one that comes again the larger holds."""
        for usage in places.usages():
            self._read(usage)

    def _read(self, usage: msgspec.Raw) -> None:
        if is_null(usage) or len(usage) > _MAX_BYTES:
            return
        text = bytes(usage)
        counts = _decoded(text)
        if type(counts) is not dict:
            return
        self._take(counts, ())
        if _COST_MARK in text:
            self.has_cost = True
            if counts.get(_OWN_KEY) is True:
                # The bill of another provider has it.
                return
            for cost in (*_OWN_COSTS, *self._dialect_costs):
                nanos = _own_nanos(counts, cost)
                if nanos is not None:
                    self._own_nanos = max(nanos, self._own_nanos or 0)

    def _take(self, counts: dict[str, Any], path: _Path) -> None:
        """Take the values below a path that can be counts."""
        for name, value in counts.items():
            place = (*path, name)
            if type(value) is dict:
                if len(place) < _MAX_DEPTH:
                    self._take(value, place)
                continue
            count = int(value) if type(value) is float and value.is_integer() else value
            # A count of 0 says no more than none.
            if type(count) is not int or not 0 < count <= _MAX_TOKENS:
                continue
            # Names are the provider's: others than these are not kept.
            if place in self._row_paths:
                self._values[place] = max(count, self._values.get(place, 0))
            if (general := GENERAL_PATHS.get(place)) is not None:
                self._named[general] = max(count, self._named.get(general, 0))

    @property
    def has_output(self) -> bool:
        """Return whether the provider says what its answer has."""
        return self._named.get("completion", 0) > 0

    def bill(self, delivered: int = 0) -> AnswerBill:
        """Return what the answer is billed by.

        What the provider does not say of its answer is about what was delivered of it.
        """
        by_row, named = self._by_row(), self._named
        long_writes = max(named.get("long_write", 0), by_row.get("longCacheWrite", 0))
        cached = max(named.get("cached", 0), named.get("cache_read", 0), by_row.get("cached", 0))
        writes = max(
            named.get("written", 0),
            named.get("cache_creation", 0),
            named.get("short_write", 0) + long_writes,
            by_row.get("cacheWrite", 0),
        )
        prompt = named.get("prompt") or named.get("input", 0)
        if not (prompt or cached or writes):
            prompt = by_row.get("input", 0)
        completion = named.get("completion") or by_row.get("output", 0)
        total = named.get("total", 0)
        if not (prompt or completion or total):
            return NO_BILL._replace(own_nanos=self._own_nanos)
        # A provider read the prompt, and made what came of the answer.
        lacks_prompt, lacks_answer = not (prompt or cached or writes), not completion
        if lacks_prompt:
            rest = total - completion
            prompt = self._prompt_tokens
            if rest > 0:
                prompt = min(prompt, rest) if lacks_answer else rest
        if lacks_answer:
            completion = total - prompt if total > prompt else delivered
        parts = _Parts(
            prompt=prompt,
            completion=completion,
            cached=cached,
            writes=writes,
            reasoning=max(named.get("reasoning", 0), by_row.get("reasoning", 0)),
            total=total,
            are_caches_beside="prompt" not in named
            and ("cache_read" in named or "cache_creation" in named),
        )
        sums = _sums(parts, by_row.get("input", 0), by_row.get("output", 0))
        reasoning, unexplained = parts.reasoning, sums.unexplained
        if self._rest_is_reasoning:
            reasoning, unexplained = max(reasoning, unexplained), 0
        return AnswerBill(
            TokenCounts(input=sums.input, cached=cached, output=sums.output, reasoning=reasoning),
            _extras(
                unexplained,
                writes=min(writes, max(sums.input - cached, 0)),
                long_writes=long_writes,
                searches=max(named.get("searches", 0), by_row.get("searches", 0)),
            ),
            is_doubtful=sums.is_doubtful
            or lacks_prompt
            or (lacks_answer and 0 < delivered == completion),
            own_nanos=self._own_nanos,
            disagrees=not (lacks_prompt or lacks_answer or sums.is_doubtful or sums.unexplained)
            and len(self._row) > 0
            and (by_row.get("input", 0), by_row.get("output", 0)) != sums[:2],
        )

    def _by_row(self) -> Mapping[Count, int]:
        """Return the counts that the row of the dialect has, each the sum of its paths."""
        counts: dict[Count, int] = {}
        for each in self._row:
            value = self._values.get(each.path)
            if value is not None:
                counts[each.count] = counts.get(each.count, 0) + value
        return counts


def _extras(unexplained: int, *, writes: int, long_writes: int, searches: int) -> BilledExtras:
    if not (unexplained or writes or searches):
        return NO_EXTRAS
    long_writes = min(long_writes, writes)
    return BilledExtras(
        cache_writes=writes - long_writes,
        long_cache_writes=long_writes,
        searches=searches,
        unexplained=unexplained,
    )


def _sums(parts: _Parts, row_input: int, row_output: int) -> _Sums:
    """Return all tokens of the prompt and the answer, by the total if there is one."""
    prompt, completion, cached, writes, reasoning, total, are_caches_beside = parts
    if total and row_input + row_output == total:
        return _Sums(row_input, row_output)
    beside = cached + writes if are_caches_beside else 0
    if total:
        # Parts are no more than the whole.
        outputs = (reasoning,) if reasoning > completion else (0, reasoning)
        inputs = (beside,) if beside else (0, cached, cached + writes)
        for more_input in dict.fromkeys(inputs):
            for more_output in outputs:
                if prompt + more_input + completion + more_output == total:
                    return _Sums(prompt + more_input, completion + more_output)
    input_tokens = prompt + (beside or (cached if cached > prompt else 0))
    output = completion + (reasoning if reasoning > completion else 0)
    if not total:
        return _Sums(max(input_tokens, row_input), max(output, row_output))
    if total < input_tokens + output:
        # A total of less than its parts explains nothing.
        return _Sums(input_tokens, output, is_doubtful=True)
    rest = total - input_tokens
    return _Sums(input_tokens, rest, unexplained=max(rest - output, 0))


def may_have_cost(data: bytes) -> bool:
    """Return whether an answer or events may have the provider's own cost of it."""
    return _USAGE in data and _COST_MARK in data


def without_cost(data: bytes) -> bytes:
    """Return an answer or the data of an event without the provider's own cost of it."""
    if may_have_cost(data):
        with contextlib.suppress(*_UNREADABLE):
            for usage in _places.decode(data).usages():
                text = bytes(usage)
                if _COST_MARK in text and len(text) <= _MAX_BYTES:
                    # The same object has the same cost, wherever it stands.
                    data = data.replace(text, _without_cost(text))
    return data


def _without_cost(usage: bytes) -> bytes:
    try:
        fields = _fields.decode(usage)
    except _UNREADABLE:
        return usage
    return msgspec.json.encode(
        {name: fields[name] for name in fields if _COST not in name and name != _OWN_KEY}
    )


def is_null(value: msgspec.Raw) -> bool:
    """Return whether a field is not there, or null."""
    return value is NULL or bytes(memoryview(value)[:4]) == b"null"


def _decoded(usage: bytes) -> Any:
    try:
        return _any.decode(usage)
    except msgspec.DecodeError:
        # It takes no number of more than 64 bits, beside which others may be counts.
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(usage)
    except (UnicodeDecodeError, RecursionError):
        pass
    return None


def _own_nanos(counts: Mapping[str, Any], cost: OwnCost) -> int | None:
    """Return a cost at a path in nano-units; None of what cannot be one."""
    value: Any = counts
    for name in cost.path:
        if type(value) is not dict:
            return None
        value = value.get(name)
    if type(value) not in (int, float) or not 0 <= value < _MAX_NANOS * cost.per_usd:
        return None
    nanos = round(value * 10**9 / cost.per_usd)
    return nanos if nanos <= _MAX_NANOS else None
