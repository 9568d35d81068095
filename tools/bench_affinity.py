"""What prefix caches have of conversations: `make bench-affinity`.

Sessions of six turns after a system prompt of 1,200 tokens reach a fixed number of replicas by the
gateway's own choice (`domain.picking`), for one tenant and for eight whose system prompts differ.
Beside the cached share of the input stands that of one cache of all replicas which keeps
everything; what lies between is computed although a replica had it. The last line is `BENCH
{json}`.
"""

import argparse
import statistics
from dataclasses import dataclass, replace

from figures import print_figures
from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.hardware import device as hardware
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera_lab.fleet.conversations import Conversations
from tessera_lab.fleet.model import FleetModel, Router
from tessera_lab.fleet.policies.families import StaticPolicy
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PRODUCT = "NVIDIA-A100-SXM4-80GB"
REPLICAS = (4, 16)
TENANTS = (1, 8)
TURNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run had of its input."""

    requests: int
    cached: float
    """Share of the input tokens that the prefix caches of the replicas had."""
    best: float
    """Share that one cache of all replicas would have."""
    system: float
    """Share of the system prompts."""
    within: float
    """Share of the requests whose first token came within the objective."""

    @property
    def history(self) -> float:
        """Return which part the replicas had of earlier turns, as if all had the system prompts."""
        return (self.cached - self.system) / (self.best - self.system)


def service_fleet(replicas: int, block_tokens: int) -> FleetModel:
    """Return one GPU for each replica, as the product sizes them, with all defaults."""
    bounds = {"minReplicas": replicas, "maxReplicas": replicas}
    spec = InferenceServiceSpec.model_validate(
        {"model": {"uri": f"hf://{MODEL}"}, "scaling": bounds}
    )
    demand = Demand(
        shape=catalog.models()[MODEL],
        precision=None,
        max_model_len=8192,
        input_tokens=spec.context.typical_input_tokens,
        output_tokens=spec.context.typical_output_tokens,
        ttft=spec.slo.ttft_p95,
        inter_token=spec.slo.itl_p95,
    )
    fit = size(demand, hardware.whole_gpu_hardware(catalog.products()[PRODUCT], 1))
    if not isinstance(fit, ReplicaFit):
        raise TypeError(f"{MODEL} does not fit on {PRODUCT}")
    fleet = sized_fleet(spec, fit)
    limits = replace(fleet.limits, shared_tokens=block_tokens)
    return replace(fleet, limits=limits, router=Router.GATEWAY)


def play(replicas: int, tenants: int, rate: float, seconds: float, seed: int) -> Outcome:
    """Simulate so many requests per second and replica."""
    load = Conversations(tenants=tenants, turns=TURNS)
    trace = load.draw(rate * replicas / TURNS, seconds, seed)
    fleet = service_fleet(replicas, trace.prefix_tokens)
    policy = StaticPolicy({"replicas": float(replicas)}, fleet.replica)
    course = Simulation(trace, fleet, policy, seed=seed).run()
    input_tokens = sum(trace.input_tokens)
    return Outcome(
        requests=len(trace),
        cached=course.cached_tokens / course.prompt_tokens,
        best=trace.repeated_tokens() / input_tokens,
        system=load.system_tokens * len(trace) / input_tokens,
        within=sum(ttft <= fleet.replica.ttft for ttft in course.ttft) / len(trace),
    )


def main() -> None:
    """Print a table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=4.0, help="requests per second and replica")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    figures = dict[str, object]()
    print(
        "| replicas | tenants | requests | cached | at best | computed twice | of earlier turns "
        "| TTFT in time |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for replicas in REPLICAS:
        for tenants in TENANTS:
            outcomes = [
                play(replicas, tenants, options.rate, options.seconds, seed)
                for seed in range(1, options.seeds + 1)
            ]
            cached, best, history, within = (
                statistics.mean(getattr(outcome, name) for outcome in outcomes)
                for name in ("cached", "best", "history", "within")
            )
            requests = sum(outcome.requests for outcome in outcomes)
            print(
                f"| {replicas} | {tenants} | {requests:,} | {cached:.1%} | {best:.1%} | "
                f"{best - cached:.1%} | {history:.1%} | {within:.1%} |",
                flush=True,
            )
            key = f"{replicas}_replicas_{tenants}_tenants"
            figures[f"cached_share_{key}"] = round(cached, 3)
            figures[f"best_share_{key}"] = round(best, 3)
            figures[f"history_share_{key}"] = round(history, 3)
    print_figures(figures)


if __name__ == "__main__":
    main()
