"""The report of a demo: nothing empty, nothing outside its picture, nothing that a browser runs."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typing_extensions import override

from browser import PHONE, Screen, browser, program, screens
from demo.recorded import BillLine, Curve, Curves, Moment, RecordedRun, RecordedStep, from_json
from demo.report import page
from tessera.cli.mosaic.drawing import MosaicTile, Strip, svg_document

RUN = from_json((Path(__file__).parent / "run.json").read_text(encoding="utf-8"))
HOSTILE = """<script>alert("'1'")</script>&<svg onload='x'>"""
NO_CURVES = Curves(
    replicas=(), queue=(), activity=(), arrivals=(), dollars_per_hour=(), dollars=()
)  # fmt: skip
# Of a letter, at most, beside its height, in the fonts that a browser may choose.
LETTER = 0.6
CHARTS = 6


class Drawing(HTMLParser):
    """What the charts of a page draw, and where."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags = list[str]()
        self.charts = list[tuple[float, float]]()
        self.points = list[tuple[float, float]]()
        self.drawn = list[int]()
        self.outside = list[str]()
        self._text: dict[str, str] | None = None
        self.feed(text)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "svg":
            self.width, self.height = map(float, attributes["viewbox"].split()[2:])
            if attributes.get("role") == "img":
                self.drawn.append(0)
        elif tag == "polyline":
            for pair in attributes["points"].split():
                self._draw(*map(float, pair.split(",")))
        elif tag == "circle":
            self._draw(float(attributes["cx"]), float(attributes["cy"]))
        elif tag == "text":
            self._text = attributes

    @override
    def handle_data(self, data: str) -> None:
        if self._text is None:
            return
        width = len(data) * 12 * LETTER
        if "transform" in self._text:
            _, middle = map(float, re.findall(r"[\d.]+", self._text["transform"])[:2])
            inside = width / 2 <= middle <= self.height - width / 2
        else:
            x = float(self._text["x"])
            share = {"end": 1.0, "middle": 0.5}.get(self._text.get("text-anchor", ""), 0.0)
            inside = x - share * width >= 0 and x + (1 - share) * width <= self.width
        if not inside:
            self.outside.append(data)
        self._text = None

    def _draw(self, x: float, y: float) -> None:
        if self.width > 100:
            self.drawn[-1] += 1
        if not (0 <= x <= self.width and 0 <= y <= self.height):
            self.outside.append(f"{x},{y}")


def mosaic(name: str = "chat") -> str:
    tiles = (
        MosaicTile(start=0, width=1, profile="1g.10gb", service=name, load=0.4),
        MosaicTile(start=1, width=3),
        MosaicTile(start=4, width=4, profile="3g.40gb", service="code"),
    )
    rows: list[Strip | str] = ["a100-reserved", Strip(name="a100-0 GPU-0", tiles=tiles)]
    return svg_document([("", rows)])


def ended_early() -> RecordedRun:
    step = RecordedStep(title="Serve", expected="A model.", seen="", from_s=2, until_s=9)
    return replace(
        RUN, steps=(step,), curves=NO_CURVES, moments=(), bill=(), mosaic_before="", mosaic_after=""
    )


def many() -> RecordedRun:
    """Return a run with as much of everything as a demo may record, and with long names."""
    names = [f"team-with-a-long-name-{number}/service-{number}" for number in range(12)]
    points = ((4.0, math.nan), *((float(at), 1234567.0 * (at % 7)) for at in range(5, 236)))
    lines = tuple(Curve(name, points) for name in names)
    return replace(
        RUN,
        curves=Curves(**{name: lines for name in Curves.__slots__}),
        moments=tuple(Moment(12.0 * number, "five words that say it") for number in range(20)),
        mosaic_before=mosaic(),
        mosaic_after=mosaic(),
        bill=tuple(BillLine(tenant=n[:24], service=n, usd=0.1, share=1 / 12) for n in names),
    )


RUNS = {"recorded": RUN, "ended early": ended_early(), "many": many()}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_no_chart_is_empty_and_all_is_within_its_picture(run: RecordedRun) -> None:
    text = page(run)
    drawing = Drawing(text)
    assert drawing.outside == []
    assert 0 not in drawing.drawn
    assert len(drawing.drawn) + text.count("Nothing was recorded.") == CHARTS
    assert text.count("<img") + text.count("before the GPUs were drawn.") == 2
    assert re.findall(r"\bnan\b|\binf\b", text) == []


def test_what_is_missing_is_said() -> None:
    text = page(ended_early())
    for sentence in ("The run ended early", "the run ended before", "before the bill was read."):
        assert sentence in text
    assert "The run ended early" not in page(RUN)
    assert " s of CPU" in page(RUN)
    assert " s of CPU" not in page(replace(RUN, cpu_seconds=None))
    assert "No step had begun." in page(replace(ended_early(), steps=()))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_report_needs_no_script_and_no_other_file(run: RecordedRun) -> None:
    text = page(run)
    assert not {"script", "link", "iframe", "object"} & set(Drawing(text).tags)
    assert re.findall(r"(?:src|href)=\"(?!data:image/svg)|url\(|https?:|@import", text) == []


def test_texts_of_the_run_are_no_markup() -> None:
    step = RecordedStep(title=HOSTILE, expected=HOSTILE, seen=HOSTILE, from_s=-5, until_s=1e9)
    line = Curve(HOSTILE, ((0.0, 1.0), (1.0, 2.0)))
    run = RecordedRun(
        version=HOSTILE,
        started=HOSTILE,
        seconds=2,
        cpu_seconds=1,
        steps=(step,),
        curves=Curves(**{name: (line,) for name in Curves.__slots__}),
        moments=(Moment(1, HOSTILE),),
        mosaic_before=f"<g>{HOSTILE}",
        mosaic_after=mosaic(HOSTILE),
        bill=(BillLine(tenant=HOSTILE, service=HOSTILE, usd=1, share=2),),
    )
    text = page(run)
    assert "<script" not in text
    assert "onload='" not in text
    assert "script" not in Drawing(text).tags


def test_the_same_name_has_the_same_color_in_all_charts_and_gaps_have_no_line() -> None:
    points = ((0.0, 1.0), (1.0, 1.0), (20.0, 2.0), (21.0, 2.0))
    first, second = Curve("a", points), Curve("b", points)
    curves = replace(NO_CURVES, replicas=(first, second), queue=(second,))
    lines = re.findall(r'<polyline class="(c\d)" fill', page(replace(RUN, curves=curves)))
    assert lines == ["c0", "c0", "c1", "c1", "c1", "c1"]


VIEWPORT = '<!doctype html><meta name="viewport" content="width=device-width">'
PLANTED = {
    '<div style="width: 2000px">wide</div>': "the page is 2",
    '<table style="width: 2000px"><tr><td>wide': '<table> "wide" ends at 2',
    '<svg viewBox="0 0 99 20"><rect width="9" height="9"/><text x="90" y="9">cut off': "leaves its",
    '<svg viewBox="0 0 99 20"><text y="12">first</text><text y="12">second': "lies over",
    '<figure><svg viewBox="0 0 99 20" role="img"></svg>': "an empty picture",
}


@pytest.mark.full
@pytest.mark.skipif(program() is None, reason="Chromium is not installed")
def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    with browser() as opened:
        for body, fault in PLANTED.items():
            file.write_text(f"{VIEWPORT}<body>{body}", encoding="utf-8")
            opened.open(file.as_uri(), Screen(width=PHONE))
            assert fault in "\n".join(opened.faults())


@pytest.mark.full
@pytest.mark.skipif(program() is None, reason="Chromium is not installed")
def test_in_a_browser_without_scripts_all_fits_wide_and_on_a_phone(tmp_path: Path) -> None:
    faults = []
    with browser() as opened:
        for name, run in RUNS.items():
            file = tmp_path / f"{name}.html"
            file.write_text(page(run), encoding="utf-8")
            for screen in screens():
                opened.open(file.as_uri(), screen)
                faults += [f"{name} {screen.name}: {fault}" for fault in opened.faults()]
    assert faults == []
