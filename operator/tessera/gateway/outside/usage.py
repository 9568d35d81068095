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

from tessera.domain.charges.prices import NO_EXTRAS, BilledExtras
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.providers.dialects import PLAIN, Count, Dialect, OwnCost
from tessera.gateway.bodies.json_values import NULL, each_item
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.refusals import RequestError

_MAX_TOKENS = 10**9
# Longest object of counts that is read; providers' have some hundred bytes.
_MAX_BYTES = 2**14
# Choices in which counts are looked for, as many as a request may ask for.
_MAX_CHOICES = 128
_USAGE = b'"usage"'
# The names of fields with the provider's own cost have this in common.
_COST, _COST_MARK = "cost", b"cost"
_MAX_NANOS = 10**15
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError)

_Path = tuple[str, ...]
_PROMPT, _INPUT = ("prompt_tokens",), ("input_tokens",)
_COMPLETION, _OUTPUT = ("completion_tokens",), ("output_tokens",)
_TOTAL = ("total_tokens",)
_CACHE_READ, _CACHE_CREATION = ("cache_read_input_tokens",), ("cache_creation_input_tokens",)
_SHORT_WRITE = ("cache_creation", "ephemeral_5m_input_tokens")
_LONG_WRITE = ("cache_creation", "ephemeral_1h_input_tokens")
# Places of one count, of which an answer has one, or several with the same number.
_CACHED: tuple[_Path, ...] = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("cached_tokens",),
    ("prompt_cache_hit_tokens",),
    _CACHE_READ,
)
_WRITTEN: tuple[_Path, ...] = (
    _CACHE_CREATION,
    ("prompt_tokens_details", "cache_write_tokens"),
    ("input_tokens_details", "cache_write_tokens"),
)
_REASONING: tuple[_Path, ...] = (
    ("completion_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "thinking_tokens"),
    ("reasoning_tokens",),
)
_SEARCHES: tuple[_Path, ...] = (("server_tool_use", "web_search_requests"),)
# OpenRouter's, in USD, and xAI's, whose name has its unit.
_OWN_COSTS = (OwnCost(path=("cost",)), OwnCost(path=("cost_in_usd_ticks",), per_usd=10**10))
GENERAL_PATHS: tuple[_Path, ...] = (
    *(_PROMPT, _INPUT, _COMPLETION, _OUTPUT, _TOTAL, _SHORT_WRITE, _LONG_WRITE),
    *(*_CACHED, *_WRITTEN, *_REASONING, *_SEARCHES),
)


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
        yield from map(_usage_of, (self.message, self.response, self.x_groq))
        if _USAGE in bytes(self.choices):
            try:
                for choice in islice(each_item(memoryview(self.choices)), _MAX_CHOICES):
                    yield _usage_of(choice)
            except _UNREADABLE:
                return


_place = msgspec.json.Decoder(_Place)
_places = msgspec.json.Decoder(UsagePlaces)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
    total: int | None
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
        self._paths = (*GENERAL_PATHS, *(each.path for each in self._row))
        self._prompt_tokens = prompt_tokens
        self._own_costs = (*_OWN_COSTS, *dialect.own_costs)
        self._values: dict[_Path, int] = {}
        self._own_nanos: int | None = None

    def read_event(self, data: bytes) -> None:
        """Read an event, in which counts may stand in several places."""
        with contextlib.suppress(*_UNREADABLE):
            self.read(_places.decode(data))

    def read(self, places: UsagePlaces) -> None:
        """Read the counts of an answer or an event; of one that comes again the larger holds."""
        for usage in places.usages():
            self._read(usage)

    def _read(self, usage: msgspec.Raw) -> None:
        if _is_null(usage) or len(usage) > _MAX_BYTES:
            return
        try:
            # A decoder of numbers of 64 bits would refuse all of it for one larger number.
            counts = json.loads(bytes(usage))
        except (ValueError, RecursionError):
            return
        if type(counts) is not dict:
            return
        for path in self._paths:
            value = _value(counts, path)
            if value is not None:
                self._values[path] = max(value, self._values.get(path, 0))
        if _COST_MARK in bytes(usage):
            for cost in self._own_costs:
                nanos = _own_nanos(counts, cost)
                if nanos is not None:
                    self._own_nanos = max(nanos, self._own_nanos or 0)

    @property
    def has_output(self) -> bool:
        """Return whether the provider says what its answer has."""
        return self._largest((_TOTAL, _COMPLETION, _OUTPUT)) is not None

    def bill(self, delivered: int = 0) -> AnswerBill:
        """Return what the answer is billed by.

        What the provider does not say of its answer is about what was delivered of it.
        """
        by_row, values = self._by_row(), self._values
        prompt, completion = self._largest((_PROMPT, _INPUT)), self._largest((_COMPLETION, _OUTPUT))
        prompt = by_row.get("input") if prompt is None else prompt
        completion = by_row.get("output") if completion is None else completion
        total = values.get(_TOTAL)
        if prompt is None and completion is None and total is None:
            return NO_BILL._replace(own_nanos=self._own_nanos)
        is_doubtful = prompt is None or (completion is total is None and delivered > 0)
        if prompt is None:
            prompt = self._prompt_tokens
            if total is not None and total > (completion or 0):
                prompt = total - completion if completion is not None else min(prompt, total)
        if completion is None:
            completion = max(total - prompt, 0) if total is not None else delivered
        long_writes = max(values.get(_LONG_WRITE, 0), by_row.get("longCacheWrite", 0))
        short_writes = values.get(_SHORT_WRITE, 0)
        written = max(self._largest(_WRITTEN) or 0, by_row.get("cacheWrite", 0))
        parts = _Parts(
            prompt=prompt,
            completion=completion,
            cached=max(self._largest(_CACHED) or 0, by_row.get("cached", 0)),
            writes=max(written, short_writes + long_writes),
            reasoning=max(self._largest(_REASONING) or 0, by_row.get("reasoning", 0)),
            total=total,
            are_caches_beside=_PROMPT not in values
            and _INPUT in values
            and (_CACHE_READ in values or _CACHE_CREATION in values),
        )
        sums = _sums(parts, by_row.get("input", 0), by_row.get("output", 0))
        room = max(sums.input - parts.cached, 0)
        long_writes = min(long_writes, room)
        return AnswerBill(
            TokenCounts(
                input=sums.input,
                cached=parts.cached,
                output=sums.output,
                reasoning=parts.reasoning,
            ),
            BilledExtras(
                cache_writes=min(parts.writes, room) - long_writes,
                long_cache_writes=long_writes,
                searches=max(self._largest(_SEARCHES) or 0, by_row.get("searches", 0)),
                unexplained=sums.unexplained,
            ),
            is_doubtful=is_doubtful or sums.is_doubtful,
            own_nanos=self._own_nanos,
            disagrees=self._disagrees(by_row, sums),
        )

    def _disagrees(self, by_row: Mapping[Count, int], sums: _Sums) -> bool:
        """Return whether the row lacks a sum that the answer has, or has another one."""
        has_both = {_PROMPT, _INPUT} & self._values.keys() and (
            {_COMPLETION, _OUTPUT} & self._values.keys()
        )
        if not self._row or not has_both or sums.is_doubtful or sums.unexplained:
            return False
        return sums[:2] != (by_row.get("input"), by_row.get("output"))

    def _by_row(self) -> Mapping[Count, int]:
        """Return the counts that the row of the dialect has, each the sum of its paths."""
        counts: dict[Count, int] = {}
        for each in self._row:
            value = self._values.get(each.path)
            if value is not None:
                counts[each.count] = counts.get(each.count, 0) + value
        return counts

    def _largest(self, paths: tuple[_Path, ...]) -> int | None:
        values = self._values
        return max((values[path] for path in paths if path in values), default=None)


def _sums(parts: _Parts, row_input: int, row_output: int) -> _Sums:
    """Return all tokens of the prompt and the answer, by the total if there is one."""
    prompt, completion, cached, writes, reasoning, total, are_caches_beside = parts
    if total is not None and row_input + row_output == total:
        return _Sums(row_input, row_output)
    beside = cached + writes if are_caches_beside else 0
    # The parts of a prompt are no more than it.
    must_stand_beside = beside > prompt
    if total is not None:
        for more_input in dict.fromkeys((0, beside, cached, cached + writes)):
            if must_stand_beside and not more_input:
                continue
            for more_output in (0, reasoning):
                if prompt + more_input + completion + more_output == total:
                    return _Sums(prompt + more_input, completion + more_output)
    input_tokens = prompt + (beside or (cached if cached > prompt else 0))
    output = completion + (reasoning if reasoning > completion else 0)
    if total is None:
        return _Sums(max(input_tokens, row_input), max(output, row_output))
    if total < input_tokens + completion:
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
                # The same object has the same cost, wherever it stands.
                data = data.replace(bytes(usage), _without_cost(usage))
    return data


def _without_cost(usage: msgspec.Raw) -> bytes:
    text = bytes(usage)
    if _COST_MARK not in text or len(text) > _MAX_BYTES:
        return text
    try:
        fields = _fields.decode(usage)
    except _UNREADABLE:
        return text
    others = {name: value for name, value in fields.items() if _COST not in name}
    return msgspec.json.encode(others) if len(others) < len(fields) else text


def _is_null(value: msgspec.Raw) -> bool:
    return bytes(memoryview(value)[:4]) == b"null"


def _value(counts: Any, path: _Path) -> int | None:
    """Return a count at a path; None of what cannot be one."""
    for name in path:
        if type(counts) is not dict:
            return None
        counts = counts.get(name)
    if type(counts) is float and counts.is_integer():
        counts = int(counts)
    return counts if type(counts) is int and 0 <= counts <= _MAX_TOKENS else None


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
