"""Bodies of requests as outside providers get them, in the protocol in which they came."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import msgspec

from tessera.api.model_provider import ProviderModel, ProviderProtocol
from tessera.api.text import counted
from tessera.domain.gateway.directory import OutsideModel
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.providers.dialects import PLAIN, Dialect, dialect_of
from tessera.gateway.bodies.json_values import MAX_TEXTS, NULL, check_encoding, decode, first_items
from tessera.gateway.bodies.signed import thinking_mark, unmarked
from tessera.gateway.outside import fields as listed
from tessera.gateway.outside.chat_state import (
    ASSISTANT,
    ChatState,
    fitting_id,
    may_have_state,
)
from tessera.gateway.refusals import RequestError, invalid_request

# Of all lists of a body together.
_MAX_VALUES = 16_384
_MAX_URL_BYTES = 8192
_MAX_TYPE_BYTES = 128
# Of thinking: the least budget that Anthropic takes, which has to be below the limit, and the share
# of a limit that is below the budget.
_LEAST_THINKING, _THINKING_SHARE = 1024, 0.75
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Nothing that two readers could take for different hosts: no user, no escape, no space.
_HTTPS = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?", re.IGNORECASE)
_DATA = re.compile(rb'"data:image/', re.IGNORECASE)
_INCLUDED = ("reasoning.encrypted_content", "message.output_text.logprobs")
_FUNCTIONS = ("function", "custom")
_CALLS = b'"tool_calls"'
# Of Anthropic's protocol: https://docs.claude.com/en/api/messages
_TOOL_USE_IDS = "[a-zA-Z0-9_-]+"
_WEB_SEARCH = "web_search"
_TRUE = msgspec.Raw(b"true")
_NO_TEXT = msgspec.Raw(b'""')
_EMPTY: tuple[Any, ...] = (None, [], _NO_TEXT)
# Fields of a message of the model that need no content beside them.
_SAYING = ("tool_calls", "function_call", "refusal")
_DISABLED = {"type": "disabled"}
_THINKING = (b'"thinking"', b'"redacted_thinking"')
# Clients run them, whatever their version.
_CLIENT_TOOLS = re.compile(r"custom|(bash|text_editor|memory)_\d{8}")

_all_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_limit = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=1)])
_flag = msgspec.json.Decoder(bool)
_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[str])

_Fields = dict[str, Any]
_Part = Callable[[msgspec.Raw], _Fields | None]


class _ToolLists(NamedTuple):
    """What of tools passes in one protocol."""

    types: Callable[[str], object]
    """Whether a client runs tools of a type itself."""
    tool: listed.Listed
    cached_tool: listed.Listed
    """The same where a mark for a cache passes."""
    choice: listed.Listed


_CHAT_TOOLS = _ToolLists(
    _FUNCTIONS.__contains__, listed.CHAT_TOOL, listed.CHAT_TOOL, listed.CHAT_CHOICE
)
_RESPONSES_TOOLS = _ToolLists(
    _FUNCTIONS.__contains__, listed.RESPONSES_TOOL, listed.RESPONSES_TOOL, listed.RESPONSES_CHOICE
)
_MESSAGES_TOOLS = _ToolLists(
    _CLIENT_TOOLS.fullmatch,
    listed.MESSAGES_TOOL,
    listed.MESSAGES_CACHED_TOOL,
    listed.MESSAGES_CHOICE,
)


def outside_body(path: str, body: bytes, outside: OutsideModel, most_output: int) -> bytes:
    """Return the body for a model of a provider, with at most so many tokens of each choice.

    Of signed thinking it has what this provider made. Raises RequestError for what the protocol or
    the model has no word for, so that the target is skipped.
    """
    try:
        check_encoding(body)
    except UnicodeDecodeError as error:
        raise invalid_request(
            f"the body is no UTF-8: {error.reason}", code="invalid_json"
        ) from None
    model, protocol = outside.model, _PROTOCOLS[PROTOCOLS[path]]
    # Its facts are of chats.
    dialect = dialect_of(outside.provider.spec) if protocol.limit is None else PLAIN
    values = _BodyValues(model, dialect, thinking_mark(outside.provider))
    priced = protocol.fields.priced if values.caches else ()
    fields = _passing(body, protocol.fields, dialect, priced)
    limits = [most_output, model.max_output_tokens]
    limits += [_read(_limit, name, fields.pop(name)) for name in _LIMITS if name in fields]
    if (dialect.has_call_state and _CALLS in body) or may_have_state(body):
        values.state = ChatState(dialect, values.mark)
    protocol.build(fields, values)
    if "thinking" in fields:
        _fit_thinking(fields, min(limits), min(limits[2:], default=0))
    fields["model"] = model.name
    fields[protocol.limit or model.output_limit_field] = min(limits)
    for name, other_name in dialect.renamed_fields.items():
        if name in fields:
            fields[other_name] = fields.pop(name)
    return msgspec.json.encode(fields)


def _passing(
    body: bytes, lists: listed.FieldLists, dialect: Dialect, priced: tuple[str, ...]
) -> _Fields:
    passes = lists.passes
    if dialect is not PLAIN or priced:
        passes = passes.union(dialect.own_fields, priced).difference(dialect.refused_fields)
    fields: _Fields = {}
    for name, value in decode(_all_fields, body).items():
        if name in passes:
            if value != NULL:
                fields[name] = value
        elif not lists.leaves_out(name, value):
            raise _unsayable(name)
    return fields


def _fit_thinking(fields: _Fields, limit: int, asked_limit: int) -> None:
    """Lower the budget of thinking as the limit of the answer is lowered, or leave thinking out."""
    thinking = fields["thinking"]
    if "budget_tokens" not in thinking:
        return
    budget = _read(_limit, "budget_tokens", thinking["budget_tokens"])
    if budget < limit and limit >= asked_limit:
        return
    if limit <= _LEAST_THINKING:
        del fields["thinking"]
        return
    # Where another limit was set before, what the client asked for is not known.
    share = budget / asked_limit if budget < asked_limit else _THINKING_SHARE
    thinking["budget_tokens"] = max(_LEAST_THINKING, int(limit * share))


class _BodyValues:
    """Reads the values of one body, of which there are not too many."""

    def __init__(self, model: ProviderModel, dialect: Dialect, mark: bytes) -> None:
        self.model, self.dialect, self.mark = model, dialect, mark
        self.refused_message_fields = dialect.refused_message_fields
        self.state: ChatState | None = None
        self.caches = model.cost.cache_write is not None
        self._seen = 0

    def items(self, name: str, value: msgspec.Raw) -> list[msgspec.Raw] | None:
        """Return the items of a list; None where the value is none."""
        if bytes(memoryview(value)[:1]) != b"[":
            return None
        items = first_items(memoryview(value))
        self._seen += len(items)
        if len(items) > MAX_TEXTS or self._seen > _MAX_VALUES:
            raise invalid_request(
                f"{name}: expected at most {MAX_TEXTS} items in a list, and {_MAX_VALUES} in all",
                name,
            )
        return items

    def cut(self, fields: _Fields, name: str, part: _Part) -> None:
        """Cut the parts of a list, without those that are left out; a text stays as it is."""
        value = _required(fields, name)
        items = self.items(name, value)
        if items is not None:
            fields[name] = [each for each in map(part, items) if each is not None]
        elif bytes(memoryview(value)[:1]) != b'"':
            raise invalid_request(f"{name}: expected a text or a list", name)

    def tools(self, fields: _Fields, lists: _ToolLists) -> None:
        """Cut the tools to those that the client runs itself, and the choice to these tools."""
        tools, names_left_out = [], []
        for item in self.items("tools", fields.pop("tools", NULL)) or ():
            tool = (lists.cached_tool if self.caches else lists.tool).cut(item)
            self.cut_cache_mark(tool)
            kind = _type_of(tool) or "custom"
            if lists.types(kind):
                tools.append(tool)
            elif kind.startswith(_WEB_SEARCH):
                names_left_out.append(tool.get("name"))
            else:
                raise _unsayable(f"tools of type {kind}", "tools")
        if tools:
            fields["tools"] = tools
            self._choose(fields, lists.choice, names_left_out)
        else:
            # Providers refuse a choice among no tools.
            fields.pop("tool_choice", None)
            fields.pop("parallel_tool_calls", None)

    def _choose(self, fields: _Fields, choices: listed.Listed, names_left_out: list[Any]) -> None:
        """Leave the choice to the model where the chosen tool was left out."""
        value = fields.get("tool_choice")
        if value is None or bytes(memoryview(value)[:1]) != b"{":
            return
        choice = fields["tool_choice"] = choices.cut(value)
        allowed = self.items("tools", choice.get("tools", NULL)) or []
        if passing := [item for item in allowed if not _is_web_search(item)]:
            choice["tools"] = passing
        elif allowed or _type_of(choice).startswith(_WEB_SEARCH):
            fields["tool_choice"] = "auto"
        elif "name" in choice and choice["name"] in names_left_out:
            del choice["name"]
            choice["type"] = "auto"

    def cut_cache_mark(self, fields: _Fields) -> None:
        """Leave a mark for a cache the lifetimes whose writes have a price."""
        if "cache_control" in fields:
            mark = fields["cache_control"] = listed.MESSAGES_CACHE.cut(fields["cache_control"])
            if self.model.cost.long_cache_write is None:
                # It is 5 minutes then.
                mark.pop("ttl", None)

    def without_reasoning(self, fields: _Fields, *names: str) -> None:
        """Leave out what only models that reason are asked for."""
        if not self.model.reasoning:
            for name in names:
                fields.pop(name, None)


def _with_function(fields: _Fields, functions: listed.Listed) -> _Fields:
    if "function" in fields:
        fields["function"] = functions.cut(fields["function"])
    return fields


class _ChatLists(NamedTuple):
    message: listed.Listed
    call: listed.Listed


_CHAT_LISTS = _ChatLists(listed.CHAT_MESSAGE, listed.CHAT_CALL)
_CHAT_STATE_LISTS = _ChatLists(listed.CHAT_STATE_MESSAGE, listed.CHAT_STATE_CALL)


def _chat(fields: _Fields, values: _BodyValues) -> None:
    values.cut(fields, "messages", partial(_chat_message, values))
    values.tools(fields, _CHAT_TOOLS)
    for tool in fields.get("tools", ()):
        _with_function(tool, listed.CHAT_FUNCTION)
    values.without_reasoning(fields, "reasoning_effort", "thinking")
    if "thinking" in fields:
        fields["thinking"] = listed.CHAT_THINKING.cut(fields["thinking"])
    if values.state is not None and values.state.is_missing and values.model.reasoning:
        fields["thinking"] = _DISABLED
        fields.pop("reasoning_effort", None)
    if "top_logprobs" in fields and fields.get("logprobs") != _TRUE:
        del fields["top_logprobs"]
    if "functions" in fields and not values.items("functions", fields["functions"]):
        del fields["functions"]
    if "function_call" in fields and "functions" not in fields:
        del fields["function_call"]
    streams = "stream" in fields and _read(_flag, "stream", fields["stream"])
    if streams and "stream_options" not in values.dialect.refused_fields:
        fields["stream_options"] = {"include_usage": True}


def _chat_message(values: _BodyValues, item: msgspec.Raw) -> _Fields | None:
    lists = _CHAT_LISTS if values.state is None else _CHAT_STATE_LISTS
    message = lists.message.cut(item)
    if values.dialect.renamed_roles and "role" in message:
        role = _read(_text, "role", message["role"])
        message["role"] = _encoded(values.dialect.renamed_roles.get(role, role))
    if "content" in message:
        values.cut(message, "content", partial(_chat_part, values))
        if message["content"] == []:
            # All of it was thoughts of others.
            del message["content"]
    if "tool_calls" in message:
        calls = values.items("tool_calls", message.pop("tool_calls"))
        # Engines write empty lists, which providers refuse.
        if calls:
            message["tool_calls"] = [
                _with_function(lists.call.cut(call), listed.CHAT_CALLED_FUNCTION) for call in calls
            ]
            message.setdefault("content", None)
    if values.state is not None:
        details = values.items("reasoning_details", message.pop("reasoning_details", NULL))
        values.state.cut(message, details or [])
    for name in values.refused_message_fields:
        message.pop(name, None)
    return message if "content" in message and message["content"] != _NO_TEXT else _or_none(message)


def _encoded(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


def _or_none(message: _Fields) -> _Fields | None:
    """Return a message without content; None if a model says nothing in it."""
    says = message.get("role") != ASSISTANT or any(name in message for name in _SAYING)
    return message if says else None


def _chat_part(values: _BodyValues, item: msgspec.Raw) -> _Fields | None:
    part = listed.CHAT_PART.cut(item)
    kind = _type_of(part)
    if kind == "thinking":
        # Mistral's, of others' models too: it has no place for a mark.
        return part if kind in values.dialect.returned_parts else None
    part.pop("thinking", None)
    part.pop("closed", None)
    if kind == "image_url":
        image = part["image_url"] = listed.CHAT_IMAGE.cut(_required(part, "image_url"))
        _check_image("image_url", _required(image, "url"))
    elif kind not in ("text", "refusal"):
        raise _unsayable(f"content of type {kind}", "messages")
    return part


def _responses(fields: _Fields, values: _BodyValues) -> None:
    values.cut(fields, "input", partial(_responses_item, values))
    values.tools(fields, _RESPONSES_TOOLS)
    if "include" in fields:
        included = _read(_texts, "include", fields.pop("include"))
        names = _INCLUDED if values.model.reasoning else _INCLUDED[1:]
        if passing := [each for each in names if each in included]:
            fields["include"] = passing
    values.without_reasoning(fields, "reasoning")
    # Else the provider keeps it for 30 days.
    fields["store"] = False


def _responses_item(values: _BodyValues, value: msgspec.Raw) -> _Fields | None:
    item = listed.RESPONSES_ITEM.cut(value)
    match _type_of(item) or "message":
        case "message":
            values.cut(item, "content", _responses_part)
        case "reasoning":
            item["encrypted_content"] = unmarked(item.get("encrypted_content"), values.mark)
            if item["encrypted_content"] is None:
                return None
        case "function_call_output" | "custom_tool_call_output":
            values.cut(item, "output", _responses_part)
        case "function_call" | "custom_tool_call":
            pass
        case kind:
            raise _unsayable(f"items of type {kind}", "input")
    return item


def _responses_part(item: msgspec.Raw) -> _Fields:
    part = listed.RESPONSES_PART.cut(item)
    kind = _type_of(part)
    if kind == "input_image":
        _check_image("image_url", _required(part, "image_url"))
    elif kind not in ("input_text", "output_text", "refusal"):
        raise _unsayable(f"content of type {kind}", "input")
    return part


def _messages(fields: _Fields, values: _BodyValues) -> None:
    values.cut_cache_mark(fields)
    values.cut(fields, "messages", partial(_message, values))
    if "system" in fields:
        values.cut(fields, "system", partial(_block, values))
        if fields["system"] in _EMPTY:
            del fields["system"]
    values.tools(fields, _MESSAGES_TOOLS)
    values.without_reasoning(fields, "thinking")
    if "thinking" in fields:
        thinking = fields["thinking"] = listed.MESSAGES_THINKING.cut(fields["thinking"])
        # Models that choose whether they think take turns without it.
        if _type_of(thinking) == "enabled" and _calls_without_thinking(fields["messages"]):
            del fields["thinking"]
    if "output_config" in fields:
        config = listed.MESSAGES_OUTPUT.cut(fields["output_config"])
        values.without_reasoning(config, "effort")
        fields["output_config"] = config


def _calls_without_thinking(messages: msgspec.Raw | list[_Fields]) -> bool:
    """Return whether the last message of the model calls tools without thinking before it."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if message.get("role") == ASSISTANT:
            blocks = message["content"] if isinstance(message["content"], list) else []
            types = [bytes(block["type"]) for block in blocks]
            return b'"tool_use"' in types and types[0] not in _THINKING
    return False


def _message(values: _BodyValues, item: msgspec.Raw) -> _Fields | None:
    message = listed.MESSAGES_MESSAGE.cut(item)
    values.cut(message, "content", partial(_block, values))
    # It was all thinking of others.
    return None if message["content"] in _EMPTY else message


def _block(values: _BodyValues, item: msgspec.Raw) -> _Fields | None:
    lists = listed.MESSAGES_CACHED_BLOCK if values.caches else listed.MESSAGES_BLOCK
    block = lists.cut(item)
    values.cut_cache_mark(block)
    match _type_of(block):
        case "text":
            if block.get("text") in _EMPTY:
                return None
        case "tool_use":
            _fit_id(block, "id")
        case "image":
            source = block["source"] = listed.MESSAGES_SOURCE.cut(_required(block, "source"))
            kind = _type_of(source)
            if kind not in ("base64", "url"):
                raise _unsayable(f"sources of type {kind}", "messages")
            if kind == "url":
                _check_image("source", _required(source, "url"))
        case "tool_result":
            _fit_id(block, "tool_use_id")
            if "content" in block:
                values.cut(block, "content", partial(_result_block, values))
        case "thinking" | "redacted_thinking" as kind:
            return _own_thinking(block, "signature" if kind == "thinking" else "data", values.mark)
        case kind:
            raise _unsayable(f"content of type {kind}", "messages")
    return block


def _fit_id(block: _Fields, name: str) -> None:
    if name in block:
        block[name] = fitting_id(block[name], _TOOL_USE_IDS)


def _own_thinking(block: _Fields, name: str, mark: bytes) -> _Fields | None:
    block[name] = unmarked(block.get(name), mark)
    block.pop("cache_control", None)
    return None if block[name] is None else block


def _result_block(values: _BodyValues, item: msgspec.Raw) -> _Fields | None:
    """Cut a block of the result of a tool, which has no result of another one in it."""
    kind = _type_of(listed.MESSAGES_BLOCK.cut(item))
    if kind not in ("text", "image"):
        raise _unsayable(f"results of type {kind}", "messages")
    return _block(values, item)


def _check_image(name: str, url: msgspec.Raw) -> None:
    """Refuse an image that comes neither by HTTPS nor as data."""
    is_data = _DATA.match(url)
    if not is_data and not (
        len(url) <= _MAX_URL_BYTES and _HTTPS.fullmatch(_read(_text, name, url))
    ):
        raise invalid_request(f"{name}: providers get images by https URLs, or as data", name)


class _ProtocolBody(NamedTuple):
    fields: listed.FieldLists
    build: Callable[[_Fields, _BodyValues], None]
    limit: str | None
    """The name of the output limit; None where models differ in it."""


_PROTOCOLS: Mapping[ProviderProtocol, _ProtocolBody] = {
    "OpenAIChat": _ProtocolBody(listed.CHAT, _chat, None),
    "OpenAIResponses": _ProtocolBody(listed.RESPONSES, _responses, "max_output_tokens"),
    "AnthropicMessages": _ProtocolBody(listed.MESSAGES, _messages, "max_tokens"),
}


def _required(fields: _Fields, name: str) -> msgspec.Raw:
    value: msgspec.Raw | None = fields.get(name)
    if value is None:
        raise invalid_request(f"{name}: is required", name)
    return value


def _is_web_search(item: msgspec.Raw) -> bool:
    return _type_of(listed.RESPONSES_CHOICE.cut(item)).startswith(_WEB_SEARCH)


def _type_of(fields: _Fields) -> str:
    """Return the type of an object; empty without any."""
    value = fields.get("type")
    if value is None:
        return ""
    if len(value) > _MAX_TYPE_BYTES:
        raise invalid_request(f"type: has more than {counted(_MAX_TYPE_BYTES, 'byte')}", "type")
    kind: str = _read(_text, "type", value)
    return kind


def _read(decoder: msgspec.json.Decoder[Any], name: str, value: msgspec.Raw) -> Any:
    try:
        return decode(decoder, value)
    except msgspec.ValidationError as error:
        raise invalid_request(f"{name}: {error}", name) from None


def _unsayable(what: str, name: str | None = None) -> RequestError:
    return invalid_request(
        f"{what}: providers outside the cluster cannot be asked for this", name or what
    )
