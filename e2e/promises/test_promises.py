"""What the product promises, each shown on one world with everything else at the same time."""

from concurrent.futures import wait

import pytest

from promises import release
from promises.scenes import SCENES, Stage


@pytest.mark.parametrize("scene", SCENES)
def test_a_promise_holds_beside_all_others(scene: str, stage: Stage) -> None:
    print(stage.results[scene].result())


def test_an_uninstalled_release_leaves_its_models_and_nothing_else(stage: Stage) -> None:
    wait(stage.results.values())
    print(stage.play("uninstall", release.uninstall).result())
