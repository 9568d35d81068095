"""What another checkout says of all known models by `tessera size`, compared with this one.

Prints a Markdown table of how the price of a million tokens moved, by kind of model, without kinds
that did not, and each model whose cheapest tokens moved by more than 2 %:

    .venv/bin/python tools/size_changes.py ../before
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from statistics import median

from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.sizing import prices
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera.domain.sizing.table import smallest_serving_rows

_PRECISIONS = (None, "fp8", "awq-int4")
# Tokens of prompts and answers: the defaults of `tessera size`, and long prompts.
_LENGTHS = ((1200, 250), (6000, 500))
_LISTED = 0.02
# By model, lengths, precision and product: dollars of a million tokens.
Prices = dict[str, float]


def sized(today: date) -> Prices:
    """The prices of this checkout."""
    book = prices.price_book(prices.ASSUMED, prices.list_prices(), today)
    products = tuple(catalog.products().values())
    by_row: Prices = {}
    for model, shape in catalog.models().items():
        context = min(DEFAULT_MAX_MODEL_LEN, shape.max_position_embeddings)
        for input_tokens, output_tokens in _LENGTHS:
            demand = Demand(
                shape=shape,
                precision=None,
                max_model_len=context,
                input_tokens=min(input_tokens, context * 3 // 4),
                output_tokens=0 if shape.pooling else output_tokens,
                ttft=timedelta(seconds=10),
                inter_token=timedelta(milliseconds=250),
            )
            precisions = _PRECISIONS if shape.quantization is None else (None,)
            for row in smallest_serving_rows(demand, products, precisions, book):
                if row.can_serve and row.per_million is not None:
                    key = (model, str(input_tokens), row.precision or "", row.hardware.product)
                    by_row["|".join(key)] = row.per_million.nanos / 1e9
    return by_row


def _sized_by(checkout: Path, today: date) -> Prices:
    """The prices of another checkout, which runs this file by its own packages."""
    command = [sys.executable, __file__, "--dump", "--today", today.isoformat()]
    path = os.pathsep.join([str(checkout / "operator"), str(Path(__file__).parent)])
    run = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True
    )
    prices_by_row: Prices = json.loads(run.stdout)
    return prices_by_row


def _kind(model: str, precision: str) -> str:
    # Of this checkout alone: the other need not have it.
    from tessera.domain.perf.table import model_kinds  # noqa: PLC0415

    return ", ".join(model_kinds(catalog.models()[model], precision or None))


def _by_kind(before: Prices, after: Prices) -> Iterator[tuple[str, ...]]:
    changes: dict[tuple[str, str], list[float]] = {}
    for key in before.keys() & after.keys():
        model, tokens, precision, _ = key.split("|")
        group = _kind(model, precision), tokens
        changes.setdefault(group, []).append(after[key] / before[key] - 1)
    for (kind, tokens), shares in sorted(changes.items()):
        if not any(shares):
            continue
        figures = (_percent(share) for share in (median(shares), min(shares), max(shares)))
        yield kind, f"{int(tokens):,}", f"{len(shares):,}", *figures


def _moved(before: Prices, after: Prices) -> Iterator[str]:
    for tokens, _ in _LENGTHS:
        cheapest = [_cheapest(sizes, str(tokens)) for sizes in (before, after)]
        shares = {
            model: cheapest[1][model] / cheapest[0][model] - 1
            for model in sorted(cheapest[0].keys() & cheapest[1].keys())
        }
        listed = [
            f"{model} {_percent(share)}" for model, share in shares.items() if abs(share) > _LISTED
        ]
        head = f"- Prompts of {tokens:,} tokens, {len(listed)} of {len(shares)}"
        yield f"{head}: {', '.join(listed)}."


def _cheapest(sizes: Prices, tokens: str) -> dict[str, float]:
    cheapest: dict[str, float] = {}
    for key, price in sizes.items():
        model, of_tokens, _, _ = key.split("|")
        if of_tokens == tokens:
            cheapest[model] = min(price, cheapest.get(model, price))
    return cheapest


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %"


def main() -> None:
    """Print the comparison, or with --dump the prices of this checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, nargs="?", help="the checkout before")
    parser.add_argument("--today", type=date.fromisoformat, default=date.today())  # noqa: DTZ011
    parser.add_argument("--dump", action="store_true")
    options = parser.parse_args()
    if options.dump or options.checkout is None:
        print(json.dumps(sized(options.today)))
        return
    before, after = _sized_by(options.checkout, options.today), sized(options.today)
    heads = ("kind", "tokens of a prompt", "rows", "median", "least", "most")
    for cells in (heads, ("---",) * len(heads), *_by_kind(before, after)):
        print(f"| {' | '.join(cells)} |")
    print("\n" + "\n".join(_moved(before, after)))


if __name__ == "__main__":
    main()
