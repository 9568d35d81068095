"""Computes the ladders of the documents: `make levers`.

Writes `docs/figures/levers.json`, and into the lab's `levers.json` what each lever saves alone.
`make generate` makes the picture and the page of these figures.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from figures import print_figures
from tessera_lab.levers.figure import LadderFigure, ladder_figure
from tessera_lab.levers.published import LOADS, MODELS, ladder

ROOT = Path(__file__).resolve().parent.parent
FIGURES = "docs/figures/levers.json"
DATA = "operator/tessera_lab/levers/levers.json"


def main() -> None:
    """Compute all ladders, which takes seconds."""
    started = time.process_time()
    figures = [figure(model, load) for load in LOADS for model in MODELS]
    (ROOT / FIGURES).write_text(figures_text(figures), encoding="utf-8")
    data = (ROOT / DATA).read_text(encoding="utf-8")
    (ROOT / DATA).write_text(with_ours(data, figures), encoding="utf-8")
    print_figures(
        {
            **{f"{each.name}: reached": each.reached for each in figures},
            **{f"{each.name}: product": each.product for each in figures},
            **{f"{each.name}: today": each.reached_today for each in figures},
            "cpu_seconds": round(time.process_time() - started, 1),
        },
        width=20,
    )


def figure(model: str, load: str) -> LadderFigure:
    return ladder_figure(f"{model}, {load}", ladder(model, load))


def figures_text(figures: Sequence[LadderFigure]) -> str:
    """Return JSON with a line for each rung."""
    return '{"ladders": [\n' + ",\n".join(map(_ladder_text, figures)) + "\n]}\n"


def _ladder_text(figure: LadderFigure) -> str:
    body = figure.model_dump(mode="json", by_alias=True)
    rungs = ",\n".join(json.dumps(rung) for rung in body.pop("rungs"))
    return f'{json.dumps(body)[:-1]},\n"rungs": [\n{rungs}\n]}}'


def committed() -> list[LadderFigure]:
    """Return the recorded figures."""
    body = json.loads((ROOT / FIGURES).read_text(encoding="utf-8"))
    return [LadderFigure.model_validate(each) for each in body["ladders"]]


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
