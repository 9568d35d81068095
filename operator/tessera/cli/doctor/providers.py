"""Check of the prices of ModelProviders."""

from collections.abc import Sequence

from tessera.api.text import counted, first_names
from tessera.cli.doctor.finding import CheckContext, Finding, Findings, ok, warning
from tessera.cli.provider.diff import cluster_models
from tessera.cli.provider.table import described
from tessera.domain.economics.api_prices import MAX_PRICE_AGE
from tessera.domain.kinds.kinds import MODEL_PROVIDERS
from tessera.domain.providers.prices import ComparedModel, shipped_prices

_CHECK = "provider prices"
_OLD_FIX = "compare them with the bill, and set spec.models[].cost.observedAt to that day"


async def check_provider_prices(context: CheckContext) -> Findings:
    """Report prices not compared for long, and those that are not the table's."""
    bodies = await context.reader.list_if_served(MODEL_PROVIDERS)
    if not bodies:
        return ()
    table, day = shipped_prices(), context.at.date()
    models = list(cluster_models(table, bodies, day))
    findings: list[Finding] = []
    if old := [
        model
        for model in models
        if model.observed_at is not None and day - model.observed_at > MAX_PRICE_AGE
    ]:
        message = f"last compared more than {MAX_PRICE_AGE.days} days ago: {_names(old)}"
        findings.append(warning(_CHECK, message, _OLD_FIX))
    if different := [model for model in models if model.differences]:
        message = f"other than in {described(table)}: {_names(different)}"
        fix = "tessera provider diff names each; prices of your own contract may stay"
        findings.append(warning(_CHECK, message, fix))
    return findings or ok(_CHECK, f"{counted(len(models), 'model')}, none old or unlike the table")


def _names(models: Sequence[ComparedModel]) -> str:
    return first_names([f"{model.provider}/{model.name}" for model in models], 5)
