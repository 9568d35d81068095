"""Options of `spec.engine`, each valid alone, that contradict the model or one another."""

from typing import Any

import pytest

from tessera.api.reasons import Accepted
from tessera.domain.placement.checks import check
from tests.builders import MEDIUM, a_spec

EMBEDDER = "hf://BAAI/bge-m3"
NGRAM = {"method": "NGram"}


@pytest.mark.parametrize(
    ("uri", "engine", "field", "says"),
    [
        (EMBEDDER, {"speculation": NGRAM}, "speculation", "no tokens to draft"),
        (
            MEDIUM,
            {"runner": "Pooling", "speculation": NGRAM},
            "speculation",
            "no tokens to draft",
        ),
    ],
)
def test_options_that_contradict_the_model_are_refused(
    uri: str, engine: dict[str, Any], field: str, says: str
) -> None:
    [denial] = check(a_spec(uri, engine=engine), {})
    assert (denial.reason, denial.field) == (
        Accepted.INVALID_ENGINE_OPTION,
        f"spec.engine.{field}",
    )
    assert says in denial.message
