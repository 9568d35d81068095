"""Rows about the operator's own series of costs and budgets as bills and records of spend."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tessera.adapters.prometheus.rows import QueryRow, sample_value, to_datetime
from tessera.api.tenant_budget import LIMIT_KEY, LimitKey
from tessera.domain.budget.meter import OutsideLoan, SpendMeter, SpendRecord, WindowSpend
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.statement import BillScrape, ProcessLabels, TenantLine
from tessera.ports import MetricsError

COST = "tessera_cost_nanos_total"
COST_AS_OF = "tessera_cost_as_of_timestamp_seconds"
COST_SINCE = "tessera_cost_since_timestamp_seconds"
BUDGET_SPENT = "tessera_budget_spent_nanos"
BUDGET_OUTSIDE = "tessera_budget_outside_nanos"
BUDGET_LENT = "tessera_budget_lent_nanos"
BUDGET_WINDOW_START = "tessera_budget_window_start_timestamp_seconds"

_COST_LABELS = ("currency", "pool", "profile", "tenant", "namespace", "service", "state")
# Other labels of our own, which a target may have too.
_ENERGY_LABELS = ("source", "split", "reason", "node", "gpu")
_STATES = {state.value: state for state in CostState}
# The prefix that Prometheus adds to a target's own label when it collides with one of ours.
_EXPORTED_PREFIX = "exported_"


def spend_records_of(
    charged: Sequence[QueryRow],
    starts: Iterable[QueryRow],
    spent: Iterable[tuple[float, QueryRow]],
    outside: Iterable[tuple[float, QueryRow]],
    lent: Iterable[tuple[float, QueryRow]],
) -> Mapping[str, SpendRecord]:
    """Return a record for each budget, from the starts of its windows and the spend since these.

    Part of the spend is what was used at outside providers, of what was lent for these.
    """
    if not charged:
        return {}
    as_of = to_datetime(max(map(sample_value, charged)))
    nanos, used_nanos, lent_nanos = (
        {
            (row["metric"]["budget"], row["metric"]["window"], start): int(sample_value(row))
            for start, row in rows
        }
        for rows in (spent, outside, lent)
    )
    latest: dict[tuple[str, LimitKey], tuple[float, str]] = {}
    for row in starts:
        labels = row["metric"]
        if LIMIT_KEY.fullmatch(labels["window"]):
            key = labels["budget"], labels["window"]
            latest[key] = max(latest.get(key, (0.0, "")), (sample_value(row), labels["currency"]))
    windows: dict[str, dict[LimitKey, WindowSpend]] = defaultdict(dict)
    loans: dict[str, dict[str, OutsideLoan]] = defaultdict(dict)
    currencies: dict[str, str] = {}
    for (budget, window), (start, currency) in sorted(latest.items()):
        amount = nanos.get((budget, window, start))
        if amount is not None:
            since = to_datetime(start)
            used = min(amount, used_nanos.get((budget, window, start), 0))
            most = max(used, lent_nanos.get((budget, window, start), 0))
            loans[budget][window] = OutsideLoan(since, most, used)
            windows[budget][window] = WindowSpend(since, amount - used, since)
            # Of windows in several currencies none can be used.
            currencies[budget] = currency if currencies.get(budget, currency) == currency else ""
    return {
        budget: SpendRecord(
            currency=currencies[budget],
            meter=SpendMeter(
                as_of=as_of, spend_by_window=spends, names_replicas=False, loans=loans[budget]
            ),
        )
        for budget, spends in windows.items()
    }


def scrapes_of(
    since: Iterable[QueryRow], as_of: Iterable[QueryRow]
) -> dict[ProcessLabels, tuple[BillScrape, ...]]:
    """Return the scrapes in raw samples of the two gauges, oldest first."""
    starts = {
        (process_labels(row), moment): float(value)
        for row in since
        for moment, value in row["values"]
    }
    scrapes: dict[ProcessLabels, list[BillScrape]] = defaultdict(list)
    for row in as_of:
        process = process_labels(row)
        for moment, value in row["values"]:
            start = starts.get((process, moment))
            if start is not None:
                scrape = BillScrape(
                    scraped_at=to_datetime(moment),
                    since=to_datetime(start),
                    as_of=to_datetime(float(value)),
                )
                scrapes[process].append(scrape)
    return {process: tuple(process_scrapes) for process, process_scrapes in scrapes.items()}


def amounts_of(rows: Iterable[QueryRow]) -> dict[TenantLine, int]:
    """Return the counters of one process in nano-units, by tenant and line."""
    amounts = {}
    for row in rows:
        word = own_label(row, "state")
        state = _STATES.get(word)
        if state is None:
            raise MetricsError(f"{COST}: unknown state {word!r}")
        amounts[tenant_line(row, state)] = int(sample_value(row))
    return amounts


def tenant_line(row: QueryRow, state: CostState) -> TenantLine:
    """Return the tenant and the line of a row of this state."""
    labels = {name: own_label(row, name) for name in _COST_LABELS}
    if not state.allocated:  # our own labels are empty there, so these are the target's
        labels |= dict.fromkeys(("tenant", "namespace", "service"), "")
    line = CostLine(
        currency=labels["currency"],
        pool=labels["pool"],
        profile=labels["profile"],
        namespace=labels["namespace"],
        service=labels["service"],
        state=state,
    )
    return labels["tenant"], line


def own_label(row: QueryRow, name: str) -> str:
    """Return a label of the series itself where the target has one of that name too."""
    labels = row["metric"]
    return str(labels.get(_EXPORTED_PREFIX + name, labels.get(name, "")))


def process_labels(row: QueryRow) -> ProcessLabels:
    """Return the labels of the target; where both set a name, it cannot tell processes apart."""
    names = _COST_LABELS + _ENERGY_LABELS
    own_labels = {"__name__", *names, *(_EXPORTED_PREFIX + name for name in names)}
    return tuple(
        sorted((name, value) for name, value in row["metric"].items() if name not in own_labels)
    )
