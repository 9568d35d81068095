"""Computes the ladders of the documents: `make levers`.

Writes `docs/figures/levers.json`, and into the lab's `levers.json` what each lever saves alone.
`make generate` makes the picture and the pages of these figures.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import print_figures
from tessera.api.meta import Wire
from tessera_lab.levers.figure import LadderFigure, MonthFigure, ladder_figure, month_figure
from tessera_lab.levers.published import LOADS, MODELS, ladder, small_services, static_batches
from tessera_lab.levers.small_services import ServicesLadder, ServicesRung

ROOT = Path(__file__).resolve().parent.parent
FIGURES = "docs/figures/levers.json"
DATA = "operator/tessera_lab/levers/levers.json"


class RecordedLadders(Wire):
    """All ladders of the documents."""

    ladders: tuple[LadderFigure, ...]
    static_batches: Mapping[str, MonthFigure]
    """Months of the engines before continuous batching, by the names of the ladders."""
    small_services: tuple[ServicesRung, ...]
    """Months of many small services, step by step."""
    without_slices: ServicesRung
    """The last of these on whole GPUs."""


def main() -> None:
    """Compute all ladders, which takes most of a minute."""
    started = time.process_time()
    services = ServicesLadder(small_services())
    cases = {name(model, load): (model, load) for load in LOADS for model in MODELS}
    recorded = RecordedLadders(
        ladders=tuple(figure(*case) for case in cases.values()),
        static_batches={each: month_figure(static_batches(*case)) for each, case in cases.items()},
        small_services=tuple(services.climb()),
        without_slices=services.without_slices(),
    )
    first, *_, last = recorded.small_services
    (ROOT / FIGURES).write_text(figures_text(recorded), encoding="utf-8")
    data = (ROOT / DATA).read_text(encoding="utf-8")
    (ROOT / DATA).write_text(with_ours(data, recorded.ladders), encoding="utf-8")
    print_figures(
        {
            **{f"{each.name}: reached": each.reached for each in recorded.ladders},
            **{f"{each.name}: product": each.product for each in recorded.ladders},
            **{f"{each.name}: today": each.reached_today for each in recorded.ladders},
            "services: today": round(first.per_month / last.per_month, 2),
            "cpu_seconds": round(time.process_time() - started, 1),
        },
        width=20,
    )


def name(model: str, load: str) -> str:
    return f"{model}, {load}"


def figure(model: str, load: str) -> LadderFigure:
    return ladder_figure(name(model, load), ladder(model, load))


def figures_text(recorded: RecordedLadders) -> str:
    """Return JSON with a line for each rung."""
    body = recorded.model_dump(mode="json", by_alias=True)
    ladders = ",\n".join(map(_ladder_text, body.pop("ladders")))
    static = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(month)}" for key, month in body["staticBatches"].items()
    )
    services = ",\n".join(map(json.dumps, body["smallServices"]))
    return (
        f'{{"ladders": [\n{ladders}\n],\n"staticBatches": {{\n{static}\n}},\n'
        f'"smallServices": [\n{services}\n],\n'
        f'"withoutSlices": {json.dumps(body["withoutSlices"])}}}\n'
    )


def _ladder_text(body: dict[str, Any]) -> str:
    rungs = ",\n".join(json.dumps(rung) for rung in body.pop("rungs"))
    return f'{json.dumps(body)[:-1]},\n"rungs": [\n{rungs}\n]}}'


def committed() -> RecordedLadders:
    """Return the recorded figures."""
    return RecordedLadders.model_validate_json((ROOT / FIGURES).read_text(encoding="utf-8"))


def with_ours(data: str, figures: Sequence[LadderFigure]) -> str:
    """Return the text of `levers.json` with the range that each lever saves alone."""
    body = json.loads(data)
    for entry in body["levers"]:
        savings = [
            1 - 1 / rung.alone
            for each in figures
            for rung in each.rungs
            if rung.lever == entry["id"] and rung.alone
        ]
        entry.pop("ours", None)
        if savings:
            low, high = round(min(savings), 3), round(max(savings), 3)
            entry["ours"] = {"low": low, "high": high, "source": FIGURES}
    return json.dumps(body, indent=2) + "\n"


if __name__ == "__main__":
    main()
