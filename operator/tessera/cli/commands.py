"""All commands and their options.

Nothing heavy is imported, so that help and completion are quick.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import click
from typing_extensions import override

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    FILE,
    INTEGER,
    PROMETHEUS_OPTION,
    Command,
    argument,
    namespace_option,
    option,
    output_options,
)

COST_GROUPINGS = ("service", "tenant", "pool")
COST_FORMATS = ("table", "json", "csv")
TOP_VIEWS = ("services", "requests")
USAGE_ACTIONS = ("sum", "import")
SHELLS = ("bash", "zsh", "fish")

# Each entry point of this group is a command of another distribution.
COMMANDS_GROUP = "tessera.commands"
_CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


def root_command(installed: Iterable[EntryPoint] | None = None) -> click.Group:
    """Return the whole command line, with the commands of other distributions.

    These are the installed ones, unless they are given.
    """
    if installed is None:
        installed = entry_points(group=COMMANDS_GROUP)
    # Where a distribution is found twice, as installed and in a checkout, so are its commands.
    entries = {entry.name: entry for entry in installed}
    others = _MISSING_COMMANDS | {name: entries[name].load() for name in sorted(entries)}
    return _Group(
        "tessera",
        help="Inspect the inference fleets of a cluster.",
        commands=[*_BEFORE, *others.values(), *_AFTER],
        context_settings=_CONTEXT_SETTINGS,
    )


class _Group(click.Group):
    """Commands in the order in which they are given."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


# No package index has it.
_INSTALL_LAB = "pip install '.[cli]' ./operator/tessera_lab in a checkout"


def _missing_command(name: str, summary: str) -> click.Command:
    """Return a command that only says which package it is in."""
    sentence = f"tessera {name} needs the package tessera-lab: {_INSTALL_LAB}"
    return click.Command(
        name,
        short_help=f"{summary} (in the package tessera-lab)",
        help=f"Not installed: {_INSTALL_LAB}.",
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        callback=lambda arguments: sys.exit(sentence),  # noqa: ARG005 - every call ends so
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


_MISSING_COMMANDS = {
    "bench": _missing_command("bench", "a load test of an OpenAI-compatible server"),
    "claims": _missing_command(
        "claims", "what is promised about the cost of inference, and what of it holds"
    ),
    "engine": _missing_command("engine", "what one engine does with a load, by its options"),
    "levers": _missing_command("levers", "what each lever is worth on a fleet, in dollars a month"),
    "mix": _missing_command("mix", "how many replicas to reserve for a load"),
    "simulate": _missing_command("simulate", "what a load would have cost under a scaling policy"),
}

_SERVICE_ARGUMENT = argument("service", "name of the InferenceService")
_GATEWAY_OPTION = option(
    "--gateway",
    "base URL of a gateway's metrics port (default: $TESSERA_GATEWAY_URL)",
    metavar="URL",
)
_AMOUNT = {"metavar": "AMOUNT", "type": float}
_POOL_ARGUMENT = argument("pool", "only this AcceleratorPool", required=False)

DOCTOR = Command(
    "doctor",
    "what is wrong in the cluster, and how to fix it",
    "Checks the cluster, the operator, the hardware, the metrics and the services. Checks "
    "without permission are skipped. Exits with 1 when a problem was found; warnings do "
    "not count.",
    *CLUSTER_OPTIONS,
    namespace_option("namespace for a dry run of the webhook; nothing is created"),
    PROMETHEUS_OPTION,
    *output_options(),
)

EXPLAIN = Command(
    "explain",
    "every decision about a service, and what would change it; where a request went",
    "Explains why a service is as it is: hardware with its price and the alternatives, sizing, "
    "scaling, budget, drain, rollout, readiness. Reads the status and computes the plan as the "
    "operator does, without writing anything. "
    "`tessera explain request ID` shows the last requests with this x-request-id that ended at one "
    "gateway pod: which replicas had how much of the prompt, which one got it and why, which ones "
    "were tried before, and what the engine found in its cache. It needs the same right as tessera "
    "usage.",
    argument("service", "name of the InferenceService, or `request`"),
    argument("request_id", "id of a request, after `request`", required=False, metavar="[ID]"),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the service"),
    PROMETHEUS_OPTION,
    _GATEWAY_OPTION,
    *output_options(),
)

TOP = Command(
    "top",
    "services by cost, pools by free devices; requests that run at a gateway",
    "Shows the services, the most expensive first, and the pools with their free devices. "
    "Queue, activity and measured tokens need Prometheus; predicted tokens are marked with ~. "
    "WAITING counts requests at engines and at gateways; SLO-NOW is of the last five minutes, "
    "while SLO of `kubectl get tsvc` may be five minutes older. "
    "`tessera top requests` shows the requests that wait or run at one gateway pod, the oldest "
    "first and at most 500, with the tokens that their streams have so far, and never a prompt. "
    "It needs the same right as tessera usage.",
    argument("view", "what to show", type=click.Choice(TOP_VIEWS), default=TOP_VIEWS[0]),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the services (default: all)"),
    option("-A --all-namespaces", "all namespaces (the default)", is_flag=True),
    PROMETHEUS_OPTION,
    _GATEWAY_OPTION,
    *output_options(),
)

UPDATE = Command(
    "update",
    "roll a service to what this version of Tessera would build",
    "Upgrades of Tessera leave running models alone. Where the condition UpdateAvailable is "
    "True, this command requests the new pod template now; otherwise it does nothing.",
    _SERVICE_ARGUMENT,
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the service"),
    *output_options(),
)

BUDGET_OVERRIDE = Command(
    "override",
    "let a tenant add replicas although the spend is unknown or not recorded",
    "A budget whose spend is unknown, or whose record the API server refuses, adds nothing. "
    "The override opens it until a time: the limits apply to the spend that is known. It "
    "stands in the status, in the message of WithinBudget, in explain and in the metrics.",
    argument("budget", "name of the TenantBudget", metavar="NAME"),
    option(
        "--until",
        "end, such as 2026-11-30T18:00:00Z; within the next 31 days",
        required=True,
        metavar="TIME",
    ),
    option("--reason", "why, for the record", required=True, metavar="TEXT"),
    *CLUSTER_OPTIONS,
    *output_options(),
    module="tessera.cli.budget.command",
)

BUDGET = _Group(
    "budget",
    short_help="open a tenant's budget for some time",
    help="Commands of the platform team for TenantBudgets.",
    commands=[BUDGET_OVERRIDE],
)

_KEYS_NAMESPACE = option(
    "--keys-namespace",
    "namespace of the Secrets of keys, gateway.keysNamespace of the chart (default: that of the "
    "gateway, $TESSERA_NAMESPACE or tessera-system, with -keys)",
    metavar="NAME",
)
_KEY_OPTIONS = (_KEYS_NAMESPACE, *CLUSTER_OPTIONS, *output_options())
_TENANT = option("--tenant", "the tenant: name of its TenantBudget", required=True, metavar="NAME")
_KEY_ARGUMENT = argument("name", "name of the key")

KEY_CREATE = Command(
    "create",
    "create a key for a tenant and show it once",
    "Creates a key of 256 random bits. Only its SHA-256 is stored, in a Secret of the namespace "
    "of keys, so it cannot be shown again. Gateways know it within 2 seconds.",
    argument("name", "name of the key, unique within the tenant", required=False),
    _TENANT,
    option("--team", "team of the tenant, whose limits apply too", metavar="NAME"),
    option("--models", "only these models (default: all of the tenant)", metavar="NAME,..."),
    option(
        "--services",
        "only these InferenceServices, whatever else has their names",
        metavar="NAMESPACE/NAME,...",
    ),
    option("--expires", "end, such as 90d or 2026-12-31T00:00:00Z", metavar="WHEN"),
    option("--requests-per-minute", "limit of the key", **INTEGER),
    option("--tokens-per-minute", "limit of prompts and answers together", **INTEGER),
    option("--tokens-per-day", "limit of prompts and answers together", **INTEGER),
    option(
        "--sheddable",
        "refuse its requests first where there is no room, and let all others go before them",
        is_flag=True,
    ),
    option("--sha256", "store this SHA-256 of a key that exists instead", metavar="HEX"),
    *_KEY_OPTIONS,
    module="tessera.cli.key.create",
)

KEY_LIST = Command(
    "list",
    "the keys of tenants",
    "Lists names, scopes and the first digits of the SHA-256; the keys themselves are nowhere.",
    option("--tenant", "only this tenant", metavar="NAME"),
    *_KEY_OPTIONS,
    module="tessera.cli.key.list_keys",
)

KEY_ROTATE = Command(
    "rotate",
    "create a new key with the name and scope of an old one",
    "Creates a new key and shows it once. The old one stays valid for a while, under its name and "
    "the first digits of its SHA-256.",
    _KEY_ARGUMENT,
    _TENANT,
    option("--expire-old-in", "how long the old key stays valid", default="24h", metavar="SPAN"),
    *_KEY_OPTIONS,
    module="tessera.cli.key.rotate",
)

KEY_REVOKE = Command(
    "revoke",
    "end a key now",
    "Removes the key. Gateways refuse new requests with it within 2 seconds; running ones end.",
    _KEY_ARGUMENT,
    _TENANT,
    *_KEY_OPTIONS,
    module="tessera.cli.key.revoke",
)

KEY = _Group(
    "key",
    short_help="keys of tenants for the gateway",
    help="Commands for the keys with which clients use the gateway.",
    commands=[KEY_CREATE, KEY_LIST, KEY_ROTATE, KEY_REVOKE],
)

_SINCE = option(
    "--since",
    "30m, 24h, 7d, or a day or moment such as 2026-11-01 in UTC",
    default="24h",
    metavar="WHEN",
)

COST = Command(
    "cost",
    "what the fleet cost",
    "Shows what the nodes of all pools cost, by what they were used for. The figures are "
    "differences of counters between two scrapes, so they are exact.",
    option("--by", "rows", type=click.Choice(COST_GROUPINGS), default="service"),
    _SINCE,
    PROMETHEUS_OPTION,
    *output_options(COST_FORMATS),
)

USAGE = Command(
    "usage",
    "requests and tokens by tenant, key and model",
    "Sums the usage records of the gateway: every request with the tokens that the engine counted. "
    "Requests of which the gateway counted the tokens itself are estimated. Needs the right to "
    "create tokens of the ServiceAccount tessera-usage-reader in the gateway's namespace. "
    "`tessera usage import` prints a Job that adds the records of a SQLite file to the database "
    "that replaced it, for kubectl apply -f -.",
    argument("action", "what to do", type=click.Choice(USAGE_ACTIONS), default=USAGE_ACTIONS[0]),
    option(
        "--by",
        "rows: a list of tenant, team, user, key, service, model, replica, route, phase, reason",
        default="tenant",
        metavar="FIELD,...",
    ),
    _SINCE,
    option("--tenant", "only this tenant", metavar="NAME"),
    option(
        "--claim",
        "of import: the PersistentVolumeClaim with the SQLite file",
        default="tessera-gateway",
        metavar="NAME",
    ),
    _GATEWAY_OPTION,
    *CLUSTER_OPTIONS,
    *output_options(COST_FORMATS),
)

PLAN = Command(
    "plan",
    "MIG layouts of the pools, or for a demand, on the fewest GPUs",
    "Shows the planned MIG layouts of every pool with spec.mig: the GPUs that change and their "
    "order, the replicas that move, the cost before and after, the optimality gap, and the "
    "reasons. With --demand it plans slices and layouts for the services of a CSV file "
    "instead, without a cluster. Exits with 3 if a service does not fit; the others are "
    "planned nevertheless.",
    _POOL_ARGUMENT,
    *CLUSTER_OPTIONS,
    option("--demand", "CSV: service,demand[,minReplicas]", **FILE),
    option(
        "--throughput",
        "CSV: service,profile,throughput of one replica in the unit of demand; without a row "
        "the service does not fit; the profile whole is the whole GPU",
        **FILE,
    ),
    option("--gpu", "GPU model, such as A100-80GB or NVIDIA-H100-PCIe", metavar="NAME"),
    option(
        "--current",
        "JSON: the current layouts, as this command prints them; as few replicas as possible move",
        **FILE,
    ),
    option(
        "--moves-per-gpu",
        "with --current: give up a GPU only if that moves at most N replicas (default: any number)",
        metavar="N",
        type=float,
    ),
    option("--svg", "also draw the layouts to this file", **FILE),
    *output_options(),
)

MOSAIC = Command(
    "mosaic",
    "every GPU as a strip of tiles, one for each slice",
    "Draws the GPUs in MIG mode: the service, start, GPU activity and price per hour of every "
    "slice, and what no slice covers. With a plan that is proposed or carried out it draws "
    "them before and after. GPU activity needs Prometheus.",
    _POOL_ARGUMENT,
    *CLUSTER_OPTIONS,
    PROMETHEUS_OPTION,
    option("--svg", "also draw the GPUs to this file", **FILE),
    *output_options(),
)

SIZE = Command(
    "size",
    "the hardware that a model fits on, with speed and cost",
    "Sizes a model on all hardware that has a price, in every precision, without any cluster: "
    "for each the smallest instance that serves it, and why. Speeds are predicted and prices "
    "assumed, unless a file gives them.",
    argument("model", "its name on the Hugging Face Hub", required=False),
    option("--config", "the config.json of a model outside the catalog", **FILE),
    option(
        "--gpu",
        "only these GPUs, named as the label nvidia.com/gpu.product has them",
        metavar="PRODUCT,...",
    ),
    option(
        "--precision",
        "only these precisions: checkpoint, fp8, int8, awq-int4, gptq-int4, nvfp4",
        metavar="NAME,...",
    ),
    option("--tensor-parallel", "only replicas over N whole GPUs", **INTEGER),
    option(
        "--compare",
        "every slice and number of GPUs, cheapest tokens first, against the cheapest",
        is_flag=True,
    ),
    option("--prices", "JSON with dated prices of GPUs", **FILE),
    option("--catalogs", "JSON with further GPUs and models", **FILE),
    option(
        "--api-price",
        "what a million output tokens cost elsewhere: shows where serving breaks even",
        metavar="AMOUNT",
    ),
    option(
        "--slo",
        "the SLO to meet; finds the simplest instance that does",
        metavar="ttft=1s,itl=33ms",
    ),
    option(
        "--context",
        "maximum tokens of prompt and response (default: 8192, or the model's if smaller)",
        **INTEGER,
    ),
    option("--input-tokens", "tokens of a typical prompt", **INTEGER, default=1200),
    option("--output-tokens", "tokens of a typical response", **INTEGER, default=250),
    option(
        "--kv-cache-dtype",
        "precision of the KV cache; auto is 16 bits",
        type=click.Choice(("auto", "fp8")),
        default="auto",
    ),
    option(
        "--max-num-seqs",
        "concurrent requests of a replica (default: the most within the SLO)",
        **INTEGER,
    ),
    option(
        "--max-num-batched-tokens",
        "tokens of one engine step (default: the best within the SLO)",
        **INTEGER,
    ),
    option(
        "--gpu-memory-utilization",
        "share of each device's memory for the engine (default: 0.92)",
        metavar="SHARE",
    ),
    option(
        "--block-size",
        "tokens of a block of the KV cache (default: 16)",
        type=click.Choice(("16", "32", "64", "128")),
    ),
    option("--draft", "a draft model for speculative decoding", metavar="MODEL"),
    option("--draft-tokens", "tokens that it drafts for each request (default: 5)", **INTEGER),
    option("--adapters", "slots for LoRA adapters", **INTEGER, default=0),
    option("--rank", "rank of the adapters", metavar="R", type=int, default=16),
    *output_options(),
)

_SIZED_MODEL = (
    argument("model", "size this model, as tessera size does", required=False),
    option("--gpu", "of the model: only these GPUs", metavar="PRODUCT,..."),
    option("--precision", "of the model (default: that of its files)", metavar="NAME,..."),
    option("--slo", "of the model", metavar="ttft=1s,itl=33ms"),
    option("--gpu-prices", "JSON with dated prices of GPUs", **FILE),
    option("--catalogs", "of the model: JSON with further GPUs and models", **FILE),
)
_API_PRICE = (
    option("--api", "the API's price of a model, in the list of prices", metavar="NAME"),
    option("--prices", "JSON with dated prices of APIs, instead of the shipped list", **FILE),
    option("--api-price", "price of 1M output tokens, and of input unless it is given", **_AMOUNT),
    option("--api-input-price", "price of 1M input tokens", **_AMOUNT),
)

BREAKEVEN = Command(
    "breakeven",
    "from which volume own GPUs cost less than an API",
    "Compares a month of requests on own GPUs with an API that charges by the token, without any "
    "cluster: the break-even as requests, tokens and share of the full load, and both costs by "
    "volume. A replica is described by --hourly and --tokens-per-second, or sized for a model; the "
    "demand is assumed, or read from usage records or counters of engines. A month has 30 days.",
    *_SIZED_MODEL,
    option(
        "--hourly",
        "price of an hour of one replica (default: where the model's tokens are cheapest)",
        **_AMOUNT,
    ),
    option(
        "--tokens-per-second",
        "output tokens per second of one replica at full load, as tessera bench measures them "
        "(default: predicted for the model)",
        metavar="T",
        type=float,
    ),
    *_API_PRICE,
    option("--api-cached-price", "price of 1M input tokens that its prefix cache has", **_AMOUNT),
    option("--input-tokens", "tokens of a typical prompt", **INTEGER, default=1200),
    option("--output-tokens", "tokens of a typical response", **INTEGER, default=250),
    option("--cached-tokens", "tokens of the prompt that a cache has", **INTEGER, default=0),
    option("--requests-per-day", "the demand", metavar="R", type=float),
    option("--tokens", "the demand as input and output tokens per month", metavar="N", type=float),
    option("--gateway", "the demand from usage records: URL of a metrics port", metavar="URL"),
    option("--prometheus", "the demand from counters of engines: base URL", metavar="URL"),
    option(
        "--since",
        "how far back the demand is read: 7d, 4w, or a day such as 2026-11-01",
        default="30d",
        metavar="WHEN",
    ),
    option("--service", "only the demand of this service", metavar="NAMESPACE/NAME"),
    option("--tenant", "only the demand of this tenant", metavar="NAME"),
    option("--ops", "what operating GPUs costs per month", **_AMOUNT, default=0.0),
    option("--engineer-hours", "hours of engineers per month", metavar="H", type=float),
    option("--engineer-rate", "price of an hour of an engineer", **_AMOUNT),
    option(
        "--sla-penalty",
        "what missing the SLA costs per month, beyond what it would at the API",
        **_AMOUNT,
        default=0.0,
    ),
    option(
        "--peak",
        "requests in the busiest hours, as a multiple of the mean of the day",
        metavar="RATIO",
        type=float,
        default=1.0,
    ),
    option("--peak-hours", "the busiest hours of a day", metavar="H", type=float, default=4.0),
    option(
        "--price-decline",
        "the share by which the API's prices fall in a year: shows when own GPUs stop paying",
        metavar="0.8/yr",
    ),
    option("--months", "months to look ahead with --price-decline", **INTEGER, default=12),
    option("--svg", "also draw the costs by volume to this file", **FILE),
    *CLUSTER_OPTIONS,
    *output_options(COST_FORMATS),
)

_RANGE = {"metavar": "LOW:LIKELY:HIGH"}

FORECAST = Command(
    "forecast",
    "what a service will use and cost in a month, and why a forecast was wrong",
    "Before a launch: multiplies requests, retries, prompts with what is added to them, and "
    "answers, each as a number or as LOW:LIKELY:HIGH with a tenth of the cases below and above, "
    "to tokens, GPU-hours and dollars of a month of 30 days. After it: --compare reads a saved "
    "forecast, and names the factor that was wrong by usage records, sums or counters.",
    *_SIZED_MODEL,
    option("--requests", "what users ask, per s, min, h, day or month", metavar="RANGE/UNIT"),
    option("--prompt-tokens", "tokens that a user writes in a request", **_RANGE),
    option(
        "--hidden-tokens",
        "tokens that the application adds: system prompt, tools, documents",
        **_RANGE,
        default="0",
    ),
    option(
        "--turns",
        "requests of a conversation; each sends all earlier ones and their answers again",
        **_RANGE,
        default="1",
    ),
    option("--retries", "how often a request is sent again", **_RANGE, default="0"),
    option("--answer-tokens", "tokens of one answer", **_RANGE),
    option("--answers", "answers to a request, its field n", **_RANGE, default="1"),
    *_API_PRICE,
    option(
        "--utilization",
        "of the model: mean share of the full load of its replicas",
        metavar="SHARE",
        type=float,
        default=0.5,
    ),
    option("--service", "the InferenceService that the forecast is of", metavar="NAMESPACE/NAME"),
    option("--save", "also write the forecast to this file", **FILE),
    option("--compare", "a saved forecast to compare with what was used", **FILE),
    option(
        "--records",
        "usage records: CSV of the gateway's table, or its access log; may end in .gz",
        **FILE,
    ),
    option("--days", "days of the records (default: first to last)", metavar="N", type=float),
    option("--gateway", "sums of usage records: URL of a metrics port", metavar="URL"),
    option("--prometheus", "counters of engines: base URL", metavar="URL"),
    _SINCE,
    option(
        "--alert-rule",
        "print a PrometheusRule that fires above twice the forecast, for kubectl apply -f -",
        is_flag=True,
    ),
    *CLUSTER_OPTIONS,
    *output_options(),
)

SNAPSHOT_SAVE = Command(
    "save",
    "write a snapshot file",
    "Writes everything that the plan reads into one JSON file. Values of environment "
    "variables, arguments of containers and passwords in URLs are left out.",
    argument("file", "compressed when it ends in .gz; - is stdout", **FILE),
    *CLUSTER_OPTIONS,
    PROMETHEUS_OPTION,
    module="tessera.cli.snapshot.save",
)

SNAPSHOT_PLAN = Command(
    "plan",
    "compute the plan of a snapshot file",
    "Prints what this version decides from a snapshot file, without any cluster.",
    argument("file", "written by tessera snapshot save", **FILE),
    option("--service", "explain this service", metavar="NAMESPACE/NAME"),
    *output_options(),
    module="tessera.cli.snapshot.plan",
)

SNAPSHOT = _Group(
    "snapshot",
    short_help="save the input of the plan, and compute the plan elsewhere",
    help="A snapshot file holds everything that the plan reads, without secrets. "
    "Computing its plan needs no cluster: attach the file to a bug report.",
    commands=[SNAPSHOT_SAVE, SNAPSHOT_PLAN],
)

COMPLETION = Command(
    "completion",
    "the completion script of a shell",
    "Prints a completion script, for example: source <(tessera completion bash). kubectl "
    "tessera is completed by kubectl itself, through kubectl_complete-tessera.",
    argument("shell", "which shell", type=click.Choice(SHELLS)),
    module="tessera.cli.complete",
)

_BEFORE = (
    DOCTOR,
    EXPLAIN,
    TOP,
    UPDATE,
    BUDGET,
    KEY,
    COST,
    USAGE,
    PLAN,
    MOSAIC,
    SIZE,
    BREAKEVEN,
    FORECAST,
)
_AFTER = (SNAPSHOT, COMPLETION)
