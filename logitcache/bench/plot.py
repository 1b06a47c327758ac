"""The points of `bench scale` as one SVG picture, drawn with the report's charts, for light and dark pages."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from logitcache.bench.scale import Point, ScaleReport
from logitcache.files import writing
from logitcache.report.charts import HEIGHT, WIDTH, Axis, ChartTable, Series, draw_lines
from logitcache.report.html import Ids, tag

TITLE, GAP = 26, 20
STEPS = ("write", "decode", "verify")
STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1c1c1a; --muted: #5d5d58; --faint: #ecece6;
  --s0: #1f5fa8; --s1: #b8450d; --s2: #15733a; }
@media (prefers-color-scheme: dark) { :root { --paper: #171716; --ink: #e9e8e3; --muted: #a5a49c; --faint: #272725;
  --s0: #7db0ff; --s1: #ff9d66; --s2: #6fce8d; } }
text { font: 11px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: var(--muted); }
.title { font-size: 13px; font-weight: 600; fill: var(--ink); }
.paper { fill: var(--paper); } .grid { stroke: var(--faint); } .axis { stroke: var(--muted); fill: none; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.line { fill: none; stroke-width: 2; } .dot { stroke: var(--paper); }
.s0.line { stroke: var(--s0); } .s1.line { stroke: var(--s1); } .s2.line { stroke: var(--s2); }
.s0.dot, .s0.name { fill: var(--s0); } .s1.dot, .s1.name { fill: var(--s1); } .s2.dot, .s2.name { fill: var(--s2); }
"""


def draw(report: ScaleReport, file: Path) -> None:
    """Draw time per view, bytes per view and memory against samples, seeds and k into an SVG file.

    Raises:
        StorageError: it cannot be written.
    """
    samples, seeds, ks = (report.along(grows) for grows in ("samples", "seeds", "k"))
    charts = [
        _times("samples", samples),
        _memory("samples", samples),
        _times("seeds", seeds),
        _memory("seeds", seeds),
        _times("k", ks),
        _chart("bytes per view against k", "k", ks, {"bytes": [p.bytes_per_view for p in ks]}),
    ]
    width, height = 2 * WIDTH + 3 * GAP, 3 * (HEIGHT + TITLE + GAP) + GAP
    picture = tag(
        "svg",
        tag("title", "What a cache costs per view, as samples, seeds and k grow"),
        tag("style", STYLE),
        tag("rect", width=width, height=height, class_="paper"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
    )
    for number, (title, names, chart) in enumerate(charts):
        x = GAP + number % 2 * (WIDTH + GAP)
        y = GAP + number // 2 * (HEIGHT + TITLE + GAP)
        picture.append(tag("text", title, x=x, y=y + 12, class_="title"))
        for style, name in enumerate(names if len(names) > 1 else ()):
            at = {"x": x + WIDTH - 12 - 52 * (len(names) - 1 - style), "y": y + 12}
            picture.append(tag("text", name, class_=f"name end s{style}", **at))
        for name, value in {"x": x, "y": y + TITLE, "width": WIDTH, "height": HEIGHT}.items():
            chart.set(name, str(value))
        picture.append(chart)
    with writing(file) as temporary:
        temporary.write_text(tostring(picture, encoding="unicode") + "\n", encoding="utf-8")


_Chart = tuple[str, list[str], Element]


def _times(grows: str, points: Sequence[Point]) -> _Chart:
    values = {step: [float(getattr(p, step)) for p in points] for step in STEPS}
    return _chart(f"µs per view against {grows}", grows, points, values)


def _memory(grows: str, points: Sequence[Point]) -> _Chart:
    return _chart(
        f"peak MB of memory against {grows}", grows, points, {"MB": [p.peak_mb or 0.0 for p in points]}
    )


def _chart(title: str, grows: str, points: Sequence[Point], values: dict[str, list[float]]) -> _Chart:
    x = [float(getattr(p, grows)) for p in points]
    series = [
        Series(name, tuple(zip(x, ys, strict=True)), style, marks=True)
        for style, (name, ys) in enumerate(values.items())
    ]
    figure = draw_lines(Ids(), title, "", Axis(grows, log=True), Axis(low=0.0), series, ChartTable((), ()))
    svg = figure.find("svg")
    assert svg is not None
    for name in ("role", "aria-labelledby", "aria-describedby"):
        svg.attrib.pop(name, None)
    return title, list(values), svg
