"""Measure how gateways and direct clients share one engine, by what each attains of its TTFT.

Each row is a simulation of two minutes: closed-loop clients, the engine's load
known every 0.25 s. The objective is a first token within 1 s.
"""

from typing import NamedTuple

from figures import benchmark
from tests.gateways_simulation import PLACES, Gateways


class _Case(NamedTuple):
    name: str
    gateways: tuple[int, ...]
    """Clients of each."""
    direct: int = 0
    spike: int = 0
    """Direct clients more, for 3 s."""


def _cases() -> list[_Case]:
    cases = []
    for load in (0.9, 1.0, 1.1, 1.2, 1.3):
        clients = round(load * PLACES)
        half, third = clients // 2, clients // 3
        cases += [
            _Case(f"{load} of {PLACES}, 1 gateway", (clients,)),
            _Case(f"{load} of {PLACES}, 2 gateways, even", (half, clients - half)),
            _Case(f"{load} of {PLACES}, 2 gateways, 3 to 1", (clients - half // 2, half // 2)),
            _Case(f"{load} of {PLACES}, 3 gateways, even", (third, third, clients - 2 * third)),
            _Case(f"{load} of {PLACES}, 1 gateway and as many direct", (half,), clients - half),
        ]
    cases.append(_Case("12 at a gateway, 28 direct, 14 more for 3 s", (12,), 28, 14))
    return cases


def measure(seconds: float = 120.0) -> dict[str, float]:
    """Print the table; return the worst figures."""
    print("| clients | in time | each gateway | direct | 503 | places in use |")
    print("|---|---|---|---|---|---|")
    gap, refused, alone = 0.0, 0, 0.0
    for case in _cases():
        fleet = Gateways(case.gateways, direct=case.direct)
        begin = seconds / 4
        fleet.run(begin)
        fleet.add_direct(case.spike, until=begin + 3)
        fleet.run(seconds)
        *gateways, direct = fleet.results.values()
        refusals = sum(result.refused for result in gateways)
        each = ", ".join(f"{100 * result.attained:.1f} %" for result in gateways)
        of_direct = f"{100 * direct.attained:.1f} %" if case.direct else ""
        used = fleet.busy_seconds / seconds
        print(
            f"| {case.name} | {100 * fleet.attained:.1f} % | {each} | {of_direct} | {refusals} | "
            f"{used:.1f} |"
        )
        if case.name.endswith("1 gateway"):
            alone = fleet.attained
        elif not case.direct:
            gap = max(gap, alone - fleet.attained)
        refused += refusals
    return {"worst_gap_points": round(100 * gap, 1), "refused": refused}


if __name__ == "__main__":
    benchmark(measure, short={"seconds": 8.0})
