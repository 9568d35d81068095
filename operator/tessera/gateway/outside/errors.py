"""What the errors of outside providers mean: their bodies are read first, then their statuses.

A code or a type decides before a text does. Texts are few, and each is the beginning of a message
that its provider is known to send: what follows may repeat the prompt, which decides nothing.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any, NamedTuple

import msgspec

# Larger bodies repeat what was sent, and are judged by their status.
MAX_ERROR_BYTES = 2**16
_MAX_RETRY_SECONDS = 60.0
# Objects of an error that are looked at, items of a list in it, and letters of a text.
_MAX_OBJECTS, _MAX_ITEMS, _MAX_TEXT, _MAX_WORD = 32, 8, 300, 100


class ErrorKind(Enum):
    """What an error means; where a body has codes of several, the first one counts."""

    CONTEXT = auto()
    """The prompt is too long."""
    FILTER = auto()
    """A content filter refused it."""
    NO_CREDIT = auto()
    """The account has no credit left, or reached a limit of spending."""
    BAD_KEY = auto()
    MODEL = auto()
    """There is no such model, or not for this key."""
    KEY_PERMISSION = auto()
    """The key lacks a permission, be it for this model or for all."""
    OVERLOADED = auto()
    RATE = auto()
    """The account sends too much at a time."""
    REFUSED = auto()
    """The request is at fault for anything else."""
    FAILED = auto()


class _ErrorText(NamedTuple):
    text: str
    is_upstream: bool
    """Another provider said it to this one."""


class ProviderError(NamedTuple):
    """An error of a provider, without a word of its text."""

    kind: ErrorKind
    status: int = 0
    """Of the response, or else the one that the body names; 0 where neither has one."""
    limit: int | None = None
    """Tokens that the model takes at most, where the error says so."""
    needed: int | None = None
    """Tokens of the request, where the error says so."""
    parameters: tuple[str, ...] = ()
    """Names in it that may be those of fields of the request."""
    retry_seconds: float = 0.0
    """How long the body asks to wait; 0 where it does not."""


# Codes and types, in lower case, that have one meaning wherever they stand.
_CODES: Mapping[str, ErrorKind] = {
    code: kind
    for kind, codes in {
        # https://developers.openai.com/api/docs/guides/error-codes,
        # https://docs.claude.com/en/api/errors, https://console.groq.com/docs/errors
        ErrorKind.CONTEXT: """
            context_length_exceeded request_too_large exceed_context_size_error
        """,
        # https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter,
        # https://help.aliyun.com/zh/model-studio/error-code (DataInspectionFailed),
        # https://github.com/MoonshotAI/kimi-cli/issues/1671 (content_filter),
        # https://github.com/BeehiveInnovations/pal-mcp-server/issues/178 (invalid_prompt)
        ErrorKind.FILTER: """
            content_filter content_policy_violation responsibleaipolicyviolation invalid_prompt
            data_inspection_failed datainspectionfailed
        """,
        # https://help.openai.com/en/articles/6614457-troubleshooting-api-usage-and-spend-limits,
        # https://docs.claude.com/en/api/errors (billing_error),
        # https://platform.moonshot.ai/docs/api/errors (exceeded_current_quota_error),
        # https://help.aliyun.com/zh/model-studio/error-code (Arrearage),
        # https://console.groq.com/docs/spend-limits (blocked_api_access),
        # https://github.com/modelscope/modelscope/issues/1691 (MiniMax)
        ErrorKind.NO_CREDIT: """
            insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded
            project_spend_limit_exceeded organization_usage_limit_exceeded billing_not_active
            billing_hard_limit_reached billing_error enforced_spend_limit_reached
            exceeded_current_quota_error arrearage blocked_api_access insufficient_balance_error
        """,
        # https://ai.google.dev/gemini-api/docs/troubleshooting (API_KEY_INVALID, UNAUTHENTICATED),
        # https://docs.aws.amazon.com/bedrock/latest/userguide/troubleshooting-api-error-codes.html
        ErrorKind.BAD_KEY: """
            invalid_api_key authentication_error account_deactivated api_key_invalid unauthenticated
            invalid_authentication_error incorrect_api_key_error unrecognizedclientexception
            invalidsignatureexception expiredtokenexception
        """,
        # https://console.groq.com/docs/deprecations (model_decommissioned),
        # https://console.groq.com/docs/model-permissions,
        # https://platform.moonshot.ai/docs/api/errors (resource_not_found_error)
        ErrorKind.MODEL: """
            model_not_found not_found_error model_decommissioned deploymentnotfound not_found
            resource_not_found_error resourcenotfoundexception invalid_model
            model_permission_blocked_org model_permission_blocked_project
        """,
        # https://console.groq.com/docs/flex-processing (capacity_exceeded),
        # https://ai.google.dev/gemini-api/docs/troubleshooting (UNAVAILABLE)
        ErrorKind.OVERLOADED: """
            overloaded_error engine_overloaded_error server_is_overloaded slow_down unavailable
            serviceunavailableexception modelnotreadyexception capacity_exceeded
            service_tier_capacity_exceeded
        """,
        # https://openrouter.ai/docs/api_reference/errors-and-debugging (its budget in flight)
        ErrorKind.RATE: """
            rate_limit_reached_error throttlingexception servicequotaexceededexception
            in_flight_budget_exhausted
        """,
    }.items()
    for code in codes.split()
}
# Beginnings of messages, where the code beside them has several meanings.
_TEXTS: tuple[tuple[ErrorKind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for kind, *patterns in (
        (
            ErrorKind.CONTEXT,
            # Anthropic: https://github.com/anthropics/claude-code/issues/11281, .../25481
            r"prompt is too long(?:: (?P<needed>\d{1,9}) tokens > (?P<limit>\d{1,9}) maximum)?",
            r"input length and `max_tokens` exceed context limit: ",
            # OpenAI, vLLM, DeepSeek, Groq; OpenRouter: https://github.com/earendil-works/pi/issues/6378
            r"This (?:model|endpoint)'s maximum context length is (?P<limit>\d{1,9}) tokens[.,]"
            r"(?: however, (?:your messages resulted in|you requested)(?: about)?"
            r" (?P<needed>\d{1,9}) tokens)?",
            r"Your input exceeds the context window of this model",
            r"Please reduce the length of the messages or completion",
            # SGLang: https://github.com/musistudio/claude-code-router/issues/1799
            r"Requested token count exceeds the model's maximum context length of "
            r"(?P<limit>\d{1,9}) tokens(?:\. You requested a total of (?P<needed>\d{1,9}) tokens)?",
            # Google: https://github.com/google-gemini/gemini-cli/issues/4118
            r"The input token count \(?(?P<needed>\d{1,9})\)? exceeds the maximum number of tokens "
            r"allowed \(?(?P<limit>\d{1,9})\)?",
            # xAI: https://github.com/cline/cline/issues/3120
            r"This model's maximum prompt length is (?P<limit>\d{1,9}) but the request contains "
            r"(?P<needed>\d{1,9}) tokens",
            # Kimi: https://github.com/MoonshotAI/kimi-cli/issues/2011
            r"(?:Invalid request: )?Your request exceeded model token limit ?: (?P<limit>\d{1,9})"
            r"(?: \(requested: (?P<needed>\d{1,9})\))?",
            # Mistral: https://portkey.ai/error-library/context-length-exceeded-error-13710000
            r"Prompt contains (?P<needed>\d{1,9}) tokens.{0,60} too large for model with "
            r"(?P<limit>\d{1,9}) maximum context length",
            # Amazon Bedrock: https://github.com/aws-samples/bedrock-chat/issues/95
            r"Input is too long for requested model",
            # Cohere: https://docs.cohere.com/v1/reference/errors
            r"too many tokens: (?:total number of tokens in the prompt cannot exceed |size limit)",
            # MiniMax: https://github.com/MiniMax-AI/MiniMax-M2/issues/119
            r"invalid params, context window exceeds limit",
            # Z.ai: https://docs.z.ai/api-reference/api-code (1261)
            r"Prompt exceeds max length",
            # OpenAI and Groq, of a request above the tokens of a whole minute:
            # https://developers.openai.com/api/docs/guides/error-codes
            r"Request too large for ",
            # Together: https://portkey.ai/error-library/input-validation-error-10151
            r"Input validation error: `?inputs`? tokens \+ `?max_new_tokens`? must be <= "
            r"(?P<limit>\d{1,9})",
        ),
        (
            ErrorKind.FILTER,
            # Anthropic: https://github.com/anthropics/claude-code/issues/25541
            r"Output blocked by content filtering policy",
            # xAI: https://github.com/UKGovernmentBEIS/inspect_ai/pull/2267
            r"Content violates usage guidelines",
            # DeepSeek: https://github.com/deepseek-ai/awesome-deepseek-integration/issues/13
            r"Content Exists Risk\Z",
            # Z.ai: https://docs.z.ai/api-reference/api-code (1301)
            r"System detected potentially unsafe or sensitive content in input or generation",
        ),
        (
            ErrorKind.NO_CREDIT,
            # Anthropic: https://docs.claude.com/en/api/rate-limits
            r"Your credit balance is too low to access the (?:Anthropic|Claude) API",
            r"You have reached your specified (?:workspace )?API usage limits",
            # DeepSeek: https://api-docs.deepseek.com/quick_start/error_codes
            r"Insufficient Balance\Z",
            # xAI: https://github.com/continuedev/continue/issues/10373
            r"Your team [\w-]{1,64} has either used all available credits or reached its monthly "
            r"spending limit",
            # Z.ai: https://github.com/zai-org/GLM-5/issues/148, https://github.com/zai-org/feedback/issues/789
            r"(?:\[1113\]\[)?Insufficient balance or no resource package",
            # xAI: https://github.com/continuedev/continue/issues/12670
            r"Your newly created teams? doesn't have any credits",
            # MiniMax: https://github.com/MiniMax-AI/MiniMax-M2/issues/62
            r"insufficient balance \(1008\)",
        ),
        (
            ErrorKind.BAD_KEY,
            # Google: https://ai.google.dev/gemini-api/docs/troubleshooting
            r"API key not valid\. Please pass a valid API key",
            # https://github.com/googleapis/python-genai/issues/1764
            r"Your API key was reported as leaked",
            # xAI: https://github.com/continuedev/continue/issues/10778
            r"Incorrect API key provided",
        ),
        # DeepSeek: https://github.com/langbot-app/LangBot/issues/1643
        (ErrorKind.MODEL, r"Model Not Exist\Z"),
        # Z.ai: https://docs.z.ai/api-reference/api-code (1211)
        (ErrorKind.MODEL, r"Model does not exist, please check the model code"),
        (
            ErrorKind.REFUSED,
            # OpenRouter, of the most that this request may cost:
            # https://github.com/can1357/oh-my-pi/issues/9569
            r"This request requires more credits, or fewer max_tokens",
            # https://github.com/anomalyco/opencode/issues/12219
            r"Prompt tokens limit exceeded: ",
        ),
    )
    for pattern in patterns
)
# Kinds that concern the requests of all tenants.
_ACCOUNT = (ErrorKind.NO_CREDIT, ErrorKind.BAD_KEY)
# A status of 403 is not here: firewalls and filters have it for what a request says.
_STATUSES: Mapping[int, ErrorKind] = {
    401: ErrorKind.BAD_KEY,
    402: ErrorKind.NO_CREDIT,
    404: ErrorKind.MODEL,
    # Amazon Bedrock has 408 and 424 for a model that took too long or failed.
    408: ErrorKind.FAILED,
    410: ErrorKind.MODEL,
    413: ErrorKind.CONTEXT,
    424: ErrorKind.FAILED,
    429: ErrorKind.RATE,
    # Anthropic's, for too many requests of all its customers.
    529: ErrorKind.OVERLOADED,
}
# Types that say no more than a status does, where there is none.
_TYPES: Mapping[str, ErrorKind] = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "tokens"), ErrorKind.RATE),
    **dict.fromkeys(("resource_exhausted", "too_many_requests"), ErrorKind.RATE),
    # What is not permitted is mostly the model.
    **dict.fromkeys(("permission_error", "permissions_error"), ErrorKind.MODEL),
    **dict.fromkeys(("permission_denied", "accessdeniedexception"), ErrorKind.MODEL),
    **dict.fromkeys(("invalid_request_error", "invalid_argument"), ErrorKind.REFUSED),
    **dict.fromkeys(("validationexception", "badrequesterror"), ErrorKind.REFUSED),
    "string_above_max_length": ErrorKind.REFUSED,
}
# MiniMax's `base_resp.status_code`: https://platform.minimax.io/docs/api-reference/errorcode
_STATUS_CODES: Mapping[int, ErrorKind] = {
    1002: ErrorKind.RATE,
    1004: ErrorKind.BAD_KEY,
    1008: ErrorKind.NO_CREDIT,
    1026: ErrorKind.FILTER,
    1027: ErrorKind.FILTER,
    2049: ErrorKind.BAD_KEY,
}
# Where errors have their parts: all but that of `response`, whose other fields are the request's.
_PARTS = (
    *("error", "errors", "innererror", "metadata", "details", "detail", "message"),
    *("fieldViolations", "raw", "base_resp"),
)
_WORDS = ("code", "type", "status", "reason", "__type", "error_type")
_MESSAGES = ("message", "Message", "error", "detail", "raw")
# Fields that hold a prompt, of those whose text may be too long.
_PROMPT = re.compile(
    r"content|input|prompt|(?:messages|input)\[\d+\]\.(?:content|output)(?:\[\d+\]\.text)?"
)
# What is not permitted may say that it is for the key.
_KEY = re.compile(r"(?:(?:Your|This|The) )?(?:API )?key\b", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_]\w{0,63}")
# Anthropic names the field first: `thinking.budget_tokens: Input should be ...`.
_NAMED_FIRST = re.compile(r"([a-z_]{1,64})(?:\.[\w.]{1,100})?: ")
_STATUS = re.compile(r"[45]\d\d")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_error(body: bytes, status: int = 0) -> ProviderError:
    """Return what an error means, whatever its body is; `status` is that of a response that is no
    success.
    """
    words, texts, parameters, retry_seconds = list[str](), list[_ErrorText](), list[str](), 0.0
    codes, has_upstream = list[ErrorKind](), False
    for fields, is_upstream in _objects(_decoded(body)):
        kinds, own_words = _code_kinds(fields)
        codes += [kind for kind in kinds if not (is_upstream and kind in _ACCOUNT)]
        words += own_words
        texts += [
            _ErrorText(text.lstrip()[:_MAX_TEXT], is_upstream or name == "raw")
            for name in _MESSAGES
            if isinstance(text := fields.get(name), str)
        ]
        has_upstream = has_upstream or is_upstream or fields.get("raw") is not None
        parameters += _parameters(fields)
        retry_seconds = retry_seconds or _retry_delay(fields)
    numbers = (int(word) for word in words if _STATUS.fullmatch(word))
    status = status or next(numbers, 0)
    text_kind, tokens = _text_meaning(texts)
    if codes:
        kind = min(codes, key=lambda each: each.value)
    else:
        kind = text_kind or _general_kind(status, words, parameters)
        if has_upstream and text_kind is None and kind in _ACCOUNT:
            # It passes on the status that it got itself.
            kind = ErrorKind.FAILED
        names_key = any(_KEY.match(text) for text, is_upstream in texts if not is_upstream)
        if kind is ErrorKind.MODEL and text_kind is None and status in (0, 403) and names_key:
            kind = ErrorKind.KEY_PERMISSION
    limit, needed = tokens if text_kind is kind else (None, None)
    return ProviderError(
        kind=kind,
        status=status,
        limit=limit,
        needed=needed,
        parameters=(
            *parameters,
            *(named[1] for text, _ in texts if (named := _NAMED_FIRST.match(text))),
        )[:_MAX_OBJECTS],
        retry_seconds=retry_seconds,
    )


def named_field(names: Sequence[str], body: bytes) -> str | None:
    """Return the first of these names that a request has as a field; None for none."""
    try:
        fields = _fields.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return next((name for name in names if name in fields), None)


def header_retry_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """Return for how long a provider asks to wait, within bounds; 0 where it does not."""
    milliseconds, text = headers.get("Retry-After-Ms", ""), headers.get("Retry-After", "")
    if _SECONDS.fullmatch(milliseconds):
        seconds = float(milliseconds) / 1000
    elif _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        seconds = _seconds_until(text, now)
    return min(max(seconds, 0.0), _MAX_RETRY_SECONDS)


def _seconds_until(text: str, now: datetime) -> float:
    """Return the seconds until a date of HTTP; 0 where it is none."""
    try:
        moment = parsedate_to_datetime(text[:_MAX_WORD])
    except (ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=now.tzinfo)
    return (moment - now) / timedelta(seconds=1)


def _decoded(body: bytes | str) -> Any:
    """Return what a body says: its text, where it is no JSON."""
    if len(body) > MAX_ERROR_BYTES:
        return None
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"message": text}


def _objects(value: Any) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Yield the objects in which an error may say what it means, from outside to inside, and
    whether they are those of another provider, behind this one.
    """
    waiting = deque[tuple[Any, bool]]([(value, False)])
    for _ in range(_MAX_OBJECTS):
        if not waiting:
            return
        each, is_upstream = waiting.popleft()
        match each:
            case dict() as fields:
                yield fields, is_upstream
                waiting.extend(
                    (fields[name], is_upstream or name == "raw")
                    for name in _PARTS
                    if name in fields
                )
                # OpenRouter has the body of the provider behind it as a text, Mistral had its list.
                if isinstance(raw := fields.get("raw"), str):
                    waiting.append((_decoded(raw), True))
                elif isinstance(text := fields.get("message"), str) and text[:9] == '{"detail"':
                    waiting.append((_only(_decoded(text), "detail"), is_upstream))
                waiting.append((_only(fields.get("response"), "error"), is_upstream))
                if isinstance(choices := fields.get("choices"), list):
                    waiting.extend(
                        (_only(choice, "error"), is_upstream) for choice in choices[:_MAX_ITEMS]
                    )
            case [*items]:
                waiting.extend((item, is_upstream) for item in items[:_MAX_ITEMS])
            case _:
                pass


def _only(value: Any, name: str) -> Any:
    return {name: value.get(name)} if isinstance(value, dict) else None


def _code_kinds(fields: Mapping[str, Any]) -> tuple[list[ErrorKind], list[str]]:
    """Return what the codes of an object mean for themselves, and all of its codes and types."""
    words = [word for name in _WORDS if (word := _word(fields.get(name)))]
    kinds = [_CODES[word] for word in words if word in _CODES]
    if "flagged_input" in fields:
        # Moderation of OpenRouter, whose status says no more than that it is refused.
        kinds.append(ErrorKind.FILTER)
    param, code = fields.get("param"), fields.get("status_code")
    if "string_above_max_length" in words and isinstance(param, str) and _PROMPT.fullmatch(param):
        kinds.append(ErrorKind.CONTEXT)
    if isinstance(code, int) and code in _STATUS_CODES:
        kinds.append(_STATUS_CODES[code])
    return kinds, words


def _word(value: Any) -> str:
    """Return a code in lower case, without the name of its service."""
    match value:
        case str():
            return value[:_MAX_WORD].rpartition("#")[2].lower()
        case bool():
            return ""
        case int():
            return str(value) if 0 <= value < 1000 else ""
        case _:
            return ""


def _parameters(fields: Mapping[str, Any]) -> list[str]:
    """Return the names of fields of the request that an error is about."""
    names = [fields.get("param"), fields.get("field")]
    match fields.get("loc"):
        case ["body", str() as name, *_] | [str() as name, *_]:
            names.append(name)
        case _:
            pass
    matches = (_NAME.match(name) for name in names if isinstance(name, str))
    return [matched[0] for matched in matches if matched is not None]


def _retry_delay(fields: Mapping[str, Any]) -> float:
    """Return the seconds of Google's RetryInfo; 0 in other objects."""
    delay = fields.get("retryDelay")
    if not isinstance(delay, str) or not delay.endswith("s") or not _SECONDS.fullmatch(delay[:-1]):
        return 0.0
    return min(float(delay[:-1]), _MAX_RETRY_SECONDS)


def _text_meaning(
    texts: list[_ErrorText],
) -> tuple[ErrorKind | None, tuple[int | None, int | None]]:
    """Return what texts mean, and the tokens that the model takes and that were sent."""
    for kind, pattern in _TEXTS:
        for text, is_upstream in texts:
            if is_upstream and kind in _ACCOUNT:
                continue
            if (matched := pattern.match(text)) is not None:
                tokens = matched.groupdict()
                return kind, (_count(tokens.get("limit")), _count(tokens.get("needed")))
    return None, (None, None)


def _general_kind(status: int, words: list[str], parameters: list[str]) -> ErrorKind:
    """Return the kind of an error by its status, or by its type where it has none."""
    if status in _STATUSES:
        return _STATUSES[status]
    type_kind = next((_TYPES[word] for word in words if word in _TYPES), ErrorKind.FAILED)
    if status == 403:
        # Together has it for a prompt and `max_tokens` above the context:
        # https://docs.together.ai/docs/error-codes
        is_too_long = "max_tokens" in parameters
        refused = type_kind if type_kind is ErrorKind.MODEL else ErrorKind.REFUSED
        return ErrorKind.CONTEXT if is_too_long else refused
    if status:
        return ErrorKind.REFUSED if 400 <= status < 500 else ErrorKind.FAILED
    return type_kind


def _count(text: str | None) -> int | None:
    return None if text is None else int(text)
