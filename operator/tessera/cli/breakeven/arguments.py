"""Options of `tessera breakeven`."""

from tessera.cli.options import (
    AMOUNT,
    CLUSTER_OPTIONS,
    COST_FORMATS,
    FILE,
    INTEGER,
    Command,
    argument,
    option,
    output_options,
)

SIZED_MODEL = (
    argument("model", "size this model, as tessera size does", required=False),
    option("--gpu", "of the model: only these GPUs", metavar="PRODUCT,..."),
    option("--precision", "of the model (default: that of its files)", metavar="NAME,..."),
    option("--slo", "of the model", metavar="ttft=1s,itl=33ms"),
    option("--gpu-prices", "JSON with dated prices of GPUs", **FILE),
    option("--catalogs", "of the model: JSON with further GPUs and models", **FILE),
)

API_PRICE = (
    option("--api", "the API's price of a model, in the list of prices", metavar="NAME"),
    option("--prices", "JSON with dated prices of APIs, instead of the shipped list", **FILE),
    option("--api-price", "price of 1M output tokens, and of input unless it is given", **AMOUNT),
    option("--api-input-price", "price of 1M input tokens", **AMOUNT),
)

BREAKEVEN = Command(
    "breakeven",
    "from which volume own GPUs cost less than an API",
    "Compares a month of requests on own GPUs with an API that charges by the token, without any "
    "cluster: the break-even as requests, tokens and share of the full load, and both costs by "
    "volume. A replica is described by --hourly and --tokens-per-second, or sized for a model; the "
    "demand is assumed, or read from usage records or counters of engines. A month has 30 days.",
    *SIZED_MODEL,
    option(
        "--hourly",
        "price of an hour of one replica (default: where the model's tokens are cheapest)",
        **AMOUNT,
    ),
    option(
        "--tokens-per-second",
        "output tokens per second of one replica at full load, as tessera bench measures them "
        "(default: predicted for the model)",
        metavar="T",
        type=float,
    ),
    *API_PRICE,
    option("--api-cached-price", "price of 1M input tokens that its prefix cache has", **AMOUNT),
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
    option("--ops", "what operating GPUs costs per month", **AMOUNT, default=0.0),
    option("--engineer-hours", "hours of engineers per month", metavar="H", type=float),
    option("--engineer-rate", "price of an hour of an engineer", **AMOUNT),
    option(
        "--sla-penalty",
        "what missing the SLA costs per month, beyond what it would at the API",
        **AMOUNT,
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
