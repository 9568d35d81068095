"""Why a target of a route gets a request, or is skipped: the words of headers and records."""

from enum import StrEnum


class RouteReason(StrEnum):
    """Closed set of what routes say besides the reasons of requests."""

    # Why a target is chosen.
    RULE_MATCHED = "RuleMatched"
    """It is the first whose `when` holds."""
    LAST_TARGET = "LastTarget"
    """No target before it takes such requests."""
    WEIGHTED = "Weighted"
    """The conversation falls to it by its weight."""
    NO_DOWNGRADE = "NoDowngrade"
    """The tenant, the key or the request takes answers of the last target alone."""

    CHEAPER_TARGETS = "CheaperTargets"
    """It is the cheapest: so much is spent of a limit of the tenant that others get no request."""

    FALLBACK = "Fallback"
    """Another target gave no answer."""

    # Why a target is skipped.
    TARGET_NOT_FOUND = "TargetNotFound"
    """Its service or provider does not exist, or who asks may not use it."""
    RESIDENCY = "DataResidency"
    """The tenant's `spec.dataResidency` keeps its requests from the region of the provider."""
    TOOLS_NOT_TAKEN = "ToolsNotTaken"
    """It offers tools, and the model of the provider calls none."""
    MEDIA_NOT_TAKEN = "MediaNotTaken"
    """It has images or clips, and the model of the provider takes none."""
