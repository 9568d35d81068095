"""Options of `tessera forecast`."""

from tessera.cli.breakeven.arguments import API_PRICE, SIZED_MODEL
from tessera.cli.options import CLUSTER_OPTIONS, FILE, SINCE, Command, option, output_options

_RANGE = {"metavar": "LOW:LIKELY:HIGH"}

FORECAST = Command(
    "forecast",
    "what a service will use and cost in a month, and why a forecast was wrong",
    "Before a launch: multiplies requests, retries, prompts with what is added to them, and "
    "answers, each as a number or as LOW:LIKELY:HIGH with a tenth of the cases below and above, "
    "to tokens, GPU-hours and dollars of a month of 30 days. After it: --compare reads a saved "
    "forecast, and names the factor that was wrong by usage records, sums or counters.",
    *SIZED_MODEL,
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
    *API_PRICE,
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
    SINCE,
    option(
        "--alert-rule",
        "print a PrometheusRule that fires above twice the forecast, for kubectl apply -f -",
        is_flag=True,
    ),
    *CLUSTER_OPTIONS,
    *output_options(),
)
