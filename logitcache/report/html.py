"""HTML as a tree of elements, which escapes: text from a run or a cache can only ever be text."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from xml.etree.ElementTree import Element, SubElement, tostring

Child = str | Element | None | Iterable["Child"]

_BLOCKS = ("section", "figure", "table", "tr", "li", "p", "h2", "h3", "details", "meta", "style", "svg", "dl")


def tag(name: str, *children: Child, **attributes: object) -> Element:
    """Make an element.

    Args:
        name: of the element.
        children: text, elements, lists of them; None leaves one out.
        attributes: by name, with `class_` for class and `aria_label` for aria-label; None leaves one out.
    """
    names = {key.rstrip("_").replace("_", "-"): str(v) for key, v in attributes.items() if v is not None}
    element = Element(name, names)
    for child in _flat(children):
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element


def table(
    caption: str | None, columns: Sequence[Child], rows: Iterable[Sequence[Child]], *, name: str
) -> Element:
    """Make a table, its first column row headers, in a frame that scrolls by itself on a narrow page.

    Args:
        caption: above the table.
        columns: column headers.
        rows: cells, the first of each row its header.
        name: of the frame, for screen readers.
    """
    element = tag("table", caption and tag("caption", caption))
    element.append(tag("thead", tag("tr", [tag("th", column, scope="col") for column in columns])))
    body = SubElement(element, "tbody")
    for header, *cells in rows:
        body.append(tag("tr", tag("th", header, scope="row"), [tag("td", cell) for cell in cells]))
    return tag("div", element, class_="scroll", tabindex="0", role="region", aria_label=name)


class Ids:
    """Ids that are unique on a page: `new("chart")` returns chart-1, chart-2, …"""

    def __init__(self) -> None:
        self._numbers: dict[str, count[int]] = {}

    def new(self, kind: str) -> str:
        """Return the next id of a kind."""
        return f"{kind}-{next(self._numbers.setdefault(kind, count(1)))}"


def to_html(root: Element) -> str:
    """Write a page."""
    for element in root.iter():
        if element.tag in _BLOCKS and not element.tail:
            element.tail = "\n"
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html")


def _flat(children: Iterable[Child]) -> Iterator[str | Element]:
    for child in children:
        if isinstance(child, str | Element):
            yield child
        elif child is not None:
            yield from _flat(child)
