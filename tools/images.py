"""Prints every image that a cluster pulls for Tessera, one a line: what a mirror has to hold.

`python tools/images.py` prints them where they are published, `python tools/images.py REGISTRY`
where the value `platform.imageRegistry` looks for them, in the same order.
"""

import sys
from collections.abc import Iterator

import yaml

from chart_values import Chart
from environments import ROOT
from tessera.api.engine_options import EngineOptions
from tessera.resources.defaults import defaults, newest_version
from tessera.resources.platform import default_image, mirror_image


def images(registry: str | None = None) -> Iterator[str]:
    """The chart's own images, then the engine of the default version."""
    chart = Chart()
    version = yaml.safe_load((ROOT / "charts/tessera/Chart.yaml").read_text("utf-8"))["appVersion"]
    for image in (chart.image, chart.batch_image, chart.node.image, chart.gateway.image):
        yield mirror_image(f"{image.repository}:{image.tag or version}", registry)
    engine = default_image(EngineOptions().version, defaults(newest_version()))
    yield mirror_image(engine, registry)


if __name__ == "__main__":
    print("\n".join(images(sys.argv[1] if sys.argv[1:] else None)))
