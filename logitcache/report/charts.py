"""Charts in SVG: lines, points, histograms and bars, each with a title and a table of its numbers.

Colours, dashes and fonts are the style sheet's (`page.css`), so that one drawing serves light, dark and print.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.etree.ElementTree import Element

from logitcache.report.html import Child, Ids, table, tag

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
STYLES = 8  # colours of series in the style sheet; further ones come again with other dashes and marks
LEAST = 1e-140  # what is smaller counts as 0
# Marks that tell series apart without colour, as corners around (0, 0); the first, without corners, is a circle.
MARKS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    ((0, -1.3), (1.2, 0), (0, 1.3), (-1.2, 0)),
    ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    ((-1.2, 0), (0.8, -1.1), (0.8, 1.1)),
    ((1.2, 0), (-0.8, -1.1), (-0.8, 1.1)),
    ((0, -1.4), (0.4, -0.4), (1.4, 0), (0.4, 0.4), (0, 1.4), (-0.4, 0.4), (-1.4, 0), (-0.4, -0.4)),
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """An axis: what it measures, and how.

    Attributes:
        label: quantity and unit, below an x axis; what a y axis measures the chart's title says.
        log: logarithmic; values of 0 or less are left out.
        percent: shares are written in percent.
        whole: ticks at whole numbers only.
        low, high: values that it must reach.
    """

    label: str = ""
    log: bool = False
    percent: bool = False
    whole: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: for the tooltip.
        points: (x, y), by rising x.
        style: number of its colour, dash and mark.
        thin: drawn fine and pale, behind the others.
        marks: a mark at each point; else at the last one, where it is not thin.
        weights: of the points, as areas of their marks; empty where all are alike.
    """

    name: str
    points: tuple[Point, ...]
    style: int = 0
    thin: bool = False
    marks: bool = False
    weights: tuple[float, ...] = ()

    def radii(self) -> list[float]:
        """Return the radius of each point's mark, large enough to be seen."""
        if not self.weights:
            return [3.0] * len(self.points)
        return [5.0 * max(0.25, math.sqrt(weight / max(self.weights))) for weight in self.weights]


class Scale:
    """Maps values to positions from `start` to `end` on an axis, and chooses its ticks."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.axis, self.start, self.end = axis, start, end
        values = [*values, *(v for v in (axis.low, axis.high) if v is not None)]
        values = [v for v in values if v > LEAST or not axis.log] or [1.0]
        low, high = min(values), max(values)
        if high - low <= LEAST + 1e-9 * max(abs(low), abs(high)):  # all the same, as far as can be drawn
            margin = abs(low) / 2 if abs(low) > LEAST else 0.5
            ends = (min(0.0, low), max(1.0, high)) if axis.percent else (-math.inf, math.inf)
            low, high = (low / 2, high * 2) if axis.log else (low - margin, high + margin)
            low, high = max(low, ends[0]), min(high, ends[1])
        if axis.log:
            pad = (high / low) ** 0.04
            self.low, self.high = low / pad, high * pad
        else:
            self.step = max(_round_step((high - low) / 4), 1.0 if axis.whole else 0.0)
            self.low, self.high = low, high
            if axis.low is None:
                self.low = math.floor(low / self.step) * self.step
            if axis.high is None:
                self.high = math.ceil(high / self.step) * self.step

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.axis.log else (self.low, self.high)
        at = math.log(value) if self.axis.log else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the values of the ticks: round ones."""
        if not self.axis.log:
            first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
            return [number * self.step for number in range(first, last + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first) / 5))
        factors = (1, 2, 5) if last - first <= 3 else (1,)
        marks = [f * 10.0**exponent for exponent in range(first, last + 1, every) for f in factors]
        return [mark for mark in marks if self.low <= mark <= self.high]

    def text(self, value: float) -> str:
        """Write the value of a tick, in as many digits as tell it from the next."""
        times = 100.0 if self.axis.percent else 1.0
        digits = 3
        if not self.axis.log and value:
            digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(self.step) + 1e-9) + 1
        text = format_tick(times * value, max(1, digits)).replace("-", "−")
        return f"{text} %" if self.axis.percent else text


def format_tick(value: float, digits: int = 4) -> str:
    """Write a number in so many digits for an axis: 0.25, 1,500, 1.2M, 5e-7."""
    size = abs(value)
    if not value or 1e-4 <= size < 1e4:
        return f"{float(f'{value:.{digits}g}'):,.{max(0, digits + 4)}f}".rstrip("0").rstrip(".")
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if factor <= size < 1e12:
            return f"{float(f'{value / factor:.{digits}g}'):.{digits}f}".rstrip("0").rstrip(".") + unit
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


_T = TypeVar("_T")


def take_evenly(values: Sequence[_T], most: int) -> list[_T]:
    """Take at most so many values, two or more, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[number * (len(values) - 1) // (most - 1)] for number in range(most)]


def thin_out(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """Take at most so many points: the first, the last, and the lowest and highest of each stretch between."""
    if len(points) <= most:
        return tuple(points)
    stretches = max(1, (most - 2) // 2)
    inner, taken = points[1:-1], [points[0]]
    for stretch in range(stretches):
        part = inner[stretch * len(inner) // stretches : (stretch + 1) * len(inner) // stretches]
        if part:
            ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
            taken += sorted(ends)
    return (*taken, points[-1])


@dataclass(frozen=True)
class ChartTable:
    """The numbers of a chart, as a table below it; `note` says what it leaves out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Child, ...], ...]
    note: str = ""


def draw_lines(
    ids: Ids,
    title: str,
    note: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    numbers: ChartTable,
    *,
    legend: bool = False,
    ideal: Sequence[Point] = (),
) -> Element:
    """Draw lines that end in a mark.

    Args:
        ids: of the page.
        title, note: above the chart.
        x, y: axes.
        series: one line each.
        numbers: the table below the chart.
        legend: with the names of the series beside the title.
        ideal: points of a line where the others should be.
    """
    plot = _Plot(x, y, [point for one in series for point in one.points])
    if ideal:
        plot.add(tag("path", d=_path([(plot.x(a), plot.y(b)) for a, b in ideal]), class_="axis"))
    for one in sorted(series, key=lambda one: not one.thin):
        sized = zip(one.points, one.radii(), strict=True)
        dots = [(plot.x(a), plot.y(b), radius) for (a, b), radius in sized if plot.shows(a, b)]
        kind = f"line {style_classes(one.style)}" + (" thin" if one.thin else "")
        if len(dots) > 1:
            line = _path([(a, b) for a, b, _ in dots])
            plot.add(tag("path", tag("title", one.name), d=line, class_=kind))
        ends = dots[-1:] if len(dots) == 1 or not one.thin else []
        marked = dots if one.marks else ends
        plot.add([_draw_mark(a, b, one.style, radius, one.name) for a, b, radius in marked])
    names = {one.style: one.name for one in series} if legend else {}
    return _figure(ids, title, note, plot.svg, numbers, draw_legend(names) if names else None)


def draw_points(
    ids: Ids, title: str, note: str, x: Axis, y: Axis, series: Sequence[Series], numbers: ChartTable
) -> Element:
    """Draw a mark for every point, and nothing between them."""
    plot = _Plot(x, y, [point for one in series for point in one.points])
    for one in series:
        shown = [(a, b) for a, b in one.points if plot.shows(a, b)]
        plot.add([_draw_mark(plot.x(a), plot.y(b), one.style, 4.5, one.name) for a, b in shown])
    return _figure(ids, title, note, plot.svg, numbers)


def draw_histogram(
    ids: Ids,
    title: str,
    note: str,
    x: Axis,
    edges: Sequence[float],
    counts: Sequence[int],
    numbers: ChartTable,
) -> Element:
    """Draw counts over bins; there is one more edge than counts."""
    ends = Axis(x.label, low=edges[0], high=edges[-1])
    plot = _Plot(ends, Axis(low=0.0), [(edges[0], 0.0), (edges[-1], float(max(counts)))])
    bottom = plot.y(0.0)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, top = plot.x(low), plot.y(float(count))
        name = tag("title", f"{low:.3g} to {high:.3g}: {count:,}")
        size = {"width": f"{plot.x(high) - left - 1:.1f}", "height": f"{bottom - top:.1f}"}
        if count:
            plot.add(tag("rect", name, x=f"{left + 0.5:.1f}", y=f"{top:.1f}", **size, class_="bar"))
    return _figure(ids, title, note, plot.svg, numbers)


def draw_bars(
    ids: Ids, title: str, note: str, rows: Sequence[tuple[str, float, str]], numbers: ChartTable
) -> Element:
    """Draw a bar for each (name, value, value as text), one below the other."""
    height = 22 * len(rows) + 8
    svg, room = _svg(height), WIDTH - 178
    most = max([value for _, value, _ in rows] + [1e-300])
    for number, (name, value, text) in enumerate(rows):
        y = 4 + 22 * number
        width = room * value / most
        svg.append(tag("text", name, x=86, y=y + 14, class_="tick end"))
        svg.append(tag("rect", x=94, y=y + 3, width=f"{max(width, 0.5):.1f}", height=15, class_="bar"))
        svg.append(tag("text", text, x=f"{100 + width:.1f}", y=y + 14, class_="tick"))
    return _figure(ids, title, note, svg, numbers)


def style_classes(number: int) -> str:
    """Return the CSS classes of a series' colour and dash."""
    return f"s{number % STYLES} d{number // STYLES % 3}"


def draw_legend(names: Mapping[int, Child]) -> Element:
    """Draw a legend: names by the number of their style."""
    entries = [tag("li", draw_swatch(number), name) for number, name in names.items()]
    return tag("ul", entries, class_="legend", aria_label="Legend")


def draw_swatch(number: int) -> Element:
    """Draw a short piece of a series' line with its mark, for legends."""
    line = tag("path", d="M1 5H25", class_=f"line {style_classes(number)}")
    return tag(
        "svg", line, _draw_mark(13, 5, number, 4.0), viewBox="0 0 26 10", class_="swatch", aria_hidden="true"
    )


# Parts of a chart ----------------------------------------------------------------------------------------


class _Plot:
    """A frame with two axes, their ticks and labels, to draw in."""

    def __init__(self, x: Axis, y: Axis, points: Sequence[Point]) -> None:
        self.x = Scale(x, [a for a, _ in points], LEFT, WIDTH - RIGHT)
        self.y = Scale(y, [b for _, b in points], HEIGHT - BOTTOM, TOP)
        self.svg = _svg(HEIGHT)
        self.add(self._axes())

    def add(self, child: Child) -> None:
        """Add elements to the drawing."""
        for element in [child] if isinstance(child, Element) else child or []:
            assert isinstance(element, Element)
            self.svg.append(element)

    def shows(self, a: float, b: float) -> bool:
        """Can this point be drawn? On a logarithmic axis only values above 0 can."""
        return (a > LEAST or not self.x.axis.log) and (b > LEAST or not self.y.axis.log)

    def _axes(self) -> Iterator[Element]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for value in self.y.ticks():
            at = f"{self.y(value):.1f}"
            yield tag("path", d=f"M{LEFT} {at}H{right}", class_="grid")
            yield tag("text", self.y.text(value), x=LEFT - 6, y=at, dy="0.32em", class_="tick end")
        for value in self.x.ticks():
            at = f"{self.x(value):.1f}"
            yield tag("path", d=f"M{at} {bottom}v4", class_="axis")
            yield tag("text", self.x.text(value), x=at, y=bottom + 15, class_="tick middle")
        yield tag("path", d=f"M{LEFT} {bottom}H{right}", class_="axis")
        yield tag("text", self.x.axis.label, x=(LEFT + right) / 2, y=HEIGHT - 4, class_="tick middle label")


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _svg(height: int) -> Element:
    return tag("svg", viewBox=f"0 0 {WIDTH} {height}", role="img")


def _draw_mark(x: float, y: float, number: int, radius: float, name: str | None = None) -> Element:
    """Draw the mark of a series: no two of the first 64 have both colour and shape in common."""
    shape = MARKS[(number + number // STYLES) % len(MARKS)]
    title, kind = name and tag("title", name), f"dot {style_classes(number)}"
    if not shape:
        return tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius, class_=kind)
    corners = "L".join(f"{x + radius * a:.1f} {y + radius * b:.1f}" for a, b in shape)
    return tag("path", title, d=f"M{corners}Z", class_=kind)


def _figure(
    ids: Ids, title: str, note: str, svg: Element, numbers: ChartTable, legend: Child = None
) -> Element:
    title_id, note_id = ids.new("chart"), ids.new("note")
    svg.set("aria-labelledby", title_id)
    svg.set("aria-describedby", note_id)
    rows = table(None, numbers.columns, numbers.rows, name=f"Numbers of: {title}")
    return tag(
        "figure",
        tag("figcaption", tag("strong", title, id=title_id), " ", tag("span", note, id=note_id), legend),
        svg,
        tag("details", tag("summary", "Numbers"), numbers.note and tag("p", numbers.note), rows),
        class_="chart",
    )


def _round_step(rough: float) -> float:
    """Round to 1, 2 or 5 times a power of ten, by ratio."""
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(
        step for step, below in ((1, 2), (2, 10), (5, 50), (10, math.inf)) if (rough / power) ** 2 < below
    )
