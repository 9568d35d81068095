"""Fit the shipped table of speeds to published measurements: `make calibrate`.

Fits on a seeded three quarters of the rows by relative least squares, prints the errors on the
other quarter, and writes `data/speed.json`. Without the measurements it says so and changes
nothing.
"""

import itertools
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from int4_kernel import with_int4
from shares import fit_shares, geometric_mean, without_family
from speed_errors import (
    at_least,
    measured_errors,
    published_errors,
    roofline_errors,
    table_errors,
)
from speed_rows import ROWS, SYSTEMS, Row, read, read_engine, split
from tessera.domain.perf.roofline import Arithmetic
from tessera.domain.perf.table import (
    ArithmeticShares,
    FitErrors,
    GpuFamily,
    HostOverhead,
    KindError,
    SpeedTable,
    shipped_speed_table,
)

SPEED = Path(__file__).parents[1] / "operator/tessera/domain/data/speed.json"
SEED = 1
SOURCE = (
    "fitted on prefill and decode steps of Llama-3.1-8B, Llama-3.1-70B and Qwen3-32B under vLLM, "
    "as AIConfigurator 0.12 (PyPI, Apache-2.0) estimates them from its measured operator tables: "
    "kernels alone, without what a busy host adds; int4 fitted on steps of Llama-3.1-8B (w4a16) in "
    "vLLM 0.26 on an H100"
)
_LINKS_GBS = {"NVIDIA-A100": 150.0, "NVIDIA-H100": 225.0, "NVIDIA-H200": 225.0}
_PCIE_GBS = 25.0
_HOST = {"step_micros": 300.0, "layer_micros": 10.0, "reduction_micros": 10.0}
_LAYERS = {"weights": 0.8, "compute": 0.6, "unhidden": 0.5}

# A table without errors predicts the steps from which they are computed.
_NO_ERRORS = (KindError(kind="Dense", source="Roofline", decode=0, prompts=0, rows=0),)
_KINDS: tuple[Arithmetic, ...] = ("bf16", "fp8")
Unknowns = Mapping[tuple[str, ...], float]


def calibrate(
    rows: Sequence[Row], without_families: Mapping[str, SpeedTable], seed: int = SEED
) -> SpeedTable:
    """The table that `rows` give, with its errors on those that were held out."""
    fitted, held_out = split(rows, seed)
    speed_table = with_int4(fit(fitted), read_engine())
    sizes = {"seed": seed, "fitted_rows": len(fitted), "held_out_rows": len(held_out)}
    fit_errors = FitErrors(
        decode_mape=round(mape(speed_table, held_out, "decode"), 2),
        prefill_mape=round(mape(speed_table, held_out, "prefill"), 2),
    )
    errors = {"fit_errors": fit_errors, "errors": kind_errors(speed_table, without_families, rows)}
    return speed_table.model_copy(update=sizes | errors)


def fit_without_families(rows: Sequence[Row]) -> dict[str, SpeedTable]:
    """The tables that are fitted without the rows of each family."""
    return {system.product: _without(system.product, rows) for system in SYSTEMS.values()}


def kind_errors(
    speed_table: SpeedTable, without_families: Mapping[str, SpeedTable], rows: Sequence[Row]
) -> tuple[KindError, ...]:
    """The errors by kind of model and source, with each family left out for `Roofline`."""
    engine_rows = read_engine()
    of_table = table_errors(speed_table, engine_rows)
    of_roofline = roofline_errors(without_families, rows, engine_rows)
    elsewhere = published_errors(speed_table, of_table, of_roofline)
    return (
        *of_table,
        *elsewhere,
        *(at_least(error, elsewhere) for error in of_roofline),
        *measured_errors(speed_table, engine_rows),
    )


def _without(product: str, rows: Sequence[Row]) -> SpeedTable:
    """The table of the other families."""
    speed_table = fit([row for row in rows if row.family != product])
    experts = without_family(speed_table.experts, product)
    return speed_table.model_copy(update={"experts": experts})


def fit(rows: Sequence[Row]) -> SpeedTable:
    """The table with the smallest squares of relative errors; unknown errors are given as 0."""

    def errors_of(unknowns: Unknowns) -> list[float]:
        speed_table = _table(unknowns)
        return [row.relative_error(speed_table) for row in rows]

    return _table(fit_shares(_guesses(rows), errors_of, digits=4))


def errors() -> dict[str, float]:
    """What `make bench-engine` prints: of the shipped table, recomputed; nothing without rows."""
    if not ROWS.exists():
        return {}
    speed_table = shipped_speed_table()
    held_out = split(read(ROWS), speed_table.seed)[1]
    return {f"{phase}_mape": round(mape(speed_table, held_out, phase), 2) for phase in PHASES}


PHASES = ("decode", "prefill")


def mape(speed_table: SpeedTable, rows: Iterable[Row], phase: str) -> float:
    """Mean absolute relative error in percent."""
    offs = [abs(row.relative_error(speed_table)) for row in rows if row.phase == phase]
    return 100 * sum(offs) / len(offs) if offs else math.nan


def _guesses(rows: Sequence[Row]) -> Unknowns:
    """Return first guesses of everything that these rows can determine."""
    guesses: dict[tuple[str, ...], float] = {("host", name): guess for name, guess in _HOST.items()}
    guesses["host", "sequence_micros"] = 4.4
    for system in SYSTEMS.values():
        kinds = sorted({row.kind for row in rows if row.hardware.product == system.product})
        if kinds:
            guesses[system.product, "cache"] = 0.8
            guesses[system.product, "attention"] = 0.4
            guesses[system.product, "link_gbs"] = _LINKS_GBS.get(system.product, _PCIE_GBS)
        for kind, (name, guess) in itertools.product(kinds, _LAYERS.items()):
            guesses[system.product, kind, name] = guess
    return guesses


def _table(unknowns: Unknowns) -> SpeedTable:
    products = dict.fromkeys(name[0] for name in unknowns if name[0] != "host")
    families = tuple(_family(unknowns, product) for product in products)
    return SpeedTable(
        source=SOURCE,
        seed=SEED,
        fitted_rows=0,
        held_out_rows=0,
        fit_errors=FitErrors(decode_mape=0, prefill_mape=0),
        errors=_NO_ERRORS,
        host=HostOverhead(
            **{name[1]: value for name, value in unknowns.items() if name[0] == "host"}
        ),
        usual=_usual(families),
        families=families,
        # Derived elsewhere: `tools/derive_experts.py`.
        experts=shipped_speed_table().experts,
    )


def _family(unknowns: Unknowns, product: str) -> GpuFamily:
    return GpuFamily(
        family=product,
        cache=unknowns[product, "cache"],
        attention=unknowns[product, "attention"],
        link_gbs=unknowns[product, "link_gbs"],
        arithmetic={
            kind: ArithmeticShares(**{name: unknowns[product, kind, name] for name in _LAYERS})
            for kind in _KINDS
            if (product, kind, "weights") in unknowns
        },
    )


def _usual(families: Sequence[GpuFamily]) -> GpuFamily:
    shares = {
        kind: [family.arithmetic[kind] for family in families if kind in family.arithmetic]
        for kind in _KINDS
    }
    return GpuFamily(
        family="",
        cache=geometric_mean(family.cache for family in families),
        attention=geometric_mean(family.attention for family in families),
        link_gbs=geometric_mean(family.link_gbs for family in families),
        arithmetic={
            kind: ArithmeticShares(
                **{name: geometric_mean(getattr(each, name) for each in known) for name in _LAYERS}
            )
            for kind, known in shares.items()
            if known
        },
    )


def _print(
    speed_table: SpeedTable, without_families: Mapping[str, SpeedTable], rows: Sequence[Row]
) -> None:
    """Errors on the rows that were held out, by group, and the largest of each group."""
    held_out = split(rows, speed_table.seed)[1]
    print(f"{'held-out rows':44} {'decode':>8} {'prefill':>8} {'largest':>8}")
    for group in dict.fromkeys(row.group for row in rows):
        selected = [row for row in held_out if row.group == group]
        _print_line(speed_table, group, selected)
    _print_line(speed_table, f"all {len(held_out)}", held_out)
    print("\nleft out of the fit altogether, predicted from the rest:")
    for model in dict.fromkeys(row.model for row in rows):
        rest = fit([row for row in rows if row.model != model])
        _print_line(rest, f"model {model}", [row for row in rows if row.model == model])
    for family, rest in without_families.items():
        _print_line(rest, f"family {family}", [row for row in rows if row.family == family])
    print(f"\n{'errors (RMS)':44} {'decode':>8} {'prompts':>8} {'rows':>8}")
    for error in speed_table.errors:
        shares = f"{100 * error.decode:>6.1f} % {100 * error.prompts:>6.1f} %"
        print(f"{f'{error.kind}, {error.source}':44} {shares} {error.rows:>8}")


def _print_line(speed_table: SpeedTable, name: str, rows: Sequence[Row]) -> None:
    decode, prefill = (_percent(mape(speed_table, rows, phase)) for phase in PHASES)
    worst = max(rows, key=lambda row: abs(row.relative_error(speed_table)))
    off = f"{100 * worst.relative_error(speed_table):+.1f} %"
    where = f"{worst.phase} of {worst.batch} x {worst.context}"
    print(f"{name:44} {decode:>8} {prefill:>8} {off:>8} ({where})")


def _percent(value: float) -> str:
    return "no row" if math.isnan(value) else f"{value:.1f} %"


def write(speed_table: SpeedTable) -> None:
    """Write the shipped table."""
    facts: dict[str, Any] = speed_table.model_dump(by_alias=True)
    SPEED.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Fit, print, write."""
    if not ROWS.exists():
        sys.exit(f"{ROWS} is not there: the shipped table stays as it is")
    rows = read(ROWS)
    without_families = fit_without_families(rows)
    speed_table = calibrate(rows, without_families)
    write(speed_table)
    _print(speed_table, without_families, rows)
    wrote = speed_table.fit_errors
    print(f"\nwrote {SPEED.name}: decode {wrote.decode_mape} %, prefill {wrote.prefill_mape} %")


if __name__ == "__main__":
    main()
