"""What a route costs for each token or request, compared with its last target for all."""


def router_blend(small_share: float, small: float, large: float, router: float = 0.0) -> float:
    """Return the mean price where a share goes to the small model; the router costs for all."""
    return small_share * small + (1 - small_share) * large + router


def cascade_blend(small_share: float, small: float, large: float) -> float:
    """Return the mean price where the large model answers all but a share after the small one."""
    return small + (1 - small_share) * large


def saved_share(cost: float, last_target_cost: float) -> float | None:
    """Return what is saved of the cost at the last target, below 0 if it costs more.

    None where that costs nothing.
    """
    return 1 - cost / last_target_cost if last_target_cost else None
