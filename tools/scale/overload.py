"""The overload of WVA's own benchmark page, under the policies that the page compares.

20 requests per second of 4,000 prompt and 1,000 output tokens for ten minutes, one replica at the
start. The page says nothing of requests without a first token at the end, so here they are counted.
"""

import random
import statistics
from array import array
from dataclasses import replace

from scale.cases import CASES, COLD
from tessera_lab.fleet.generators import arrival_times
from tessera_lab.fleet.observation import Settings
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.trace import Trace

RATE, SECONDS, PROMPT, ANSWER = 20.0, 600.0, 4000, 1000
# P99 of the TTFT in seconds, and mean replicas.
PAGE = {"wva-v1": (98, 1.73), "keda-llm-d": (507, 7.4), "static": (555, 2.0)}
POLICIES: dict[str, Settings] = {
    "static": {"replicas": 2.0},
    "keda-llm-d": {},
    "wva-v1": {},
    "wva-v2": {},
    "wva-queueing": {},
}


def overload() -> Trace:
    """Return requests of equal lengths that arrive at random."""
    arrivals = array("d", arrival_times(lambda _: RATE, SECONDS, random.Random(1)))  # noqa: S311 - not a secret
    count = len(arrivals)
    return Trace(
        name="overload",
        seconds=SECONDS,
        arrivals=arrivals,
        input_tokens=array("l", [PROMPT]) * count,
        output_tokens=array("l", [ANSWER]) * count,
    )


def main() -> None:
    """Play the overload under each policy, and print it beside the page."""
    case = replace(CASES["mlarge"], typical_tokens=(PROMPT, ANSWER))
    fleet, trace = case.fleet(COLD, 0), overload()
    print("| policy | P99 TTFT | share | replicas | the page |\n| --- | --- | --- | --- | --- |")
    for name, settings in POLICIES.items():
        family = FAMILIES[name]
        policy = family.create({**family.published, **settings}, fleet.replica)
        begin = int(settings.get("replicas", 1))
        course = Simulation(trace, replace(fleet, initial_replicas=begin), policy, seed=1).run()
        answered = [
            ttft
            for arrival, ttft in zip(trace.arrivals, course.ttft, strict=True)
            if arrival + ttft <= SECONDS
        ]
        p99 = statistics.quantiles(answered, n=100)[-1]
        nodes = statistics.mean(each.nodes for each in course.samples if each.at <= SECONDS)
        page = "{} s, {}".format(*PAGE[name]) if name in PAGE else ""
        share = len(answered) / len(trace)
        print(f"| `{name}` | {p99:.0f} s | {share:.2f} | {nodes:.1f} | {page} |", flush=True)


if __name__ == "__main__":
    main()
