"""Compute all claims and print their table; the last line counts the verdicts.

`--save` records the results, from which `make generate` writes the pages.
"""

import argparse
import sys
import time
from pathlib import Path

from figures import print_figures
from tessera_lab.claims.claim import read_claims
from tessera_lab.claims.record import RECORD, results_text, run_claims
from tessera_lab.claims.text import counts
from tessera_lab.cli.claims.command import claims_table

ROOT = Path(__file__).resolve().parent.parent
_RECORD = ROOT / "operator/tessera_lab/claims" / RECORD


def main() -> None:
    """Run, print, and save if asked to; times go to stderr, so that two runs print the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help=f"write {RECORD}")
    parser.add_argument("--only", default="", help="ids, separated by commas")
    options = parser.parse_args()
    claim_set = read_claims()
    ids = tuple(filter(None, options.only.split(","))) or tuple(claim_set.by_id)
    results, started = {}, time.process_time()
    for claim_id, result in run_claims(claim_set, ids):
        results[claim_id] = result
        seconds = time.process_time() - started
        print(f"{claim_id} {result.verdict} {seconds:.1f} s of CPU so far", file=sys.stderr)
    print(*claims_table(claim_set, results), sep="\n")
    print()
    if options.save:
        _RECORD.write_text(results_text(results), encoding="utf-8")
    print_figures(dict(counts(claim_set.by_id, results)))


if __name__ == "__main__":
    main()
