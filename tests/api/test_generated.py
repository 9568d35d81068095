"""Generated files agree with the types."""

from pathlib import Path

import generate

ROOT = Path(__file__).parents[2]


def test_generated_files_are_in_place() -> None:
    different = [
        name
        for name, content in generate.generated().items()
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != content
    ]
    assert different == [], "run `make generate`"


def test_the_operator_may_do_only_what_its_code_names() -> None:
    role = (ROOT / "charts/tessera/templates/clusterrole.yaml").read_text(encoding="utf-8")
    assert "'*'" not in role
    assert "secrets" not in role
    assert "pods/log" not in role


def test_the_page_of_metrics_has_labels_of_metrics_without_a_sample() -> None:
    page = generate.generated()["docs/reference/metrics.md"]
    labels = "`tenant`, `service`, `code`, `reason`"
    assert f"| `tessera_gateway_requests_total` | counter | {labels} |" in page
    assert "| `tessera_malformed_objects` | gauge | `kind` |" in page
