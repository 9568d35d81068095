"""Whether a model of an outside provider can take a request, before anything is reserved for it."""

from dataclasses import dataclass

from tessera.domain.gateway.directory import OutsideModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.routes.reasons import RouteReason


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideRequest:
    """What decides whether a model takes a request."""

    path: str
    input_tokens: int
    """Most tokens of its prompt."""
    has_tools: bool
    has_media: bool
    residency: frozenset[str] | None
    """Regions that its tenant allows; None for all."""


def outside_obstacle(
    request: OutsideRequest, outside: OutsideModel
) -> RequestReason | RouteReason | None:
    """Return why a model cannot take a request; None where it can.

    Nothing is translated: a path of another protocol is not served.
    """
    provider, model = outside.provider.spec, outside.model
    if request.residency is not None and provider.region not in request.residency:
        return RouteReason.RESIDENCY
    if PROTOCOLS.get(request.path) not in provider.protocols:
        return RequestReason.PATH_NOT_SERVED
    if request.has_tools and not model.tools:
        return RouteReason.TOOLS_NOT_TAKEN
    if request.has_media and not model.media:
        return RouteReason.MEDIA_NOT_TAKEN
    # An answer has one token at least.
    is_too_long = request.input_tokens >= model.max_context_tokens
    return RequestReason.CONTEXT_TOO_LONG if is_too_long else None
