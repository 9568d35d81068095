"""A ladder as plain figures, for JSON, tables and the picture."""

from collections.abc import Mapping

from tessera.api.meta import Wire
from tessera_lab.engine.setup import EngineSetup
from tessera_lab.levers.ladder import Ladder, Rung
from tessera_lab.levers.lever import levers
from tessera_lab.levers.month import Month


class MonthFigure(Wire):
    """A month: money in the currency of the prices, latencies in seconds."""

    setup: str
    per_month: float
    per_million_tokens: float
    ttft_p95: float
    tpot_p95: float
    keeps_slo: bool
    mean_replicas: float
    peak_replicas: int
    requests_per_second: float
    """Of one replica."""
    joules_per_token: float | None = None
    """Of an output token of one replica, by the model of `tessera simulate`."""


class RungFigure(Wire):
    """A lever of a ladder; factors above 1 save."""

    lever: str
    title: str
    offered: bool
    used: bool
    alone: float | None
    here: float | None
    last: float | None
    after: MonthFigure
    note: str


class LadderFigure(Wire):
    """A ladder of a model under a load."""

    name: str
    baseline: MonthFigure
    rungs: tuple[RungFigure, ...]
    reached: float
    product: float
    reached_today: float
    today: MonthFigure
    orders: Mapping[str, Mapping[str, float]]
    """Per month after each lever, in the orders of the sources."""


def ladder_figure(name: str, ladder: Ladder) -> LadderFigure:
    """Return the figures, rounded to what they mean."""
    return LadderFigure(
        name=name,
        baseline=month_figure(ladder.baseline),
        rungs=tuple(_rung_figure(rung) for rung in ladder.rungs),
        reached=round(ladder.reached, 2),
        product=round(ladder.product, 2),
        reached_today=round(ladder.reached_today, 2),
        today=month_figure(ladder.today),
        orders={
            order: {step.lever: round(step.month.usd, 2) for step in steps}
            for order, steps in ladder.orders.items()
        },
    )


def month_figure(month: Month) -> MonthFigure:
    replica = month.replica
    return MonthFigure(
        setup=setup_text(month.setup),
        per_month=round(month.usd, 2),
        per_million_tokens=round(month.usd_per_million, 4),
        ttft_p95=round(replica.ttft, 4),
        tpot_p95=round(replica.tpot, 5),
        keeps_slo=month.keeps_slo,
        mean_replicas=round(month.mean_replicas, 3),
        peak_replicas=month.peak_replicas,
        requests_per_second=round(replica.rate, 4),
        joules_per_token=None if replica.joules is None else round(replica.joules, 3),
    )


def setup_text(setup: EngineSetup) -> str:
    """Return hardware, precision and batching in a few words."""
    hardware = setup.hardware
    instance = f"/{hardware.profile}" if hardware.profile else ""
    count = f" x{hardware.devices}" if hardware.devices > 1 else ""
    batching = "" if setup.static_batch is None else f", static batches of {setup.static_batch}"
    return f"{hardware.product}{instance}{count}, {setup.precision or 'checkpoint'}{batching}"


def _rung_figure(rung: Rung) -> RungFigure:
    lever = levers()[rung.lever]
    alone, here, last = (
        None if factor is None else round(factor, 3)
        for factor in (rung.alone, rung.here, rung.last)
    )
    return RungFigure(
        lever=rung.lever,
        title=lever.title,
        offered=lever.offered,
        used=rung.used,
        alone=alone,
        here=here,
        last=last,
        after=month_figure(rung.month),
        note=rung.note,
    )
