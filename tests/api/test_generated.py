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
