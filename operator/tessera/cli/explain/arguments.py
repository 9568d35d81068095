"""Options of `tessera explain`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    GATEWAY_OPTION,
    PROMETHEUS_OPTION,
    Command,
    argument,
    namespace_option,
    output_options,
)

EXPLAIN = Command(
    "explain",
    "every decision about a service, and what would change it; a route; where a request went",
    "Explains why a service is as it is: hardware with its price and the alternatives, sizing, "
    "scaling, budget, drain, rollout, readiness. Reads the status and computes the plan as the "
    "operator does, without writing anything. "
    "`tessera explain route NAME` shows who answers for a ModelRoute, and with a Prometheus what "
    "its tokens cost in the last hour beside those of its last target. "
    "`tessera explain request ID` shows the last requests with this x-request-id that ended at any "
    "gateway pod: which replicas had how much of the prompt, which one got it and why, which ones "
    "were tried before, and what the engine found in its cache. It needs the same right as tessera "
    "usage.",
    argument("service", "name of the InferenceService, or `NAMESPACE/NAME`; `route` or `request`"),
    argument(
        "request_id",
        "name of a ModelRoute after `route`, id of a request after `request`",
        required=False,
        metavar="[NAME]",
    ),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the service"),
    PROMETHEUS_OPTION,
    GATEWAY_OPTION,
    *output_options(),
)
