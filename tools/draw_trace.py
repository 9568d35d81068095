"""Draws a trace of a day that has none, from the published rates of single clients.

ServeGen publishes the rate of every client of m-large in windows of ten minutes, with the family
and shape of its arrivals; the lengths are those that the same client has in a trace of another day.
A client without one takes those of another, chosen by its share of the requests.
"""

import argparse
import csv
import gzip
import math
import random
from array import array
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from scale.cases import HOUR
from tessera_lab.fleet.trace import Trace
from tessera_lab.fleet.trace_file import read_trace, trace_csv

_WINDOW = 600.0
_Row = dict[str, str]
_Lengths = dict[int, list[tuple[int, int]]]


def draw(
    rates: list[_Row], lengths: _Lengths, begin: float, seconds: float, scale: float, seed: int
) -> Trace:
    """Return the requests from `begin` on, seconds since the first day, at 1 / `scale` of them."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    clients, weights = list(lengths), [len(each) for each in lengths.values()]
    substitutes: dict[int, int] = {}
    requests: list[tuple[float, int, int, int]] = []
    for row in rates:
        start = float(row["t_s"]) - begin
        rate = float(row["rate_rps"]) / scale
        if not 0 <= start < seconds or rate <= 0:
            continue
        client = int(row["client"])
        if client not in lengths:
            if client not in substitutes:
                substitutes[client] = rng.choices(clients, weights)[0]
            client = substitutes[client]
        requests += [
            (start + at, *rng.choice(lengths[client]), int(row["client"]))
            for at in _arrivals(row, rate, rng)
        ]
    requests.sort()
    return Trace(
        name="drawn",
        seconds=seconds,
        arrivals=array("d", (at for at, *_ in requests)),
        input_tokens=array("l", (prompt for _, prompt, _, _ in requests)),
        output_tokens=array("l", (answer for _, _, answer, _ in requests)),
        clients=array("l", (client for *_, client in requests)),
    )


def _arrivals(row: _Row, rate: float, rng: random.Random) -> Iterator[float]:
    """Yield the arrivals of a window; it begins before, so that its start is no special moment."""
    mean, shape = 1 / rate, float(row["shape"] or 1)
    at = -min(_WINDOW, 30 * mean)
    while True:
        if row["pattern"] == "Gamma":
            at += rng.gammavariate(shape, mean / shape)
        elif row["pattern"] == "Weibull":
            at += rng.weibullvariate(mean / math.gamma(1 + 1 / shape), shape)
        else:
            at += rng.expovariate(rate)
        if at >= _WINDOW:
            return
        if at >= 0:
            yield at


def main() -> None:
    """Write the trace as CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=Path, required=True, help="rates by client and window")
    parser.add_argument(
        "--lengths", required=True, help="a trace with clients; its first day counts"
    )
    parser.add_argument("--begin-hour", type=float, required=True, help="since the first day")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--scale", type=float, default=9.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with gzip.open(options.rates, "rt", encoding="utf-8") as file:
        rates = list(csv.DictReader(file))
    trace = draw(
        rates,
        _lengths(read_trace(options.lengths)),
        options.begin_hour * HOUR,
        options.hours * HOUR,
        options.scale,
        options.seed,
    )
    options.out.write_text(trace_csv(trace), encoding="utf-8")
    print(f"{options.out}: {len(trace)} requests in {options.hours:g} h")


def _lengths(trace: Trace) -> _Lengths:
    if trace.clients is None:
        raise SystemExit(f"{trace.name}: no column client")
    lengths: _Lengths = defaultdict(list)
    columns = zip(
        trace.arrivals, trace.clients, trace.input_tokens, trace.output_tokens, strict=True
    )
    for at, client, prompt, answer in columns:
        if at < 24 * HOUR:
            lengths[client].append((prompt, answer))
    return dict(lengths)


if __name__ == "__main__":
    main()
