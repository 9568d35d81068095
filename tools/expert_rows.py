"""Prints measured kernels of experts as JSON lines: expert_rows.py SYSTEM VERSION.

Runs in the environment of `requirements/experts.txt`, whose package has the tables. The first line
is the package's version; each of the others is a row of one device that has all experts.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import pyarrow.parquet

PACKAGE = "aiconfigurator-core"
_COLUMNS = (
    *("moe_dtype", "kernel_source", "distribution", "num_tokens", "hidden_size", "inter_size"),
    *("num_experts", "topk", "latency"),
)


def main(system: str, version: str) -> None:
    """Print the rows of a system under a version of vLLM."""
    distribution = metadata.distribution(PACKAGE)
    name = f"aiconfigurator_core/systems/data/{system}/moe/vllm/{version}/moe_perf.parquet"
    whole = [("moe_tp_size", "=", 1), ("moe_ep_size", "=", 1)]
    path = Path(str(distribution.locate_file(name)))
    rows = pyarrow.parquet.read_table(path, columns=list(_COLUMNS), filters=whole)
    print(json.dumps(distribution.version))
    for row in rows.to_pylist():
        print(json.dumps([row[column] for column in _COLUMNS]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
