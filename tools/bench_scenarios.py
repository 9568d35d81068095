"""What scaling policies keep in hard situations: `make bench-scenarios`.

Every policy runs as published in every scenario on a simulated fleet of one service. A table per
scenario says which properties held, with the requests in time and the replica-hours, and a last one
counts by policy. The last line is `BENCH {json}`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from figures import benchmark
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.policies.product import OURS
from tessera_lab.fleet.scenarios.scenario import RATE, SCENARIOS
from tessera_lab.fleet.scenarios.verdict import PropertyVerdict, attainable_share, play

PROPERTIES = ("no_ratchet", "no_oscillation", "no_loss", "no_deadlock")
_TITLES = ("RATCHET", "OSCILLATION", "LOSS", "DEADLOCK")
_WORDS = {True: "no", False: "YES", None: "-"}

# By policy and scenario.
Verdicts = Mapping[str, Mapping[str, PropertyVerdict]]


def measure(
    policies: str = ",".join((OURS, *FAMILIES)),
    scenarios: str = ",".join(SCENARIOS),
    rate: float = RATE,
) -> dict[str, object]:
    """Play every scenario under every policy, and print what holds."""
    verdicts: dict[str, dict[str, PropertyVerdict]] = {name: {} for name in policies.split(",")}
    began = time.process_time()
    for name in scenarios.split(","):
        scenario = replace(SCENARIOS[name], usual_rate=rate)
        required = attainable_share(scenario)
        _print_heading(name, required)
        for policy, by_scenario in verdicts.items():
            if scenario.product_only and policy != OURS:
                continue
            by_scenario[name] = verdict = play(policy, scenario, required)
            _print_verdict(policy, verdict)
    _print_counts(verdicts)
    return _figures(verdicts, time.process_time() - began)


def _print_heading(scenario: str, required: float) -> None:
    print(f"\n{scenario} (recovered with {required:.1%} in time)")
    titles = " ".join(f"{title:>11}" for title in _TITLES)
    print(f"{'POLICY':20} {titles} {'FINAL':>7} {'RECOVERED':>9} {'IN TIME':>8} {'REPLICA-H':>9}")


def _print_verdict(policy: str, verdict: PropertyVerdict) -> None:
    words = " ".join(f"{_WORDS[getattr(verdict, each)]:>11}" for each in PROPERTIES)
    final = f"{verdict.final} of {verdict.minimum}"
    print(
        f"{policy:20} {words} {final:>7} {verdict.recovered_share:>9.1%} {verdict.share:>8.1%} "
        f"{verdict.replica_hours:>9.2f}",
        flush=True,
    )


def _failures(verdicts: Mapping[str, PropertyVerdict], each: str) -> Sequence[str]:
    return [name for name, verdict in verdicts.items() if getattr(verdict, each) is False]


def _print_counts(verdicts: Verdicts) -> None:
    titles = " ".join(f"{title:>11}" for title in _TITLES)
    print(f"\nScenarios in which a property did not hold\n{'POLICY':20} {titles} {'ALL KEPT':>9}")
    for policy, by_scenario in verdicts.items():
        counts = " ".join(f"{len(_failures(by_scenario, each)):>11}" for each in PROPERTIES)
        whole = sum(verdict.holds for verdict in by_scenario.values())
        print(f"{policy:20} {counts} {whole:>4} of {len(by_scenario)}")


def _figures(verdicts: Verdicts, cpu_seconds: float) -> dict[str, object]:
    """Return the scenarios that each policy kept whole, and where ours did not hold."""
    product = verdicts.get(OURS, {})
    return {
        **{
            f"kept_{policy}": sum(verdict.holds for verdict in by_scenario.values())
            for policy, by_scenario in verdicts.items()
        },
        **{f"scenarios_{policy}": len(by_scenario) for policy, by_scenario in verdicts.items()},
        **{f"tessera_failures_{each}": _failures(product, each) for each in PROPERTIES},
        "tessera_in_time_min": round(
            min((verdict.share for verdict in product.values()), default=1.0), 3
        ),
        "tessera_replica_hours": round(
            sum(verdict.replica_hours for verdict in product.values()), 2
        ),
        "cpu_seconds": round(cpu_seconds),
    }


if __name__ == "__main__":
    benchmark(
        measure,
        short={"scenarios": "steady,price-change", "rate": 0.5},
        rate={"help": "usual requests per second"},
    )
