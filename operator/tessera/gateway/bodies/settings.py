"""What a target of a route changes in the bodies of its requests."""

from collections.abc import Callable, Mapping
from typing import Any

from tessera.api.model_route import TargetSettings
from tessera.gateway.bodies.json_values import with_fields
from tessera.gateway.bodies.parsing import RequestFields
from tessera.gateway.refusals import RequestError, invalid_request

_CHAT, _RESPONSES, _MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
_COMPLETIONS = "/v1/completions"
# Chat templates differ in which of the two they read.
_THINKING = ("enable_thinking", "thinking")


def with_settings(path: str, fields: RequestFields, body: bytes, settings: TargetSettings) -> bytes:
    """Return a body as the settings of a target have it, the rest byte by byte as it came.

    Raises RequestError where the path has no field for one of them, so that the target is skipped.
    """
    changes: dict[str, Any] = {}
    if settings.max_output_tokens is not None:
        changes |= _capped(fields, settings.max_output_tokens)
    arguments: dict[str, Any] = {}
    if settings.thinking is not None:
        arguments |= dict.fromkeys(_THINKING, settings.thinking)
    if settings.reasoning_effort is not None:
        effort = settings.reasoning_effort.lower()
        if path == _MESSAGES:
            arguments["reasoning_effort"] = effort
        else:
            changes |= _said(_EFFORTS, path, "reasoningEffort")(effort)
    if arguments:
        if path not in (_CHAT, _RESPONSES, _MESSAGES):
            raise _unsayable(path, "thinking")
        changes["chat_template_kwargs"] = arguments
    if settings.response_schema is not None:
        changes |= _said(_SCHEMAS, path, "responseSchema")(settings.response_schema)
    return with_fields(body, changes) if changes else body


def _capped(fields: RequestFields, most: int) -> dict[str, Any]:
    names = getattr(fields, "output_fields", ())
    changes = fields.changes(most, None, yields=False)
    return {name: value for name, value in changes.items() if name in names}


_EFFORTS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    _CHAT: lambda effort: {"reasoning_effort": effort},
    _RESPONSES: lambda effort: {"reasoning": {"effort": effort}},
}


def _response_format(schema: Any) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _text_format(schema: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "answer", "schema": schema}}}


_SCHEMAS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    _CHAT: _response_format,
    _COMPLETIONS: _response_format,
    _RESPONSES: _text_format,
}


def _said(
    changes: Mapping[str, Callable[[Any], dict[str, Any]]], path: str, setting: str
) -> Callable[[Any], dict[str, Any]]:
    if path not in changes:
        raise _unsayable(path, setting)
    return changes[path]


def _unsayable(path: str, setting: str) -> RequestError:
    return invalid_request(f"{path} has no field for set.{setting} of this target.")
