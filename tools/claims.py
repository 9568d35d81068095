"""Compute all claims and print their table; the last line counts the verdicts.

`--save` records the results, from which `make generate` writes the pages. `--int4` computes those
that use weights of 4 bits with the shares of the only measured kernel on every GPU.
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

from figures import print_figures
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.perf import sources
from tessera.domain.perf.table import shipped_speed_table
from tessera_lab.claims.claim import read_claims
from tessera_lab.claims.record import INT4_CLAIMS, INT4_RECORD, RECORD, results_text, run_claims
from tessera_lab.claims.text import counts
from tessera_lab.cli.claims.command import claims_table

ROOT = Path(__file__).resolve().parent.parent
_FOLDER = ROOT / "operator/tessera_lab/claims"


def main() -> None:
    """Run, print, and save if asked to; times go to stderr, so that two runs print the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="record the results")
    parser.add_argument("--only", default="", help="ids, separated by commas")
    parser.add_argument("--int4", action="store_true", help="with the measured 4-bit kernel alone")
    options = parser.parse_args()
    claim_set = read_claims()
    ids = INT4_CLAIMS if options.int4 else tuple(claim_set.by_id)
    ids = tuple(filter(None, options.only.split(","))) or ids
    results, started = {}, time.process_time()
    with measured_int4_everywhere() if options.int4 else nullcontext():
        for claim_id, result in run_claims(claim_set, ids):
            results[claim_id] = result
            seconds = time.process_time() - started
            print(f"{claim_id} {result.verdict} {seconds:.1f} s of CPU so far", file=sys.stderr)
    print(*claims_table(claim_set, results), sep="\n")
    print()
    if options.save:
        record = _FOLDER / (INT4_RECORD if options.int4 else RECORD)
        record.write_text(results_text(results), encoding="utf-8")
    print_figures(dict(counts(claim_set.by_id, results)))


def measured_int4_everywhere() -> AbstractContextManager[object]:
    """Predict steps with the measured 4-bit kernel on GPUs where none was measured, too."""
    speed_table = shipped_speed_table()
    (kernel,) = speed_table.int4
    kernels = tuple(
        kernel.model_copy(update={"capability": capability})
        for capability in sorted({product.capability for product in products().values()})
    )
    everywhere = speed_table.model_copy(update={"int4": kernels})
    return mock.patch.object(sources, "shipped_speed_table", return_value=everywhere)


if __name__ == "__main__":
    main()
