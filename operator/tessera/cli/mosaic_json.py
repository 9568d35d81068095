"""The mosaic for programs."""

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from tessera.cli.cluster import Json
from tessera.cli.layouts_seen import SeenPool, after
from tessera.domain.mig.fleet import Slice
from tessera.domain.repartition.usage import Seat


def fields(pool: SeenPool) -> Json:
    """One pool with all of its GPUs that are in MIG mode."""
    price, usage, plan = pool.view.price, pool.usage, pool.coming
    hourly = price.per_gpu_hour if price is not None else None
    coming = after(pool, plan) if plan is not None else {}
    here: dict[tuple[str, int], list[Seat]] = defaultdict(list)
    for seat in pool.seats:
        here[seat.node, seat.gpu].append(seat)
    return {
        "name": pool.name,
        "reason": pool.laid_out.reason if pool.laid_out is not None else None,
        "placesKnown": pool.places_known,
        "currency": price.currency if price is not None else None,
        "perGPUHour": _amount(Decimal(1), hourly),
        "idlePerHour": _amount(usage.idle, hourly),
        "strandedPerHour": _amount(usage.stranded, hourly),
        "plan": plan.name if plan is not None else None,
        "proposed": plan is not None and plan is pool.status.proposed,
        "gpus": [
            {
                "node": ground.name,
                "gpu": card.index,
                "uuid": card.uuid or None,
                "board": ground.board.name,
                "fault": card.fault,
                "slices": [
                    _slice(pool, seat, hourly, told=ground.tells_pods)
                    for seat in here[ground.name, card.index]
                ],
                "after": _after(coming[ground.name, card.index], told=ground.tells_pods)
                if coming
                else None,
            }
            for ground in pool.grounds
            for card in ground.cards
        ],
    }


def _after(slices: Sequence[Slice], *, told: bool) -> list[Json]:
    return [
        {"profile": one.profile, "start": one.start if told else None, "service": one.service}
        for one in slices
    ]


def _slice(pool: SeenPool, seat: Seat, hourly: Decimal | None, *, told: bool) -> Json:
    return {
        "profile": seat.spot.profile,
        "start": seat.spot.start if told else None,
        "state": seat.state,
        "service": pool.whose(seat.holders[0]) if seat.holders else None,
        "pods": [str(pod) for pod in seat.holders],
        "load": pool.load(seat),
        "pricePerHour": _amount(seat.share, hourly),
    }


def _amount(part: Decimal, hourly: Decimal | None) -> str | None:
    return None if hourly is None else format(round(part * hourly, 4), "f")
