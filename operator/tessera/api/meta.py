"""Shared parts of all resource types: base model, scalars with a unit, conditions."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from tessera.api.text import one_line

GROUP = "tessera.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class Wire(BaseModel):
    """Base of all API models: camelCase on the wire, frozen, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def rule(expression: str, message: str, field: str | None = None) -> dict[str, str]:
    """Return one CEL rule of `x-kubernetes-validations`; violations are reported under `field`."""
    validation = {"rule": expression, "message": message}
    return validation if field is None else validation | {"fieldPath": field}


def name_rule(pattern: str, message: str) -> dict[str, Any]:
    """Return the CEL rule of `metadata.name`; it applies to new objects only."""
    # The status of an object that is older than the rule can still be written.
    expression = f"oldSelf.hasValue() || self.metadata.name.matches('{pattern}')"
    return rule(expression, message) | {"optionalOldSelf": True}


def with_rules(*rules: dict[str, Any]) -> dict[str, Any]:
    """Return a `json_schema_extra` that carries CEL rules into the CRD."""
    return {"x-kubernetes-validations": list(rules)}


def rules_config(*rules: dict[str, Any]) -> ConfigDict:
    """Return the `model_config` of a type whose schema carries CEL rules."""
    return ConfigDict(json_schema_extra=with_rules(*rules))


def text_default(default: str) -> Any:
    """Return a default in the spelling of the API; the schema shows the same spelling."""
    return Field(default=default, validate_default=True)


_DURATION = r"^([0-9]{1,6}h)?([0-9]{1,8}m)?([0-9]{1,9}s)?([0-9]{1,12}ms)?$"
_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def _parse_duration(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value or not re.match(_DURATION, value):
        raise ValueError(f"{value!r} is not a duration such as 90s, 5m or 33ms")
    milliseconds = sum(
        int(count) * _UNITS[unit] for count, unit in re.findall(r"([0-9]+)(ms|[hms])", value)
    )
    return timedelta(milliseconds=milliseconds)


def format_duration(value: timedelta) -> str:
    """Return the shortest spelling in one unit: 60s stays 60s, 90 minutes become 90m."""
    milliseconds = round(value.total_seconds() * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    seconds = milliseconds // 1000
    return f"{seconds // 60}m" if seconds % 60 == 0 and seconds > 300 else f"{seconds}s"


# A span of time, written as `90s`, `5m`, `1h30m` or `33ms`.
Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "minLength": 2, "maxLength": 32}),
]


@dataclass(frozen=True, slots=True, eq=False)
class _RuledCheck:
    """A check of a value; the CRD has the same one as a rule."""

    check: Callable[[Any], Any]
    validation: dict[str, str]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema) | with_rules(self.validation)


def _bound_text(limit: timedelta) -> str:
    """Return a bound as a user writes it."""
    hours = limit / timedelta(hours=1)
    return f"{hours:g}h" if hours >= 1 else format_duration(limit)


def between(lowest: timedelta | None, highest: timedelta) -> _RuledCheck:
    """Return the annotation of a duration with two bounds."""
    bounds = [] if lowest is None else [(">=", "at least", _bound_text(lowest))]
    bounds.append(("<=", "at most", _bound_text(highest)))
    limits = (f"duration(self) {sign} duration('{text}')" for sign, _, text in bounds)
    expression = " && ".join((f"self.matches('{_DURATION}')", "self != ''", *limits))
    words = " and ".join(f"{words} {text}" for _, words, text in bounds)

    def check(value: timedelta) -> timedelta:
        if value > highest:
            raise ValueError(f"must be at most {_bound_text(highest)}")
        if lowest is not None and value < lowest:
            raise ValueError(f"must be at least {_bound_text(lowest)}")
        return value

    message = f"must be a duration of {words}, written like 33ms, 90s or 1h30m"
    return _RuledCheck(check, rule(expression, message))


def at_most(limit: timedelta) -> _RuledCheck:
    """Return the annotation of a duration that bounds it."""
    return between(None, limit)


def matching(pattern: str, words: str) -> _RuledCheck:
    """Return the annotation of a text that matches; `words` say how to write it."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(words)
        return value

    return _RuledCheck(check, rule(f"self.matches('{pattern}')", words))


# Names of models as clients send them, and as prices, grants and limits have them. Those of some
# providers have @, + or ~, such as @cf/openai/gpt-oss-120b and claude-sonnet-4-5@20250929.
MODEL_NAME = "[A-Za-z0-9@~][A-Za-z0-9._:/@+~-]*"
LOWER_MODEL_NAME = "[a-z0-9@~][a-z0-9._:/@+~-]*"

# Digits before and after the point.
_MAX_DIGITS, _DECIMALS = 15, 9


def _pattern(digits: int) -> str:
    return rf"^[0-9]{{1,{digits}}}(\.[0-9]{{1,{_DECIMALS}}})?$"


def _schema(digits: int) -> WithJsonSchema:
    length = digits + 1 + _DECIMALS
    return WithJsonSchema({"type": "string", "pattern": _pattern(digits), "maxLength": length})


def _below(digits: int) -> AfterValidator:
    """Return the check that the CRD makes by its pattern: what others wrote may be any number."""

    def check(value: Decimal) -> Decimal:
        # A number of a million digits after the point would be written with all of them.
        if not 0 <= value < 10**digits or int(value.as_tuple().exponent) < -_DECIMALS:
            raise ValueError(
                f"must be a number from 0 to below {10**digits:,} with at most {_DECIMALS} digits "
                "after the point"
            )
        return value

    return AfterValidator(check)


_WRITTEN_OUT = PlainSerializer(lambda value: format(value, "f"), return_type=str)
# A decimal number as a string, which keeps it exact where a float would round.
Amount = Annotated[Decimal, _below(_MAX_DIGITS), _WRITTEN_OUT, _schema(_MAX_DIGITS)]
# The largest one.
MAX_AMOUNT = Decimal(10**_MAX_DIGITS) - Decimal(1).scaleb(-_DECIMALS)
# A price of a GPU hour, a request or a million tokens, of which many together are an Amount.
UnitPrice = Annotated[Amount, _below(9), _schema(9)]
# An amount that may be below 0, such as what is lost.
SignedAmount = Annotated[Decimal, _WRITTEN_OUT]


# A CEL string has no escape of a dot.
_NUMBER = _pattern(_MAX_DIGITS).replace(r"\.", "[.]")


def amount_between(lowest: str, highest: str) -> _RuledCheck:
    """Return the annotation of an Amount with two bounds."""
    message = f"must be a number from {lowest} to {highest}"

    def check(value: Decimal) -> Decimal:
        if not Decimal(lowest) <= value <= Decimal(highest):
            raise ValueError(message)
        return value

    bounds = f"double(self) >= {float(lowest)} && double(self) <= {float(highest)}"
    expression = f"self.matches('{_NUMBER}') && {bounds}"
    return _RuledCheck(check, rule(expression, message))


# A DNS label, as Kubernetes names objects.
DnsLabel = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63),
]

# A DNS name, as Kubernetes names objects of the cluster.
DnsSubdomain = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253
    ),
]

# A name of the IANA time zone database.
TimeZoneName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$", max_length=64)
]

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=316)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


def _plain(value: object) -> object:
    return one_line(value, len(value)) if isinstance(value, str) else value


# Words in a status, some of which are of engines, nodes and tenants: what a terminal executes, and
# what turns the direction of writing, never gets in.
StatusText = Annotated[str, BeforeValidator(_plain)]


# How the sentence on what ends a wait begins.
EXIT = "This ends when"


class Condition(Wire):
    """One aspect of an object's state, with its reason."""

    type: Annotated[str, Field(max_length=63)]
    """Type of the condition in CamelCase."""

    status: Literal["True", "False", "Unknown"]
    """Status of the condition; Unknown until it can be determined."""

    reason: Annotated[str, Field(max_length=63)]
    """Reason for the status, one of a closed set; metrics and logs use the same word."""

    message: Annotated[StatusText, Field(max_length=2048)]
    """Explanation for people: what was observed, with numbers, and what to do."""

    observed_generation: Annotated[int, Field(ge=0)]
    """Generation of the spec that this condition describes."""

    last_transition_time: datetime
    """When the status last changed."""

    waiting_since: datetime | None = None
    """When the wait that the reason says began; absent while nothing waits."""

    @property
    def cause(self) -> str:
        """Return the message without what ends its wait."""
        return self.message.partition(f". {EXIT} ")[0]


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


def find_condition(conditions: Conditions, condition_type: str) -> Condition | None:
    return next((condition for condition in conditions if condition.type == condition_type), None)
