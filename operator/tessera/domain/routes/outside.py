"""Whether a model of an outside provider can take a request, before anything is reserved for it."""

from collections.abc import Collection

from tessera.domain.gateway.directory import OutsideModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.routes.reasons import RouteReason


def may_leave(residency: Collection[str] | None, region: str | None) -> bool:
    """Return whether requests of a tenant may go to a region; `residency` is None for all."""
    return residency is None or region in residency


def outside_obstacle(
    outside: OutsideModel,
    *,
    path: str,
    input_tokens: int,
    has_tools: bool,
    has_media: bool,
    residency: frozenset[str] | None,
) -> RequestReason | RouteReason | None:
    """Return why a model cannot take a request, whose prompt has at most so many tokens.

    None where it can. `residency` has the regions that its tenant allows, and None for all. Nothing
    is translated: a path of another protocol is not served.
    """
    provider, model = outside.provider.spec, outside.model
    if not may_leave(residency, provider.region):
        return RouteReason.RESIDENCY
    if PROTOCOLS.get(path) not in provider.protocols:
        return RequestReason.PATH_NOT_SERVED
    if has_tools and not model.tools:
        return RouteReason.TOOLS_NOT_TAKEN
    if has_media and not model.media:
        return RouteReason.MEDIA_NOT_TAKEN
    # An answer has one token at least.
    is_too_long = input_tokens >= model.max_context_tokens
    return RequestReason.CONTEXT_TOO_LONG if is_too_long else None
