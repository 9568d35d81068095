"""The report of a run as one HTML document."""

import html

from demo.recorded import RecordedRun


def page(run: RecordedRun) -> str:
    """Return the document."""
    steps = "".join(f"<li>{html.escape(step.seen)}</li>" for step in run.steps)
    mosaics = f"{run.mosaic_before}{run.mosaic_after}"
    return f"<!doctype html><title>Tessera</title><ol>{steps}</ol>{mosaics}"
