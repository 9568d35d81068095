"""Fit the shipped table of speeds to published measurements: `make calibrate`.

Fits on a seeded three quarters of the rows by relative least squares, prints the errors on the
other quarter, and writes `data/speed.json`. Without the measurements it says so and changes
nothing.
"""

import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speed_rows import ROWS, SYSTEMS, Row, read, split
from tessera.domain.perf.roofline import Arithmetic
from tessera.domain.perf.table import (
    ArithmeticShares,
    FitErrors,
    GpuFamily,
    HostOverhead,
    SpeedTable,
    shipped_speed_table,
)
from tessera_lab.fit.least_squares import least_squares

SPEED = Path(__file__).parents[1] / "operator/tessera/domain/data/speed.json"
SEED = 1
SOURCE = (
    "fitted on prefill and decode steps of Llama-3.1-8B, Llama-3.1-70B and Qwen3-32B under vLLM, "
    "as AIConfigurator 0.12 (PyPI, Apache-2.0) estimates them from its measured operator tables: "
    "kernels alone, without what a busy host adds"
)
# Pull of each unknown towards its guess: settles what rows of a single model leave open.
_PRIOR = 0.02
_LINKS_GBS = {"NVIDIA-A100": 150.0, "NVIDIA-H100": 225.0, "NVIDIA-H200": 225.0}
_PCIE_GBS = 25.0
_HOST = {"step_micros": 300.0, "layer_micros": 10.0, "reduction_micros": 10.0}
_LAYERS = {"weights": 0.8, "compute": 0.6, "unhidden": 0.5}

Unknowns = dict[tuple[str, ...], float]


def calibrated(rows: Sequence[Row], seed: int = SEED) -> SpeedTable:
    """The table that `rows` give, with its errors on those that were held out."""
    fitted, held_out = split(rows, seed)
    found = fit(fitted)
    sizes = {"seed": seed, "fitted_rows": len(fitted), "held_out_rows": len(held_out)}
    errors = FitErrors(
        decode_mape=round(mape(found, held_out, "decode"), 2),
        prefill_mape=round(mape(found, held_out, "prefill"), 2),
    )
    return found.model_copy(update=sizes | {"errors": errors})


def fit(rows: Sequence[Row]) -> SpeedTable:
    """The table with the smallest squares of relative errors; unknown errors are given as 0."""
    guessed = _guesses(rows)
    names = list(guessed)
    start = [math.log(guessed[name]) for name in names]

    def residuals(at: Sequence[float]) -> list[float]:
        found = _table(_unknowns(names, at))
        pulls = [_PRIOR * (value - guess) for value, guess in zip(at, start, strict=True)]
        return [row.off(found) for row in rows] + pulls

    return _table(_unknowns(names, least_squares(residuals, start)), digits=4)


def errors() -> dict[str, float]:
    """What `make bench-engine` prints: of the shipped table, recomputed; nothing without rows."""
    if not ROWS.exists():
        return {}
    found = shipped_speed_table()
    held_out = split(read(ROWS), found.seed)[1]
    return {f"{phase}_mape": round(mape(found, held_out, phase), 2) for phase in PHASES}


PHASES = ("decode", "prefill")


def mape(found: SpeedTable, rows: Iterable[Row], phase: str) -> float:
    """Mean absolute relative error in percent."""
    offs = [abs(row.off(found)) for row in rows if row.phase == phase]
    return 100 * sum(offs) / len(offs) if offs else math.nan


def _guesses(rows: Sequence[Row]) -> Unknowns:
    """Of everything that these rows can tell, about what it is."""
    found: Unknowns = {("host", name): guess for name, guess in _HOST.items()}
    found["host", "sequence_micros"] = 4.4
    for place in SYSTEMS.values():
        kinds = sorted({row.kind for row in rows if row.hardware.product == place.product})
        if kinds:
            found[place.product, "cache"] = 0.8
            found[place.product, "attention"] = 0.4
            found[place.product, "link_gbs"] = _LINKS_GBS.get(place.product, _PCIE_GBS)
        for kind, (name, guess) in itertools.product(kinds, _LAYERS.items()):
            found[place.product, kind, name] = guess
    return found


def _unknowns(names: Sequence[tuple[str, ...]], logarithms: Sequence[float]) -> Unknowns:
    return {name: math.exp(value) for name, value in zip(names, logarithms, strict=True)}


def _table(found: Unknowns, digits: int | None = None) -> SpeedTable:
    if digits is not None:
        found = {name: float(f"{value:.{digits}g}") for name, value in found.items()}
    products = dict.fromkeys(name[0] for name in found if name[0] != "host")
    families = tuple(_family(found, product) for product in products)
    return SpeedTable(
        source=SOURCE,
        seed=SEED,
        fitted_rows=0,
        held_out_rows=0,
        errors=FitErrors(decode_mape=0, prefill_mape=0),
        host=HostOverhead(**{name[1]: value for name, value in found.items() if name[0] == "host"}),
        usual=_usual(families),
        families=families,
    )


def _family(found: Unknowns, product: str) -> GpuFamily:
    kinds: tuple[Arithmetic, ...] = ("bf16", "fp8")
    return GpuFamily(
        family=product,
        cache=found[product, "cache"],
        attention=found[product, "attention"],
        link_gbs=found[product, "link_gbs"],
        arithmetic={
            kind: ArithmeticShares(**{name: found[product, kind, name] for name in _LAYERS})
            for kind in kinds
            if (product, kind, "weights") in found
        },
    )


def _usual(families: Sequence[GpuFamily]) -> GpuFamily:
    kinds: tuple[Arithmetic, ...] = ("bf16", "fp8")
    return GpuFamily(
        family="",
        cache=_mean(one.cache for one in families),
        attention=_mean(one.attention for one in families),
        link_gbs=_mean(one.link_gbs for one in families),
        arithmetic={
            kind: ArithmeticShares(
                **{
                    name: _mean(
                        getattr(one.arithmetic[kind], name)
                        for one in families
                        if kind in one.arithmetic
                    )
                    for name in _LAYERS
                }
            )
            for kind in kinds
            if any(kind in one.arithmetic for one in families)
        },
    )


def _mean(values: Iterable[float]) -> float:
    """The geometric one."""
    found = list(values)
    return float(f"{math.exp(sum(map(math.log, found)) / len(found)):.4g}")


def _print(found: SpeedTable, rows: Sequence[Row]) -> None:
    """Errors on the rows that were held out, by group, and the largest of each group."""
    held_out = split(rows, found.seed)[1]
    print(f"{'held-out rows':44} {'decode':>8} {'prefill':>8} {'largest':>8}")
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in held_out if row.group == group]
        _print_line(found, group, mine)
    _print_line(found, f"all {len(held_out)}", held_out)
    print("\nleft out of the fit altogether, predicted from the rest:")
    for model in dict.fromkeys(row.model for row in rows):
        _print_left_out(f"model {model}", rows, [row for row in rows if row.model == model])
    for place in SYSTEMS.values():
        mine = [row for row in rows if row.hardware.product == place.product]
        _print_left_out(f"family {place.product}", rows, mine)


def _print_left_out(name: str, rows: Sequence[Row], left_out: Sequence[Row]) -> None:
    rest = [row for row in rows if row not in left_out]
    _print_line(fit(rest), name, left_out)


def _print_line(found: SpeedTable, name: str, rows: Sequence[Row]) -> None:
    decode, prefill = (_percent(mape(found, rows, phase)) for phase in PHASES)
    worst = max(rows, key=lambda row: abs(row.off(found)))
    off = f"{100 * worst.off(found):+.1f} %"
    where = f"{worst.phase} of {worst.batch} x {worst.context}"
    print(f"{name:44} {decode:>8} {prefill:>8} {off:>8} ({where})")


def _percent(value: float) -> str:
    return "no row" if math.isnan(value) else f"{value:.1f} %"


def _written(found: SpeedTable) -> str:
    facts: dict[str, Any] = found.model_dump(by_alias=True)
    return json.dumps(facts, indent=2) + "\n"


def main() -> None:
    """Fit, print, write."""
    if not ROWS.exists():
        sys.exit(f"{ROWS} is not there: the shipped table stays as it is")
    rows = read(ROWS)
    found = calibrated(rows)
    SPEED.write_text(_written(found), encoding="utf-8")
    _print(found, rows)
    wrote = found.errors
    print(f"\nwrote {SPEED.name}: decode {wrote.decode_mape} %, prefill {wrote.prefill_mape} %")


if __name__ == "__main__":
    main()
