"""The OpenAPI description of the gateway, made from its paths and the fields that it reads."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from tessera.gateway.bodies.parsing import RequestFields
from tessera.gateway.paths import PATHS, PathItem

FILE = "docs/reference/gateway-openapi.json"
_ERROR = {"$ref": "#/components/schemas/Error"}
_TEXT = {"type": "string"}
_MESSAGES = {"messages": {"type": "array", "items": {"type": "object"}}}
_RERANK = {"query": _TEXT, "documents": {"type": "array", "items": _TEXT}}
# What an engine requires, beyond the model.
_REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": _MESSAGES,
    "/v1/completions": {"prompt": {"type": ["string", "array"]}},
    "/v1/responses": {"input": {"type": ["string", "array"]}},
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": _MESSAGES,
    "/v1/embeddings": {"input": {"type": ["string", "array"]}},
    "/detokenize": {"tokens": {"type": "array", "items": {"type": "integer"}}},
    "/rerank": _RERANK,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
}
_BODY = (
    "The gateway reads these fields; the engine gets them and all others as they were sent. Of a "
    "model that several tenants may use, only the fields that docs/reference/paths.md lists pass."
)
_ERRORS = {
    400: "The request is invalid; `param` names the field.",
    401: "The key is missing, unknown, revoked or expired.",
    403: "The service sleeps, and requests of this tenant do not wake it; or its charges have a "
    "limit, and no PriceList has a price of the model.",
    404: "The model is unknown, or this key may not use it; or its engine has no such path.",
    405: "Another method is taken; `Allow` names it.",
    408: "The headers or the body came too slowly.",
    413: "The body is too large.",
    415: "The body is encoded.",
    422: "The engine cannot process the request.",
    429: "A limit is reached, the tenant's queue is full, or there is no room for a sheddable "
    "request; see `Retry-After`. With `x-should-retry: false` no money is left.",
    431: "The headers are too large.",
    502: "The engine failed.",
    503: "No replica can take the request now; see `Retry-After`.",
    504: "The engine sent nothing for too long.",
}
_OF_ENGINES = (408, 413, 415, 422, 429, 502, 503, 504)


def document() -> dict[str, Any]:
    """Return the description."""
    paths: dict[str, Any] = {path: {"post": _operation(item)} for path, item in PATHS.items()}
    name = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    paths["/v1/models"] = {"get": _own("The models that the key may use.", "Models")}
    paths["/v1/models/{model}"] = {
        "get": {**_own("One of these models.", "Model"), "parameters": [name]}
    }
    paths["/v1/budget"] = {
        "get": _own("What limits of charges leave to the key's owner.", "Budget")
    }
    answer = {"200": {"description": "It does.", **_json({})}}
    not_ready = {"503": {"description": "It does not.", **_json({})}}
    for path, what, responses in (
        ("/healthz", "Whether the process runs.", answer),
        ("/readyz", "Whether it takes requests.", answer | not_ready),
    ):
        paths[path] = {"get": {"summary": what, "security": [], "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tessera gateway",
            "version": "v1",
            "description": "OpenAI's API, of all models that an API key may use.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {
                f"Error{status}": {"description": meaning, **_json(_ERROR)}
                for status, meaning in _ERRORS.items()
            },
            "schemas": _schemas(),
        },
    }


def text() -> str:
    """Return the file."""
    return json.dumps(document(), indent=2) + "\n"


def _operation(item: PathItem) -> dict[str, Any]:
    body = {"required": True, **_json(_body_schema(item))}
    answer = _json({"type": "object"})
    if item.stream is not None:
        answer["content"]["text/event-stream"] = {}
    return {"requestBody": body, **_responses(answer, (400, 401, 403, 404, 405, 431, *_OF_ENGINES))}


def _body_schema(item: PathItem) -> dict[str, Any]:
    fields = item.decoder.type
    assert issubclass(fields, RequestFields)  # noqa: S101 - of all paths
    required = _REQUIRED.get(item.path, {})
    properties = {
        field.encode_name: _field_schema(field.type)
        for field in msgspec.structs.fields(fields)
        if field.type is not msgspec.Raw
    }
    return {
        "type": "object",
        "description": _BODY,
        "properties": {**properties, **required},
        "required": ["model", *required],
    }


def _field_schema(field: Any) -> Any:
    (schema,), components = msgspec.json.schema_components([field])
    # Only one field is an object, whose own fields stand here as well.
    for option in schema.get("anyOf", ()):
        if "$ref" in option:
            option.update(components[option.pop("$ref").rpartition("/")[2]])
            del option["title"]
    return schema


def _own(summary: str, schema: str) -> dict[str, Any]:
    answer = _json({"$ref": f"#/components/schemas/{schema}"})
    return {"summary": summary, **_responses(answer, (401, 404, 405, 408, 429, 431, 503))}


def _responses(answer: dict[str, Any], statuses: tuple[int, ...]) -> dict[str, Any]:
    errors = {
        str(status): {"$ref": f"#/components/responses/Error{status}"}
        for status in sorted(statuses)
    }
    return {"responses": {"200": {"description": "The answer.", **answer}, **errors}}


def _json(schema: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _schemas() -> dict[str, Any]:
    def an_object(**properties: Any) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": list(properties)}

    optional_text = {"type": ["string", "null"]}
    code = {"type": ["string", "integer", "null"]}
    error = an_object(message=_TEXT, type=_TEXT, param=optional_text, code=code)
    model = an_object(
        id=_TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=_TEXT
    )
    # Absent while no engine of the model is known.
    model["properties"]["max_model_len"] = {"type": "integer"}
    models = {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}
    # Amounts are decimal numbers.
    texts = ("budget", "limit", "scope", "window", "amount", "spent", "left", "currency")
    limit = an_object(**dict.fromkeys(texts, _TEXT), ends_at={"type": "integer"})
    return {
        "Budget": an_object(object={"const": "list"}, data={"type": "array", "items": limit}),
        "Error": an_object(error=error),
        "Model": model,
        "Models": an_object(object={"const": "list"}, data=models),
    }
