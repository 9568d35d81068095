"""All commands and their options. Nothing heavy is imported, so that help and completion are quick.

A command's `module` has `run`: arguments in, `Told` out.
"""

import argparse
from typing import TypeAlias

COST_ROWS = ("service", "tenant", "pool")
COST_FORMS = ("table", "json", "csv")
FORMS = ("text", "json")
ENDPOINTS = ("chat", "completions")
KV_DTYPES = ("auto", "fp8")
SHELLS = ("bash", "zsh", "fish")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser(program: str = "tessera") -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog=program, description="Looks at the inference fleets of a cluster."
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    added = (_doctor, _explain, _top, _update, _cost, _size, _bench, _plan, _snapshot, _completion)
    for add in added:
        add(commands)
    return made


def _doctor(commands: Commands) -> None:
    made = _command(
        commands,
        "doctor",
        "what is wrong in the cluster, and how to mend it",
        "Checks the cluster, the operator, the hardware, the metrics and the services. What may "
        "not be read is skipped. Exits with 1 when a problem was found; warnings do not count.",
    )
    _connects(made)
    _namespaced(made, "where the webhook is tried; nothing is created there")
    _asks_prometheus(made)
    _formed(made)


def _explain(commands: Commands) -> None:
    made = _command(
        commands,
        "explain",
        "every decision about a service, and what would change it",
        "Tells why a service is as it is: hardware with its price and the alternatives, sizing, "
        "scaling, budget, drain, rollout, readiness. It reads the status and plans anew, as the "
        "operator does, without writing anything.",
    )
    made.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    _connects(made)
    _namespaced(made, "namespace of the service")
    _asks_prometheus(made)
    _formed(made)


def _top(commands: Commands) -> None:
    made = _command(
        commands,
        "top",
        "services by what they cost, pools by what is free",
        "Shows the services, what costs most first, and the pools with their free devices. Queue, "
        "activity and measured tokens need Prometheus; expected tokens stand with a ~.",
    )
    _connects(made)
    _namespaced(made, "namespace of the services; without it all")
    made.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all namespaces (the default)"
    )
    _asks_prometheus(made)
    _formed(made)


def _update(commands: Commands) -> None:
    made = _command(
        commands,
        "update",
        "roll a service to what this version of Tessera would build",
        "Upgrades of Tessera leave running models alone. Where the condition UpdateAvailable is "
        "True this asks for the new form now; else it says so and does nothing.",
    )
    made.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    _connects(made)
    _namespaced(made, "namespace of the service")
    _formed(made)


def _cost(commands: Commands) -> None:
    made = _command(
        commands,
        "cost",
        "what the fleet cost",
        "Shows what the nodes of all pools cost, by what was done with them. The "
        "figures are differences of counters at single scrapes, so they are exact.",
    )
    made.add_argument(
        "--by", choices=COST_ROWS, default="service", help="rows (default: %(default)s)"
    )
    made.add_argument(
        "--since",
        default="24h",
        metavar="WHEN",
        help="30m, 24h, 7d, or a day or moment such as 2026-11-01 in UTC (default: %(default)s)",
    )
    _asks_prometheus(made)
    _formed(made, COST_FORMS)


def _size(commands: Commands) -> None:
    made = _command(
        commands,
        "size",
        "what a model fits on, what it then gives, and what that costs",
        "Sizes a model on all hardware that has a price, in every precision, without any cluster: "
        "for each the smallest form that serves it, and why. Speeds are predicted and prices "
        "assumed, unless a file gives them.",
    )
    made.add_argument("model", metavar="MODEL", nargs="?", help="its name on the hub")
    made.add_argument("--config", metavar="FILE", help="the config.json of a model not known here")
    _sized_on(made)
    _sized_for(made)
    _sized_with(made)
    _formed(made)


def _sized_on(made: argparse.ArgumentParser) -> None:
    """On which hardware, at which price."""
    made.add_argument(
        "--gpu",
        metavar="PRODUCT,...",
        help="only these, named as the label nvidia.com/gpu.product has them",
    )
    made.add_argument(
        "--precision", metavar="NAME,...", help="only these: own, fp8, int8, awq-int4, gptq-int4"
    )
    made.add_argument(
        "--tensor-parallel", metavar="N", type=int, help="only replicas over N whole GPUs"
    )
    made.add_argument(
        "--compare",
        action="store_true",
        help="every slice and number of GPUs, cheapest tokens first, against the cheapest",
    )
    made.add_argument("--prices", metavar="FILE", help="JSON with prices of GPUs and their days")
    made.add_argument(
        "--api-price",
        metavar="AMOUNT",
        help="what a million output tokens cost elsewhere: shows where serving breaks even",
    )


def _sized_for(made: argparse.ArgumentParser) -> None:
    """For which load and promise."""
    made.add_argument(
        "--slo",
        metavar="ttft=1s,inter-token=33ms",
        help="the promise to keep; finds the simplest form that does",
    )
    made.add_argument(
        "--context",
        metavar="N",
        type=int,
        help="longest prompt plus answer (default: 8192, or the model's if smaller)",
    )
    made.add_argument(
        "--input-tokens",
        metavar="N",
        type=int,
        default=1200,
        help="of a usual prompt (default: %(default)s)",
    )
    made.add_argument(
        "--output-tokens",
        metavar="N",
        type=int,
        default=250,
        help="of a usual answer (default: %(default)s)",
    )


def _sized_with(made: argparse.ArgumentParser) -> None:
    """What lies in memory beside the model."""
    made.add_argument(
        "--kv-cache-dtype",
        choices=KV_DTYPES,
        default=KV_DTYPES[0],
        help="of the KV cache (default: %(default)s, 16 bits)",
    )
    made.add_argument("--draft", metavar="MODEL", help="a draft model for speculative decoding")
    made.add_argument(
        "--adapters",
        metavar="N",
        type=int,
        default=0,
        help="slots for LoRA adapters (default: %(default)s)",
    )
    made.add_argument(
        "--rank",
        metavar="R",
        type=int,
        default=16,
        help="rank of the adapters (default: %(default)s)",
    )


def _bench(commands: Commands) -> None:
    made = _command(
        commands,
        "bench",
        "a load test of an OpenAI-compatible server",
        "Sends streamed requests with random prompts and tells latencies, tokens a second, what "
        "they cost, and what to know before believing it. Ctrl-C ends it with the report so far. "
        "The API key comes from TESSERA_API_KEY or a file.",
    )
    made.add_argument("url", metavar="URL", help="of the server, such as http://127.0.0.1:8000")
    _loads(made)
    _requests(made)
    _judges(made)
    made.add_argument("--html", metavar="FILE", help="write the report with plots there, too")
    made.add_argument(
        "--baseline", metavar="FILE", help="an earlier report (-o json); tells what changed since"
    )
    _formed(made)


def _loads(made: argparse.ArgumentParser) -> None:
    """Which of the loads, at most one of them."""
    load = made.add_argument_group("load").add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency", metavar="N", type=int, help="closed loop: so many at once (default: 10)"
    )
    load.add_argument(
        "--sweep", metavar="N,N,...", help="closed loop, one load after another, and the knee"
    )
    load.add_argument(
        "--rate", metavar="R", type=float, help="open loop: R requests a second, Poisson arrivals"
    )
    load.add_argument(
        "--trace", metavar="FILE", help="open loop, recorded: CSV or Mooncake's JSON lines, or .gz"
    )
    made.add_argument(
        "--speed",
        metavar="X",
        type=float,
        default=1.0,
        help="the trace X times as fast (default: %(default)s)",
    )
    made.add_argument(
        "--prompts",
        metavar="N",
        type=int,
        help="requests (default: 100, in a sweep at least 8 for each place; of a trace all)",
    )
    made.add_argument(
        "--warmup",
        metavar="N",
        type=int,
        default=10,
        help="requests before that, which do not count (default: %(default)s)",
    )
    made.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="for a whole answer (default: %(default)s)",
    )


def _requests(made: argparse.ArgumentParser) -> None:
    """What they ask for."""
    made.add_argument("--model", metavar="NAME", help="where the server has several")
    made.add_argument(
        "--endpoint",
        choices=ENDPOINTS,
        default=ENDPOINTS[0],
        help="which form of requests (default: %(default)s)",
    )
    form = "N, uniform:LEAST:MOST or lognormal:P50:P95"
    made.add_argument(
        "--input-tokens",
        metavar="LENGTHS",
        default="512",
        help=f"{form} (default: %(default)s)",
    )
    made.add_argument(
        "--output-tokens",
        metavar="LENGTHS",
        default="200",
        help="the same, of answers (default: %(default)s)",
    )
    made.add_argument(
        "--shared-prefix",
        metavar="N",
        type=int,
        default=0,
        help="so many of the input tokens are the same in all (default: %(default)s)",
    )
    made.add_argument(
        "--natural-end",
        action="store_true",
        help="answers may end before their length; without it vLLM's ignore_eos is sent",
    )
    made.add_argument("--seed", metavar="N", type=int, help="of prompts and arrivals")
    made.add_argument("--api-key-file", metavar="FILE", help="holds the API key")


def _judges(made: argparse.ArgumentParser) -> None:
    """What the answers are held against."""
    made.add_argument(
        "--metrics",
        metavar="URL,...",
        help="of all engines that serve, one URL each (default: /metrics of the server)",
    )
    made.add_argument(
        "--gpu",
        metavar="PRODUCT[/PROFILE]",
        help="for MFU and MBU, such as NVIDIA-H100-80GB-HBM3/3g.40gb",
    )
    made.add_argument("--fp8", action="store_true", help="MFU against the peak at 8 bits")
    made.add_argument(
        "--price", metavar="AMOUNT", help="of an hour of one GPU or slice, such as 3.50"
    )
    made.add_argument(
        "--gpus",
        metavar="N",
        type=int,
        default=1,
        help="how many of them serve (default: %(default)s)",
    )
    made.add_argument(
        "--currency", metavar="CODE", default="USD", help="of the price (default: %(default)s)"
    )
    made.add_argument(
        "--price-ratio",
        metavar="X",
        type=float,
        default=4.0,
        help="how many times the price of an input token an output token is sold for "
        "(default: %(default)s)",
    )


def _plan(commands: Commands) -> None:
    made = _command(
        commands,
        "plan",
        "MIG layouts for a demand, on the fewest GPUs",
        "Chooses slices and layouts for the services of a CSV file, without a cluster, and tells "
        "how far that may be from the best. Exits with 3 when a service fits no slice and no whole "
        "GPU; the others are planned all the same.",
    )
    made.add_argument(
        "--demand", metavar="FILE", required=True, help="CSV: service,demand[,floor of instances]"
    )
    made.add_argument(
        "--throughput",
        metavar="FILE",
        required=True,
        help="CSV: service,profile,throughput of one instance in the unit of demand; no row: it "
        "does not fit; the profile full is the unpartitioned GPU",
    )
    made.add_argument(
        "--gpu", metavar="NAME", required=True, help="such as A100-80GB or NVIDIA-H100-PCIe"
    )
    made.add_argument(
        "--current",
        metavar="FILE",
        help="JSON: the layouts that there are, as this command prints them; as few instances as "
        "possible move",
    )
    made.add_argument(
        "--moves-per-gpu",
        metavar="N",
        type=float,
        help="with --current: a GPU is given up only if that moves at most so many instances "
        "(default: any number)",
    )
    made.add_argument("--svg", metavar="FILE", help="draw the layouts there, too")
    _formed(made)


def _snapshot(commands: Commands) -> None:
    deeds = commands.add_parser(
        "snapshot",
        help="save what is planned from, and plan it anew elsewhere",
        description="A snapshot file holds everything that the plan reads, without secrets. "
        "Planning it anew needs no cluster, so it is what a bug report carries.",
    ).add_subparsers(dest="deed", metavar="DEED", required=True)
    save = _command(
        deeds,
        "save",
        "write a snapshot file",
        "Writes everything that the plan reads into one JSON file. Values of environment "
        "variables, arguments of containers and passwords in URLs are left out.",
        module="snapshot_save",
    )
    save.add_argument("file", metavar="FILE", help="compressed when it ends in .gz; - is stdout")
    _connects(save)
    _asks_prometheus(save)
    plan = _command(
        deeds,
        "plan",
        "plan a snapshot file anew",
        "Prints what this version decides from a snapshot file, without any cluster.",
        module="snapshot_plan",
    )
    plan.add_argument("file", metavar="FILE", help="made by tessera snapshot save")
    plan.add_argument("--service", metavar="NAMESPACE/NAME", help="explain this service")
    _formed(plan)


def _completion(commands: Commands) -> None:
    made = _command(
        commands,
        "completion",
        "the completion script of a shell",
        "Prints a script, for example: source <(tessera completion bash). kubectl tessera is "
        "completed by kubectl itself, through kubectl_complete-tessera.",
    )
    made.add_argument("shell", choices=SHELLS, help="which shell")


def _command(
    commands: Commands, name: str, summary: str, description: str, module: str = ""
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=summary, description=description)
    made.set_defaults(module=f"tessera.cli.{module or name}")
    return made


def _connects(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="the kubeconfig (default: $KUBECONFIG, then ~/.kube/config)",
    )
    made.add_argument("--context", metavar="NAME", help="context of the kubeconfig")


def _namespaced(made: argparse.ArgumentParser, meaning: str) -> None:
    made.add_argument("-n", "--namespace", metavar="NAME", help=meaning)


def _asks_prometheus(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--prometheus", metavar="URL", help="base URL (default: $TESSERA_PROMETHEUS_URL)"
    )


def _formed(made: argparse.ArgumentParser, forms: tuple[str, ...] = FORMS) -> None:
    made.add_argument(
        *("-o", "--output"), choices=forms, default=forms[0], help="form (default: %(default)s)"
    )
    made.add_argument(
        "--json", dest="output", action="store_const", const="json", help="the same as -o json"
    )
